"""/v1/disks: create, list, show, change, start, stop, delete, recover."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from api import rules, serving, snapshots
from api.auth import Allowed, Caller
from api.changes import ChangeOf, Intent, etag
from api.context import Context, ContextOf
from api.disks import DiskChange, NewChap, Source
from api.disks import show as show_disk
from api.pages import PageOf
from api.rules import Address, Body, InitiatorName, Iqn, Name, SizeBytes
from sanderling import clones
from sanderling.errors import Conflict, InUse, InvalidInput
from sanderling.images.base import Capacity, Images
from sanderling.model import plans
from sanderling.model.disks import PATHS_MAX, Access, Chap, Disk, DiskEvent, DiskState, Path, restarts_exports
from sanderling.model.operations import OperationKind
from sanderling.records import disks, events, marks, operations, subnets
from sanderling.records.tables import DiskRow
from sanderling.settings import Settings

router = APIRouter(tags=["disks"])

NOBODY = "no initiator may log in: give initiators, or allow_any to let every initiator in"


class NewDisk(Body):
    """`paths` addresses are taken from `subnets` (all of them when none is named), or exactly `addresses` are used.

    `size_bytes` may be left out with a `source`, whose snapshot's size it is then. Where neither `initiators` nor `allow_any`
    is given, the site's default initiators may log in ([api] default_initiators).
    """

    name: Name
    size_bytes: SizeBytes | None = None
    source: Source | None = None
    paths: Annotated[int | None, Field(ge=1, le=PATHS_MAX)] = None
    subnets: Annotated[list[Name] | None, Field(min_length=1, max_length=PATHS_MAX)] = None
    addresses: Annotated[list[Address] | None, Field(min_length=1, max_length=PATHS_MAX)] = None
    access: Literal["exclusive", "shared"] = "exclusive"
    initiators: Annotated[list[InitiatorName] | None, Field(max_length=rules.INITIATORS_MAX)] = None
    allow_any: bool = False
    chap: NewChap | None = None
    iqn: Iqn | None = None
    started: bool = True

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.addresses is not None and self.paths not in {None, len(self.addresses)}:
            raise rules.refused(
                "differs from the number of addresses", "leave it out, or give an address for each path", field="paths"
            )
        if self.initiators and self.allow_any:
            raise rules.refused("contradicts the list of initiators", "give one of the two", field="allow_any")
        if self.size_bytes is None and self.source is None:
            raise rules.refused("is missing", "give the size in bytes", field="size_bytes")
        if self.initiators and len(set(self.initiators)) < len(self.initiators):
            raise rules.refused("names an initiator twice", "name each once", field="initiators")
        return self


@router.post("/v1/disks", status_code=202)
def create(
    body: NewDisk, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("disk:create"))], change: ChangeOf
) -> JSONResponse:
    """Create a disk, and start serving it unless `started` is false."""
    repeated = change.admitted(caller, OperationKind.CREATE_DISK)
    if repeated is not None:
        return repeated
    source, size_bytes = _source(context, body)
    _refuse_larger_than_pool(context, size_bytes)
    plan = plans.plan(OperationKind.CREATE_DISK, context.settings.conductor, disk_name=body.name, start=body.started)
    chap = body.chap.sealed(context.keyring) if body.chap else None

    def prepare(session: Session, now: datetime) -> Intent:
        if source:
            clones.refuse_deletion(session, source["disk_id"])
        disk = _described(body, _paths(session, body), size_bytes=size_bytes, chap=chap, settings=context.settings)
        disk = disks.insert(session, disk, now=now, state=DiskState.CREATING, other_iqn=body.iqn is None)
        events.append(session, "disk.creating", at=now, actor=caller.name, resource_id=disk.id, data={"name": disk.name})
        notes = () if disk.initiators or disk.allow_any else (NOBODY,)
        params = {disks.SOURCE: source} if source else {}
        return Intent(disk, DiskState.CREATING, plan, notes=notes, params=params)

    return change.carry_out(caller, prepare)


@router.get("/v1/disks")
def index(
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("disk:read"))],
    page: PageOf,
    name: Annotated[
        str | None, Query(max_length=63, description="Only disks whose name contains this, in upper or lower case")
    ] = None,
    state: DiskState | None = None,
    access: Access | None = None,
) -> dict[str, Any]:
    """Disks by name."""
    with context.records.read() as session:
        rows = disks.page(session, marker=page.marker, limit=page.limit, name_contains=name, state=state, access=access)
        return page.of("disks", [_show(row) for row in rows], marker=rows[-1].name if rows else None)


@router.get("/v1/disks/{disk}")
def show(disk: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("disk:read"))]) -> JSONResponse:
    """One disk by id or name, with who serves its paths now and where it is to be."""
    with context.records.read() as session:
        row = disks.find(session, disk)
        marked, version = marks.of(session, row.id), etag(session, row)
    usage = serving.exports_if_known(context, disk_id=row.id)
    shown = _show(row) | {"paths": [serving.show_path(row, path, usage) for path in row.paths]}
    shown["connected"] = None if usage is None else serving.connected(usage)
    shown["marks"] = marked
    return JSONResponse(shown, headers={"ETag": version})


@router.patch("/v1/disks/{disk}", status_code=202)
def change(
    disk: str,
    body: DiskChange,
    context: ContextOf,
    caller: Annotated[Caller, Depends(Allowed("disk:change"))],
    change: ChangeOf,
) -> JSONResponse:
    """Rename or grow the disk, or say who may log in and what they must prove. All of it, or nothing.

    Where initiators meet something else than before, a started disk's exports are started again, at once and where they are.
    """
    repeated = change.admitted(caller, OperationKind.CHANGE_DISK)
    if repeated is not None:
        return repeated
    given = body.given(context.keyring)
    with context.records.read() as session:
        row = disks.find(session, disk)
        change.check_match(session, row)
        if not _differing(given, row) and operations.open_on(session, row.id) is None:
            shown = {"dry_run": change.dry_run, "disk": _show(row), "notes": ["nothing to do: the disk is so already"]}
            return JSONResponse(shown, 200)
    if given.get("size_bytes", 0) > row.size_bytes:
        _refuse_larger_than_pool(context, given["size_bytes"])

    def prepare(session: Session, now: datetime) -> Intent:  # noqa: ARG001
        found = disks.get(session, row.id)
        change.check_match(session, found)
        waits = bool(operations.line(session, found.id))
        wanted = given if waits else _differing(given, found)  # what differs from what comes before it shows when that is done
        if not wanted:
            raise Conflict(f"disk {found.name} was changed meanwhile, and is what you ask for; look, and ask again if need be")
        restarts = restarts_exports(wanted)
        plan = plans.plan(
            OperationKind.CHANGE_DISK,
            context.settings.conductor,
            disk_name=found.name,
            started=found.started,
            grows="size_bytes" in wanted,
            restarts=restarts,
        )
        before = {field: value for field, value in disks.changeable(found).items() if field in wanted}
        after = disks.changeable(found) | wanted
        notes = () if after["initiators"] or after["allow_any"] else (NOBODY,)
        params = {disks.CHANGE: wanted, disks.BEFORE: before, disks.RESTARTS: restarts}
        return Intent(disks.describe(found), DiskState(found.state), plan, notes=notes, params=params, change=wanted)

    return change.carry_out(caller, prepare)


@router.post("/v1/disks/{disk}/start", status_code=202)
def start(
    disk: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("disk:start"))], change: ChangeOf
) -> JSONResponse:
    """Serve the disk's paths."""
    return _turn(disk, OperationKind.START_DISK, DiskEvent.START, context, caller, change)


