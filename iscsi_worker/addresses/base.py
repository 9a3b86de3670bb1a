"""The seam to the node's addresses. A path's address is lent, not given: the kernel drops it when it is not renewed.

tests/contract/test_addresses.py is the definition; it runs on every backend. Failures are `AddressFailed`.
"""

from collections.abc import Sequence
from typing import Protocol

from sanderling.model.exports import Connection


class Addresses(Protocol):
    def add(self, address: str, *, prefix_len: int, interface: str, lifetime_s: int) -> None:
        """Put the address on the interface for `lifetime_s`, or renew it. Usable at once (no duplicate detection wait)."""
        ...

    def remove(self, address: str) -> None:
        """Take it off. One that is not there is no error; the subnet's own route and other addresses stay."""
        ...

    def present(self) -> frozenset[str]:
        """The addresses of this node now, with a lifetime or without."""
        ...

    def lent(self) -> frozenset[str]:
        """Those that carry a lifetime, so were put there by this seam."""
        ...

    def interfaces(self) -> frozenset[str]:
        """The names of the interfaces that could carry an address to somebody: up, and with a carrier."""
        ...

    def announce(self, address: str, *, interface: str) -> None:
        """Tell the neighbours where it is now (gratuitous ARP request and reply, or unsolicited NA), once."""
        ...

    def tickle(self, connections: Sequence[Connection]) -> None:
        """Send each initiator an ACK from the path's address, so that its own answer draws a reset and it reconnects now."""
        ...
