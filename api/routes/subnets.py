"""/v1/subnets: the networks that path addresses come from. These changes are small and done when they are answered."""

from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from pydantic import model_validator

from api import rules
from api.auth import Allowed, Caller
from api.context import ContextOf
from api.pages import PageOf
from api.rules import Address, Body, Cidr, Interface, Name
from sanderling.model.subnets import Subnet
from sanderling.records import subnets

router = APIRouter(tags=["subnets"])


class NewSubnet(Body):
    """Without a pool every host's address of the network may be handed out."""

    name: Name
    cidr: Cidr
    interface: Interface
    pool_first: Address | None = None
    pool_last: Address | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        subnet = self.subnet
        for field in ("pool_first", "pool_last"):
            address = getattr(subnet, field)
            if not subnet.holds(address) or not subnets.is_host(subnet, address):
                raise rules.refused(f"is not a host's address of {self.cidr}", "give one, or leave it out", field=field)
        if int(ip_address(subnet.pool_first)) > int(ip_address(subnet.pool_last)):
            raise rules.refused("comes after pool_last", "swap the two", field="pool_first")
        return self

    @property
    def subnet(self) -> Subnet:
        network = ip_network(self.cidr)
        first, last = network.network_address, network[-1]
        if network.num_addresses > 2:
            first, last = first + 1, last - 1 if network.version == 4 else last
        return Subnet(
            name=self.name,
            cidr=self.cidr,
            interface=self.interface,
            pool_first=self.pool_first or str(first),
            pool_last=self.pool_last or str(last),
        )


@router.post("/v1/subnets", status_code=201)
def create(body: NewSubnet, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("subnet:create"))]) -> JSONResponse:
    """Add a subnet, which must not overlap another."""
    subnet = body.subnet
    with context.records.begin() as session:
        subnets.insert(session, subnet, now=context.clock.wall(), actor=caller.name)
    context.changed()
    return JSONResponse(subnet.model_dump(), 201, headers={"Location": f"/v1/subnets/{subnet.name}"})


@router.get("/v1/subnets")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("subnet:read"))], page: PageOf) -> dict[str, Any]:
    """Subnets by name."""
    with context.records.read() as session:
        found = subnets.page(session, marker=page.marker, limit=page.limit)
    return page.of("subnets", [subnet.model_dump() for subnet in found], marker=found[-1].name if found else None)


@router.get("/v1/subnets/{subnet}")
def show(subnet: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("subnet:read"))]) -> dict[str, Any]:
    with context.records.read() as session:
        return subnets.get(session, subnet).model_dump()


@router.delete("/v1/subnets/{subnet}", status_code=204)
def delete(subnet: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("subnet:delete"))]) -> Response:
    """Remove a subnet that no path uses."""
    with context.records.begin() as session:
        subnets.remove(session, subnet, now=context.clock.wall(), actor=caller.name)
    context.changed()
    return Response(status_code=204)
