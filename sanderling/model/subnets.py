"""A subnet that path addresses are allocated from, and the interface that carries them on every gateway."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pydantic import BaseModel, ConfigDict

Address = IPv4Address | IPv6Address


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

    def pool(self) -> Iterator[Address]:
        """The addresses that may be handed out, lowest first."""
        first, last = ip_address(self.pool_first), ip_address(self.pool_last)
        for offset in range(int(last) - int(first) + 1):
            yield first + offset
