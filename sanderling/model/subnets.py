"""A subnet that path addresses are allocated from, and the interface that carries them on every gateway."""

from collections.abc import Collection
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

    def lowest_free(self, taken: Collection[str]) -> str | None:
        """The lowest address of the pool that is none of these; None when there is none left."""
        first, last = ip_address(self.pool_first), ip_address(self.pool_last)
        family = AF_INET if first.version == 4 else AF_INET6
        numbers = {int.from_bytes(inet_pton(family, address)) for address in taken}  # much faster than making addresses of them
        number = next((number for number in range(int(first), int(last) + 1) if number not in numbers), None)
        return None if number is None else str(first + (number - int(first)))
