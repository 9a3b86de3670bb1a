"""A subnet that path addresses are allocated from, and the interface that carries them on every gateway."""

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

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

    def pool(self, first: str | None = None) -> Iterator[str]:
        """Every address of the pool, from `first` on, and then those before it; lowest first without."""
        begin, end = ip_address(self.pool_first), ip_address(self.pool_last)
        size, start = int(end) - int(begin) + 1, int(ip_address(first)) - int(begin) if first else 0
        return (str(begin + (start + number) % size) for number in range(size))
