"""Who uses a disk, and how an initiator is set up so that it lives through what the cluster does."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse, Response

from api import serving
from api.auth import Allowed, Caller
from api.context import ContextOf
from sanderling.errors import Unavailable
from sanderling.model.disks import image_of
from sanderling.model.initiators import Bounds, System, settings_for
from sanderling.records import disks

router = APIRouter(tags=["initiators"])


@router.get("/v1/disks/{disk}/connections")
def connections(disk: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("initiator:read"))]) -> dict[str, Any]:
    """Every iSCSI connection to the disk by path, as its gateways saw it a second ago; `Unavailable` when Consul cannot say."""
    with context.records.read() as session:
        row = disks.find(session, disk)
        paths = list(row.paths)
    usage = serving.exports(context, disk_id=row.id)
    shown = [
        {
            "path": path.index,
            "address": path.address,
            "gateway": held.export.node,
            "initiator": one.initiator_iqn,
            "initiator_address": one.initiator_address,
            "initiator_port": one.initiator_port,
        }
        for path in paths
        if (held := usage.get(serving.export_of(row, path))) is not None and held.locked
        for one in held.export.connections
        if one.portal_address == path.address
    ]
    return {"disk": row.name, "connections": shown}


@router.get("/v1/disks/{disk}/usage")
def usage(disk: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("disk:usage"))]) -> dict[str, Any]:
    """What the disk's data takes up before replication, counted now: `Unavailable` where that takes too long to wait for."""
    with context.records.read() as session:
        row = disks.find(session, disk)
    try:
        used_bytes = context.images.ask(lambda images: images.used_bytes(image_of(row.id)))
    except Unavailable as problem:
        raise Unavailable(
            f"what disk {row.name} takes up cannot be counted in time: {problem.detail}", dependency="images"
        ) from problem
    return {"disk": row.name, "size_bytes": row.size_bytes, "used_bytes": used_bytes}


@router.get("/v1/disks/{disk}/initiator-settings", response_model=None, response_class=PlainTextResponse)
def initiator_settings(
    disk: str,
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("initiator:read"))],
    system: Annotated[System, Query(alias="for", description="The initiator's system")] = System.OPEN_ISCSI,
) -> Response:
    """What to type on an initiator so that it finds the disk and waits longer than the cluster's longest gap; plain text."""
    with context.records.read() as session:
        found = disks.describe(disks.find(session, disk))
    return PlainTextResponse(settings_for(system, found, Bounds.of(context.settings)))