@router.post("/v1/disks/{disk}/stop", status_code=202)
def stop(
    disk: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("disk:stop"))], change: ChangeOf
) -> JSONResponse:
    """Serve the disk's paths no longer; its sessions end."""
    return _turn(disk, OperationKind.STOP_DISK, DiskEvent.STOP, context, caller, change)


@router.delete("/v1/disks/{disk}", status_code=202)
def delete(
    disk: str,
    context: ContextOf,
    caller: Annotated[Caller, Depends(Allowed("disk:delete"))],
    change: ChangeOf,
    force: Annotated[bool, Query(description="Also while it is started or connected")] = False,
    confirm: Annotated[str | None, Query(max_length=255, description="With force: the disk's name")] = None,
) -> JSONResponse:
    """Remove the disk with its data."""
    repeated = change.admitted(caller, OperationKind.DELETE_DISK)
    if repeated is not None:
        return repeated
    usage: serving.Serving = {}
    with context.records.read() as session:
        found = disks.find(session, disk)
    if not force:
        usage = serving.exports(context, disk_id=found.id)
    look = snapshots.look(context, found)

    def prepare(session: Session, now: datetime) -> Intent:  # noqa: ARG001
        row = disks.get(session, found.id)
        change.check_match(session, row)
        was = DiskState(row.state)
        if force or operations.open_on(session, row.id) is None:  # else it is busy, which is the better answer
            _refuse_careless(row, usage, force=force, confirm=confirm)
            snapshots.refuse_kept(session, row, look, force=force)
        plan = plans.plan(
            OperationKind.DELETE_DISK, context.settings.conductor, disk_name=row.name, started=was is not DiskState.STOPPED
        )
        return Intent(disks.describe(row), was, plan, begins=DiskEvent.DELETE, may_wait=force)

    return change.carry_out(caller, prepare)


