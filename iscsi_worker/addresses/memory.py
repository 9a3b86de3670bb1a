"""Addresses that exist only here: for simulation, with lifetimes on the clock that it is given."""

import threading
from collections import Counter, deque
from collections.abc import Sequence
from ipaddress import ip_address

from sanderling.clock import Clock
from sanderling.errors import AddressFailed
from sanderling.model.exports import Connection

TICKLES_KEPT = 1024


class Memory:
    """`announced` counts announcements by address; `tickled` keeps the last connections that were tickled."""

    def __init__(self, clock: Clock, *, interfaces: Sequence[str] = ("eth0",), own: Sequence[str] = ("192.0.2.1",)) -> None:
        self._clock, self._interfaces, self._own = clock, frozenset(interfaces), frozenset(own)
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}
        self.announced: Counter[str] = Counter()
        self.tickled: deque[Connection] = deque(maxlen=TICKLES_KEPT)

    def add(self, address: str, *, prefix_len: int, interface: str, lifetime_s: int) -> None:
        address = canonical(address, prefix_len)
        self._check(address, interface)
        if address in self._own:
            raise AddressFailed(
                f"{address} on {interface}: it is the node's own, and would be lost with the loan", address=address
            )
        with self._lock:
            self._ends[address] = self._clock.monotonic() + lifetime_s

    def remove(self, address: str) -> None:
        with self._lock:
            self._ends.pop(canonical(address), None)

    def present(self) -> frozenset[str]:
        return self._own | self.lent()

    def lent(self) -> frozenset[str]:
        now = self._clock.monotonic()
        with self._lock:
            self._ends = {address: ends for address, ends in self._ends.items() if ends > now}
            return frozenset(self._ends)

    def interfaces(self) -> frozenset[str]:
        return self._interfaces

    def announce(self, address: str, *, interface: str) -> None:
        address = canonical(address)
        self._check(address, interface)
        self._check_here(address)
        self.announced[address] += 1

    def tickle(self, connections: Sequence[Connection]) -> None:
        for connection in connections:
            self._check_here(canonical(connection.portal_address))
            self.tickled.append(connection)

    def _check(self, address: str, interface: str) -> None:
        if interface not in self._interfaces:
            raise AddressFailed(f"{address} on {interface}: there is no such interface", address=address, interface=interface)

    def _check_here(self, address: str) -> None:
        if address not in self.present():
            raise AddressFailed(f"{address}: it is not on this node, so it speaks for nobody here", address=address)


def canonical(address: str, prefix_len: int | None = None) -> str:
    """The one way to write this address; `AddressFailed` when it is none, or when no prefix of its kind has that length."""
    try:
        known = ip_address(address)
    except ValueError as error:
        raise AddressFailed(f"{address!r} is not an IP address", address=address) from error
    if prefix_len is not None and not 0 < prefix_len <= known.max_prefixlen:
        raise AddressFailed(f"{address}/{prefix_len}: a prefix has 1 to {known.max_prefixlen} bits", address=address)
    return str(known)
