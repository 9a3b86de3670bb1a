"""The kernel's own view of TCP connections: who is connected to a portal, and resetting them at once (NETLINK_SOCK_DIAG).

Spoken directly because pyroute2 lists sockets but cannot destroy one. Layouts are those of linux/inet_diag.h.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import structlog

from sanderling.errors import TargetFailed

log = structlog.get_logger(__name__)

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ESTABLISHED, _FIN_WAIT_1, _CLOSE_WAIT = 1, 4, 8
_STATES: Final = 1 << _ESTABLISHED | 1 << _FIN_WAIT_1 | 1 << _CLOSE_WAIT
_TIMEOUT_S: Final = 1.0
KNOWN_MOST: Final = 1 << 14  # connections: each is looked at every second, and most are those of the second before

_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBBI48s")
_ID = struct.Struct("!HH16s16s")
_TOLD = struct.Struct("=BBBB48s")


@dataclass(frozen=True, slots=True)
class TcpConnection:
    """`key` is the kernel's own name for it."""

    local_address: str
    remote_address: str
    remote_port: int
    family: int
    key: bytes


def connected_to(addresses: Collection[str], port: int) -> tuple[TcpConnection, ...]:
    """Connections that end at one of these addresses of this node. `TargetFailed` when the kernel does not say."""
    try:
        return tuple(_listed(addresses, port))
    except OSError as error:
        raise TargetFailed(f"the kernel does not list connections: {error}") from error


def others(port: int) -> Mapping[str, Collection[tuple[str, int]]]:
    """The other ends, address and port, of all connections to this port of this node, by the address at which they end here.

    `TargetFailed` when the kernel does not say.
    """
    found: dict[str, set[tuple[str, int]]] = {}
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in _all(family, port):
                found.setdefault(one.local_address, set()).add((one.remote_address, one.remote_port))
    except OSError as error:
        raise TargetFailed(f"the kernel does not list connections: {error}") from error
    return found


def reset(connections: Collection[TcpConnection]) -> None:
    """Reset them: the other end is told at once. One that is gone is no error; a kernel that cannot do it is logged."""
    for one in connections:
        ask = _ASK.pack(one.family, socket.IPPROTO_TCP, 0, 0, 0, one.key)
        try:
            for _ in _ask(_SOCK_DESTROY, _REQUEST | _ACK, ask):
                pass
        except OSError as error:
            if error.errno != errno.ENOENT:
                log.warning("connection not reset", peer=one.remote_address, error=str(error))


def _listed(addresses: Collection[str], port: int) -> Iterator[TcpConnection]:
    for family in {socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses}:
        for one in _all(family, port):
            if one.local_address in addresses:
                yield one


def _all(family: int, port: int) -> Iterator[TcpConnection]:
    key = _ID.pack(port, 0, bytes(16), bytes(16)) + bytes(12)
    for body in _ask(_SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, _ASK.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES, key)):
        family, _, _, _, known = _TOLD.unpack_from(body)
        yield _read(family, known)


@lru_cache(KNOWN_MOST)
def _read(family: int, key: bytes) -> TcpConnection:
    _, remote_port, local, remote = _ID.unpack_from(key)
    size = 4 if family == socket.AF_INET else 16
    local_address, remote_address = (str(ipaddress.ip_address(raw[:size])) for raw in (local, remote))
    return TcpConnection(local_address, remote_address, remote_port, family, key)


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as talk:
        talk.settimeout(_TIMEOUT_S)
        talk.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            answer = talk.recv(65536)
            while answer:
                length, told, _, _, _ = _HEADER.unpack_from(answer)
                content, answer = answer[_HEADER.size : length], answer[(length + 3) & ~3 :]
                if told in {_NLMSG_ERROR, _NLMSG_DONE}:
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    if code:
                        raise OSError(code, "sock_diag refused")
                    return
                yield content