def _turn(disk: str, kind: OperationKind, event: DiskEvent, context: Context, caller: Caller, change: ChangeOf) -> JSONResponse:
    repeated = change.admitted(caller, kind)
    if repeated is not None:
        return repeated

    def prepare(session: Session, now: datetime) -> Intent:  # noqa: ARG001
        row = disks.find(session, disk)
        change.check_match(session, row)
        plan = plans.plan(kind, context.settings.conductor, disk_name=row.name)
        return Intent(disks.describe(row), DiskState(row.state), plan, begins=event)

    return change.carry_out(caller, prepare)


def _show(row: DiskRow) -> dict[str, Any]:
    return show_disk(disks.describe(row)) | {
        "state": row.state,
        "created_at": _moment(row.created_at),
        "changed_at": _moment(row.changed_at),
    }


def _moment(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _paths(session: Session, body: NewDisk) -> tuple[Path, ...]:
    if body.addresses is not None:
        return subnets.place(session, body.addresses, names=body.subnets)
    return subnets.allocate(session, body.paths or 1, names=body.subnets)


def _described(body: NewDisk, paths: tuple[Path, ...], *, size_bytes: int, chap: Chap | None, settings: Settings) -> Disk:
    given = body.initiators
    if given is None and not body.allow_any:
        given = [name.strip() for name in settings.api.default_initiators.split(",") if name.strip()]
    return Disk(
        id=str(uuid.uuid4()),
        name=body.name,
        iqn=body.iqn or f"{settings.sanderling.iqn_base}:{body.name}",
        size_bytes=size_bytes,
        access=Access(body.access),
        paths=paths,
        initiators=tuple(given or ()),
        allow_any=body.allow_any,
        chap=chap,
    )


def _source(context: Context, body: NewDisk) -> tuple[dict[str, str] | None, int]:
    """The disk's id and the snapshot that the new disk begins as, if any, and the size of the new one."""
    if body.source is None:
        assert body.size_bytes is not None, "validated"
        return None, body.size_bytes
    with context.records.read() as session:
        row = disks.find(session, body.source.disk)
    snapshot = snapshots.find(context, row, body.source.snapshot, field="source.snapshot")
    size_bytes = body.size_bytes or snapshot.size_bytes
    if size_bytes < snapshot.size_bytes:
        raise InvalidInput.of(
            "size_bytes",
            f"is less than the {snapshot.size_bytes} bytes of snapshot {snapshot.name}",
            "leave it out, or give that size or more",
        )
    return {"disk_id": row.id, "snapshot": snapshot.name}, size_bytes


def _differing(given: Mapping[str, Any], row: DiskRow) -> dict[str, Any]:
    there = disks.changeable(row)
    return {field: value for field, value in given.items() if value != there[field]}


def _capacity(images: Images) -> Capacity | None:
    return images.capacity()


def _refuse_larger_than_pool(context: Context, size_bytes: int) -> None:
    capacity = context.images.lately(_capacity, within_s=context.settings.api.capacity_age_s)
    if capacity is not None and size_bytes > capacity.total_bytes:
        capacity = context.images.lately(_capacity, within_s=0.0)  # it may have grown
    if capacity is not None and size_bytes > capacity.total_bytes:
        raise InvalidInput.of(
            "size_bytes", f"is larger than the pool, which holds {capacity.total_bytes} bytes", "give a smaller size"
        )


def _is_at_rest(row: DiskRow, usage: serving.Serving) -> bool:
    """Nothing may be serving the disk: it was stopped, or it failed and no gateway holds, or may hold, an export of it."""
    if row.state == DiskState.FAILED.value:
        return all(held is not None and not held.locked for held in usage.values())
    return row.state == DiskState.STOPPED.value


def _refuse_careless(row: DiskRow, usage: serving.Serving, *, force: bool, confirm: str | None) -> None:
    if force and confirm != row.name:
        raise InvalidInput.of(
            "confirm", "must be the disk's name when force is given", f"send confirm={row.name}, if you mean it"
        )
    if force:
        return
    if row.started or not _is_at_rest(row, usage):
        raise InUse(
            f"disk {row.name} is {row.state}; stop it first, or send force=true&confirm={row.name}",
            state=row.state,
            disk=row.name,
        )
    initiators = serving.connected(usage)
    if initiators:
        raise InUse(
            f"disk {row.name} has connections of {', '.join(initiators)}; log them out, or send force=true&confirm={row.name}",
            initiators=initiators,
        )
