"""Noticing that another machine answers for an address that is served here, and telling the neighbours again whose it is.

Two that answer for one address lose initiators' packets, never data: who may write is settled by the image store's fence. IPv4
alone: nothing is asked about IPv6 addresses.
"""

import contextlib
import fcntl
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv4Address, ip_address
from typing import Final, Protocol

import structlog

from iscsi_worker.addresses.base import Addresses
from iscsi_worker.view import View
from sanderling.clock import Clock
from sanderling.errors import AddressFailed
from sanderling.model.exports import Epoch, ExportPhase

log = structlog.get_logger(__name__)

ASKED_MOST: Final = 16  # addresses asked about in one turn on one interface: each is a broadcast
ANSWER_S: Final = 0.05
AGAIN_S: Final = 0.3  # several times what a move takes from one node's address to the other's end
HEARD_MOST: Final = 1024
ARPHRD_ETHER, ETH_P_ARP, REPLY = 1, 0x0806, 2
SIOCGIFHWADDR = 0x8927
BROADCAST: Final = b"\xff" * 6
REQUEST = struct.Struct("!HHBBH6s4s6s4s")

Claimed = dict[str, str]


class Asking(Protocol):
    def answers(self, interface: str, addresses: Collection[str]) -> Claimed:
        """The hardware address of another machine for each of the addresses that one answers for on this interface."""
        ...


class Arp:
    """The network namespace is that of the calling thread. A socket is kept for each interface: closing one is slow."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()

    def answers(self, interface: str, addresses: Collection[str]) -> Claimed:
        try:
            return self._ask(interface, addresses)
        except OSError:  # the interface is gone or down: nobody answers there
            with contextlib.suppress(KeyError):
                self._sockets.pop(interface).close()
            return {}

    def _ask(self, interface: str, addresses: Collection[str]) -> Claimed:
        packets = self._sockets.get(interface)
        if packets is None:
            packets = self._sockets[interface] = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ARP))
            packets.bind((interface, ETH_P_ARP))
        _, _, _, kind, mac = packets.getsockname()
        if kind != ARPHRD_ETHER:
            return {}
        packets.settimeout(0)
        list(_heard(packets))  # what was said before now may be about another time
        for address in addresses:
            wanted = socket.inet_aton(address)
            asked = REQUEST.pack(1, 0x0800, 6, 4, 1, mac, bytes(4), bytes(6), wanted)  # from nobody: a probe of RFC 5227
            packets.sendto(asked, (interface, ETH_P_ARP, 0, ARPHRD_ETHER, BROADCAST))
        packets.settimeout(ANSWER_S)
        own = {bytes(mac), *_hardware_addresses()}
        return {
            address: sender.hex(":")
            for sender, address, to in _heard(packets)
            if address in addresses and sender not in own and to == bytes(mac)
        }


class Silence:
    """For addresses that exist in one process only."""

    def answers(self, interface: str, addresses: Collection[str]) -> Claimed:  # noqa: ARG002
        return {}


class Claims:
    """`turn` is called at each probe interval. A claim counts when it is heard twice within `AGAIN_S` at one epoch of the export:
    for a moment of every move two nodes have the address. Then it is answered by announcing the address again, while `certain`
    says that the lock was proved a moment ago: the other may be whoever has taken over from this node.
    """

    def __init__(
        self,
        node: str,
        asking: Asking,
        addresses: Addresses,
        *,
        view: Callable[[], View | None],
        certain: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._node, self._asking, self._addresses = node, asking, addresses
        self._view, self._certain, self._clock = view, certain, clock
        self._never = threading.Event()
        self._next: dict[str, int] = {}
        self.claimed: Claimed = {}

    def turn(self) -> None:
        """Ask about some of what is served here; what was claimed a moment ago is asked about every time."""
        before = self._served()
        chosen = {interface: self._chosen(interface, sorted(served)) for interface, served in before.items()}
        heard = self._heard(chosen)
        if heard:
            self._clock.wait(self._never, AGAIN_S)
            after = self._served()
            still = {
                interface: {one for one in asked & heard.keys() if after.get(interface, {}).get(one) == before[interface][one]}
                for interface, asked in chosen.items()
            }
            heard = self._heard(still)
            for interface, asked in still.items() if self._certain() else ():
                for address in asked & heard.keys():
                    self._announce(address, interface)
        for address in heard.keys() - self.claimed.keys():
            log.error("address claimed by another machine", address=address, hardware_address=heard[address])
        for address in self.claimed.keys() - heard.keys():
            log.info("address no longer claimed by another machine", address=address)
        self.claimed = heard

    def _served(self) -> Mapping[str, Mapping[str, Epoch]]:
        view = self._view()
        return served_here(view, self._node) if view else {}

    def _heard(self, asked: Mapping[str, Collection[str]]) -> Claimed:
        heard: Claimed = {}
        for interface, addresses in asked.items():
            if addresses:
                heard |= self._asking.answers(interface, addresses)
        return heard

    def _chosen(self, interface: str, served: list[str]) -> set[str]:
        begin = self._next.get(interface, 0) % len(served)
        self._next[interface] = begin + ASKED_MOST
        return {*(served[begin:] + served[:begin])[:ASKED_MOST], *(address for address in served if address in self.claimed)}

    def _announce(self, address: str, interface: str) -> None:
        try:
            self._addresses.announce(address, interface=interface)
        except AddressFailed as problem:
            log.warning("cannot announce again", address=address, problem=problem.detail)


def connect(addresses: str) -> Asking:
    """What goes with the backend that `[iscsi_worker] addresses` names."""
    return Arp() if addresses == "netlink" else Silence()


def served_here(view: View, node: str) -> Mapping[str, Mapping[str, Epoch]]:
    """The IPv4 addresses that this node serves, by interface, each with its export's epoch."""
    found: dict[str, dict[str, Epoch]] = {}
    session = view.sessions.get(node)
    for export in view.held_by(session) if session else ():
        disk, held = view.disks.get(export.disk_id), view.exports[export]
        if disk and held.export.phase is ExportPhase.SERVING:
            for path in disk.export_paths(export.index):
                if isinstance(ip_address(path.address), IPv4Address):
                    found.setdefault(path.interface, {})[path.address] = held.export.epoch
    return found


def _heard(packets: socket.socket) -> Iterator[tuple[bytes, str, bytes]]:
    """Who answered for which address, and whom; until nobody has for as long as the socket waits."""
    with contextlib.suppress(TimeoutError, BlockingIOError):
        for _ in range(HEARD_MOST):
            said = packets.recv(256)
            if len(said) >= REQUEST.size:
                _, _, _, _, operation, sender, address, to, _ = REQUEST.unpack_from(said)
                if operation == REPLY:
                    yield sender, socket.inet_ntoa(address), to


def _hardware_addresses() -> Iterator[bytes]:
    """Those of this node's other interfaces: a kernel answers on each of them for any of its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                yield fcntl.ioctl(asking, SIOCGIFHWADDR, struct.pack("256s", name.encode()))[18:24]
