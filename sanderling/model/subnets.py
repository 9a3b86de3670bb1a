"""A subnet that path addresses are allocated from, and the interface that carries them on every gateway."""

from collections.abc import Collection, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_pton

from pydantic import BaseModel, ConfigDict


class Subnet(BaseModel):
    """`pool_first` to `pool_last`, both included, are the addresses Sanderling may hand out."""

    model_config = ConfigDict(frozen=True)

    name: str
    cidr: str
    interface: str
    pool_first: str
    pool_last: str

    @property
    def network(self) -> IPv4Network | IPv6Network:
        return ip_network(self.cidr)

    def holds(self, address: str) -> bool:
        """Whether an initiator on this subnet could reach the address directly."""
        return ip_address(address) in self.network

    def free(self, taken: Collection[str] = (), *, first: str | None = None) -> Iterator[str]:
        """The addresses of the pool that are none of these, from `first` on, and then those before it; lowest first without."""
        begin, end = ip_address(self.pool_first), ip_address(self.pool_last)
        size, start = int(end) - int(begin) + 1, int(ip_address(first)) - int(begin) if first else 0
        family = AF_INET if begin.version == 4 else AF_INET6
        used = {int.from_bytes(inet_pton(family, address)) - int(begin) for address in taken}  # faster than making addresses
        offsets = ((start + number) % size for number in range(size))
        return (str(begin + offset) for offset in offsets if offset not in used)
