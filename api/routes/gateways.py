"""/v1/gateways: the live workers as coordination has them (else 503), and taking one out of use for a while."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api import drains, serving
from api.auth import Allowed, Caller
from api.changes import ChangeOf
from api.context import Context, ContextOf
from api.pages import PageOf
from api.rules import Body
from api.situations import Seen
from sanderling.errors import InvalidInput, NotFound
from sanderling.model.disks import Access
from sanderling.model.exports import ExportId, Gateway
from sanderling.model.operations import OperationKind
from sanderling.records import gaps, marks, operations
from sanderling.records.assignments import drain_of, undrain_of
from sanderling.records.tables import DiskRow, PathRow

router = APIRouter(tags=["gateways"])
Draining = Annotated[Caller, Depends(Allowed("gateway:drain"))]


class Drain(Body):
    """`confirm`, the gateway's name, is needed when the drain would leave disks without a gateway, now or after one more loss."""

    confirm: Annotated[str | None, Field(max_length=255)] = None


@router.get("/v1/gateways")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("gateway:read"))], page: PageOf) -> dict[str, Any]:
    """Gateways by name: those that live, and those that are drained, live or not."""
    shown = _Shown(context)
    names = [name for name in sorted(shown.gateways) if page.marker is None or name > page.marker][: page.limit]
    return page.of("gateways", [shown.one(name) for name in names], marker=names[-1] if names else None)


@router.get("/v1/gateways/{gateway}")
def show(gateway: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("gateway:read"))]) -> dict[str, Any]:
    shown = _Shown(context)
    if gateway not in shown.gateways:
        raise NotFound(f"no live gateway is called {gateway[:64]}; GET /v1/gateways lists those that live", gateway=gateway[:64])
    return shown.one(gateway)


@router.post("/v1/gateways/{gateway}/drain", status_code=202)
def drain(gateway: str, context: ContextOf, caller: Draining, change: ChangeOf, body: Drain | None = None) -> JSONResponse:
    """Move everything off the gateway, and give it nothing until it is undrained. It may be offline.

    409 while the gateway is being undrained. While anything else moves paths it waits in line with `confirm`; 409 without.
    """
    confirm = body.confirm if body else None
    if confirm is not None and confirm != gateway:
        raise InvalidInput.of("confirm", "is not the name of the gateway", f"send {gateway[:64]}, if you mean it")

    def decide(seen: Seen) -> JSONResponse:
        _refuse_unknown(seen, gateway)
        effect = drains.effect(seen.layout, gateway)
        if change.dry_run:
            with context.records.read() as session:
                measured = gaps.recent(session, limit=context.settings.api.gaps_max)
            return JSONResponse(drains.show(seen, effect, measured), 200)
        drains.refuse_unless(confirm is not None, seen, effect)
        return change.assign(caller, drain_of(gateway), may_wait=confirm is not None)

    return change.decided(caller, OperationKind.DRAIN_GATEWAY, decide)


@router.post("/v1/gateways/{gateway}/undrain", status_code=202)
def undrain(gateway: str, context: ContextOf, caller: Draining, change: ChangeOf) -> JSONResponse:
    """Let the gateway be given exports again. They come back by balancing, or by an assignment. 409 while it is being drained.

    With ?dry_run=true show whether there is anything to do.
    """

    def decide(seen: Seen) -> JSONResponse:
        _refuse_unknown(seen, gateway)
        with context.records.read() as session:
            operations.refuse_second(session, gateway=gateway)
        is_drained = gateway in seen.drained
        if change.dry_run or not is_drained:
            comes = "would be given exports again, by balancing or by an assignment"
            note = f"{gateway} {comes}" if is_drained else f"nothing to do: {gateway} is not drained"
            return JSONResponse({"dry_run": change.dry_run, "gateway": gateway, "drained": is_drained, "notes": [note]}, 200)
        return change.assign(caller, undrain_of(gateway), may_wait=False)

    return change.decided(caller, OperationKind.UNDRAIN_GATEWAY, decide)


def _refuse_unknown(seen: Seen, gateway: str) -> None:
    if gateway not in seen.known:
        raise NotFound(f"no gateway is called {gateway[:64]}; GET /v1/gateways lists those that live", gateway=gateway[:64])


class _Shown:
    """Gateways as one look at coordination and the records tells of them."""

    def __init__(self, context: Context) -> None:
        live = {gateway.name: gateway for gateway in serving.gateways(context)}
        usage = serving.exports(context)
        with context.records.read() as session:
            self._drained = marks.read(session).drained
            self._paths = _paths_of_exclusive(session)
        self.gateways: Mapping[str, Gateway | None] = {**dict.fromkeys(self._drained), **live}
        self._held: dict[str, list[ExportId]] = {}
        for export, held in usage.items():
            if held and held.locked:
                self._held.setdefault(held.export.node, []).append(export)

    def one(self, name: str) -> dict[str, Any]:
        """`exports` are those whose lock it holds; `refused` those it failed to take, with the reason; `unreachable` the peers
        it cannot reach on the network of the paths, by interface; `claimed` the addresses it serves that another machine answers
        for as well, each with that one's hardware address; `image_store` whether that answers it, and whether it does so for
        others alone or has done for it only since a moment ago."""
        gateway = self.gateways[name]
        said, held = gateway or Gateway(name=name), self._held.get(name, [])
        paths = sum(self._paths.get(export.disk_id, 1) if export.index == 0 else 1 for export in held)
        return {
            "name": name,
            "live": gateway is not None,
            "drained": name in self._drained,
            "withdrawing": said.withdrawing,
            "counts": {"exports": len(held), "paths": paths},
            "interfaces": list(said.interfaces),
            "unreachable": {interface: list(peers) for interface, peers in said.front.unreachable.items()},
            "cut_off": list(said.front.cut_off),
            "claimed": said.front.claimed,
            "image_store": said.store.model_dump(),
            "exports": sorted(map(str, held)),
            "refused": said.refused,
        }


def _paths_of_exclusive(session: Session) -> dict[str, int]:
    """How many paths the one export of each exclusive disk serves."""
    query = select(PathRow.disk_id, func.count().label("paths")).join(DiskRow).where(DiskRow.access == Access.EXCLUSIVE.value)
    return {row.disk_id: row.paths for row in session.execute(query.group_by(PathRow.disk_id))}
