"""/v1/gateways: the live workers, read from coordination alone; 503 when that cannot be read."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api import serving
from api.auth import Allowed, Caller
from api.context import ContextOf
from api.pages import PageOf
from sanderling.errors import NotFound
from sanderling.model.exports import Gateway

router = APIRouter(tags=["gateways"])


@router.get("/v1/gateways")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("gateway:read"))], page: PageOf) -> dict[str, Any]:
    """Live gateways by name."""
    following = [g for g in serving.gateways(context) if page.marker is None or g.name > page.marker]
    found = sorted(following, key=lambda gateway: gateway.name)[: page.limit]
    usage = serving.exports(context)
    return page.of("gateways", [_show(gateway, usage) for gateway in found], marker=found[-1].name if found else None)


@router.get("/v1/gateways/{gateway}")
def show(gateway: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("gateway:read"))]) -> dict[str, Any]:
    found = next((g for g in serving.gateways(context) if g.name == gateway), None)
    if found is None:
        raise NotFound(f"no live gateway is called {gateway[:64]}; GET /v1/gateways lists those that live", gateway=gateway[:64])
    return _show(found, serving.exports(context))


def _show(gateway: Gateway, usage: serving.Serving) -> dict[str, Any]:
    """`exports` are those whose lock the gateway holds; `refused` those it failed to take, with the reason."""
    held = sorted(str(export) for export, held in usage.items() if held and held.locked and held.export.node == gateway.name)
    return {
        "name": gateway.name,
        "interfaces": list(gateway.interfaces),
        "withdrawing": gateway.withdrawing,
        "exports": held,
        "refused": gateway.refused,
    }
