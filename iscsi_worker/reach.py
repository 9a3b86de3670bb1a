"""Asking whether other nodes can be reached over the networks of the paths: TCP connects, many at once, in process.

A refused connection is an answer: somebody holds the address and the network carries both directions.
"""

import errno
import selectors
import socket
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Protocol

from sanderling.clock import Clock
from sanderling.model.disks import PORTAL_PORT

RT_SCOPE_UNIVERSE = 0
NO_LINGER = b"\1\0\0\0\0\0\0\0"  # closing resets, so that neither end keeps what is left of the connection
ANSWERS = frozenset({0, errno.ECONNREFUSED})


@dataclass(frozen=True, slots=True)
class Probe:
    """One connect, to an address of `peer`, from this node's own `source` on `interface`."""

    peer: str
    interface: str
    source: str
    address: str


class Reach(Protocol):
    def own(self) -> dict[str, tuple[str, ...]]:
        """This node's interfaces that are up, with its own addresses there (not those lent for paths), as 10.0.0.1/24."""
        ...

    def answered(self, probes: Collection[Probe], *, timeout_s: float) -> frozenset[Probe]:
        """Those that were answered in time. Returns once all were, or the time has passed."""
        ...


class Unprobed:
    """For addresses that exist in one process only: there is nobody to ask, so nothing is ever concluded."""

    def own(self) -> dict[str, tuple[str, ...]]:
        return {}

    def answered(self, probes: Collection[Probe], *, timeout_s: float) -> frozenset[Probe]:  # noqa: ARG002
        return frozenset()


class TcpReach:
    """The network namespace is the one that the calling thread is in."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def own(self) -> dict[str, tuple[str, ...]]:
        from pyroute2 import IPRoute  # noqa: PLC0415  its import costs a tenth of a second

        from iscsi_worker.addresses.netlink import PROTOCOL  # noqa: PLC0415

        with IPRoute() as route:
            names = {link["index"]: str(link.get("ifname")) for link in route.get_links()}
            found: dict[str, list[str]] = defaultdict(list)
            for address in route.get_addr():
                if address.get("IFA_PROTO") != PROTOCOL and address["scope"] == RT_SCOPE_UNIVERSE:
                    text = address.get("IFA_LOCAL") or address.get("IFA_ADDRESS")
                    found[names[address["index"]]].append(f"{text}/{address['prefixlen']}")
        return {name: tuple(sorted(found[name])) for name in names.values()}

    def answered(self, probes: Collection[Probe], *, timeout_s: float) -> frozenset[Probe]:
        deadline = self._clock.monotonic() + timeout_s
        answered: set[Probe] = set()
        with selectors.DefaultSelector() as waiting:
            try:
                for probe in probes:
                    if _begin(probe, waiting):
                        answered.add(probe)
                last = False
                while waiting.get_map() and not last:
                    left = deadline - self._clock.monotonic()
                    last = left <= 0  # what was answered while this thread did not run is looked at once more
                    for key, _ in waiting.select(max(0.0, left)):
                        assert isinstance(key.fileobj, socket.socket)
                        if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in ANSWERS:
                            answered.add(key.data)
                        waiting.unregister(key.fileobj)
                        key.fileobj.close()
            finally:
                for key in list(waiting.get_map().values()):
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.close()
        return frozenset(answered)


def connect(addresses: str, *, clock: Clock) -> Reach:
    """What goes with the backend that `[iscsi_worker] addresses` names."""
    return TcpReach(clock) if addresses == "netlink" else Unprobed()


def _begin(probe: Probe, waiting: selectors.BaseSelector) -> bool:
    """Whether it was answered at once; one that is under way waits, one that cannot be sent has failed."""
    family = socket.AF_INET if isinstance(ip_address(probe.address), IPv4Address) else socket.AF_INET6
    asking = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, probe.interface.encode())
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        asking.bind((probe.source, 0))
        code = asking.connect_ex((probe.address, PORTAL_PORT))
    except OSError:
        code = errno.ENETDOWN  # the interface, or this node's address on it, is gone
    if code == errno.EINPROGRESS:
        waiting.register(asking, selectors.EVENT_WRITE, probe)
        return False
    asking.close()
    return code in ANSWERS
