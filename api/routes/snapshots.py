"""/v1/disks/{disk}/snapshots: take, list, go back to, and delete. A clone is a disk created with a `source`."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import AfterValidator
from sqlalchemy.orm import Session

from api import rules, snapshots
from api.auth import Allowed, Caller
from api.changes import Change, ChangeOf, Intent
from api.context import Context, ContextOf
from api.rules import Body
from sanderling import clones
from sanderling.errors import Conflict, InvalidInput
from sanderling.model import plans
from sanderling.model.disks import DISKS, SCHEDULED, DiskEvent, DiskState
from sanderling.model.operations import OperationKind
from sanderling.records import disks, operations
from sanderling.records.tables import DiskRow

router = APIRouter(tags=["snapshots"])

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


def _snapshot_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise rules.refused(
            "must be 1 to 63 letters, digits, '.', '_' and '-', and begin with a letter or digit",
            "choose such a name, e.g. before-upgrade",
        )
    if value.startswith(SCHEDULED):
        raise rules.refused(f"begins with {SCHEDULED!r}, as those do that a schedule takes and removes", "choose another name")
    return value


class NewSnapshot(Body):
    name: Annotated[str, AfterValidator(_snapshot_name)]


@router.post("/v1/disks/{disk}/snapshots", status_code=202)
def create(
    disk: str,
    body: NewSnapshot,
    context: ContextOf,
    caller: Annotated[Caller, Depends(Allowed("snapshot:create"))],
    change: ChangeOf,
) -> JSONResponse:
    """Keep what the disk holds now. What initiators still have in their caches is not in it."""
    repeated = change.admitted(caller, OperationKind.CREATE_SNAPSHOT)
    if repeated is not None:
        return repeated
    row = _row(context, disk)
    look = snapshots.look(context, row)
    if len(look.kept) >= snapshots.SNAPSHOTS_MAX:
        raise Conflict(f"disk {row.name} has {len(look.kept)} snapshots, the most there may be; delete some", field="name")

    def check(session: Session) -> None:
        """What was taken since the look would pass for this operation's own, and be removed when that is cancelled."""
        if body.name in snapshots.since(session, row, look).union(one.name for one in look.kept):
            raise Conflict(f"disk {row.name} has a snapshot {body.name} already; choose another name", field="name")

    allowed = disks.refuse_snapshot
    return _submit(OperationKind.CREATE_SNAPSHOT, row, body.name, context, caller, change, check=check, allowed=allowed)


@router.get("/v1/disks/{disk}/snapshots")
def index(disk: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("snapshot:read"))]) -> dict[str, Any]:
    """The disk's snapshots, oldest first."""
    return {"snapshots": [snapshots.show(one) for one in snapshots.of(context, _row(context, disk))]}


@router.post("/v1/disks/{disk}/snapshots/{snapshot}/rollback", status_code=202)
def roll_back(
    disk: str,
    snapshot: str,
    context: ContextOf,
    caller: Annotated[Caller, Depends(Allowed("snapshot:rollback"))],
    change: ChangeOf,
    confirm: Annotated[str | None, Query(max_length=255, description="The disk's name: what it holds now is lost")] = None,
) -> JSONResponse:
    """Make a stopped disk hold what it did when the snapshot was taken."""
    repeated = change.admitted(caller, OperationKind.ROLL_BACK_DISK)
    if repeated is not None:
        return repeated
    row = _row(context, disk)
    found = snapshots.find(context, row, snapshot)
    if confirm != row.name and not change.dry_run:
        raise InvalidInput.of(
            "confirm", "must be the disk's name: all that was written since is lost", f"send confirm={row.name}, if you mean it"
        )

    def allowed(now: DiskRow) -> None:
        if found.size_bytes != now.size_bytes:
            raise Conflict(
                f"snapshot {found.name} has {found.size_bytes} bytes and disk {now.name} has {now.size_bytes} by now; clone the "
                "snapshot to a new disk instead",
                field="snapshot",
            )

    begins = DiskEvent.ROLL_BACK
    return _submit(OperationKind.ROLL_BACK_DISK, row, found.name, context, caller, change, begins=begins, allowed=allowed)


@router.delete("/v1/disks/{disk}/snapshots/{snapshot}", status_code=202)
def delete(
    disk: str,
    snapshot: str,
    context: ContextOf,
    caller: Annotated[Caller, Depends(Allowed("snapshot:delete"))],
    change: ChangeOf,
) -> JSONResponse:
    """Forget what the snapshot kept."""
    repeated = change.admitted(caller, OperationKind.DELETE_SNAPSHOT)
    if repeated is not None:
        return repeated
    row = _row(context, disk)
    found = snapshots.find(context, row, snapshot)
    with context.records.read() as session:
        clones.refuse_cloned(session, row, found)

    def allowed(row: DiskRow) -> None:
        DISKS.next(DiskState(row.state), DiskEvent.SNAPSHOT)

    return _submit(OperationKind.DELETE_SNAPSHOT, row, found.name, context, caller, change, allowed=allowed)


def _row(context: Context, disk: str) -> DiskRow:
    with context.records.read() as session:
        return disks.find(session, disk)


def _submit(
    kind: OperationKind,
    row: DiskRow,
    snapshot: str,
    context: Context,
    caller: Caller,
    change: Change,
    *,
    begins: DiskEvent | None = None,
    check: Callable[[Session], None] = lambda _: None,
    allowed: Callable[[DiskRow], None] = lambda _: None,
) -> JSONResponse:
    """`check` is made within the transaction in any case, `allowed` where the disk is not busy."""

    def prepare(session: Session, now: datetime) -> Intent:  # noqa: ARG001
        check(session)
        found = disks.get(session, row.id)
        change.check_match(session, found)
        line = operations.line(session, found.id)
        if not line:  # else it is busy, or checked when its turn comes
            allowed(found)
        plan = plans.plan(kind, context.settings.conductor, disk_name=found.name)
        may_wait = begins is None and all(other.params.get("snapshot") != snapshot for other in line)
        params = {"snapshot": snapshot}
        return Intent(disks.describe(found), DiskState(found.state), plan, begins=begins, params=params, may_wait=may_wait)

    return change.carry_out(caller, prepare)
