"""127.0.0.0/8 on one host: every address there answers at all times, so lending is bookkeeping and there is nobody to tell.

What was lent is forgotten with the process: nothing on the host remembers it, and there is nothing to take off.
"""

from ipaddress import IPv4Network, ip_address

from iscsi_worker.addresses.memory import Memory, canonical
from sanderling.clock import Clock
from sanderling.errors import AddressFailed

NETWORK = IPv4Network("127.0.0.0/8")


class Loopback(Memory):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, interfaces=("lo",), own=("127.0.0.1",))

    def add(self, address: str, *, prefix_len: int, interface: str, lifetime_s: int) -> None:
        if ip_address(canonical(address)) not in NETWORK:
            raise AddressFailed(f"{address} on {interface}: the loopback backend carries {NETWORK} only", address=address)
        super().add(address, prefix_len=prefix_len, interface=interface, lifetime_s=lifetime_s)
