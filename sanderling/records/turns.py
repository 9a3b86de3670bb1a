"""Operations that wait for others on their resource: whether one may, and how its turn begins. In the caller's transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from sanderling import settings
from sanderling.errors import Busy, NotFound, Problem, TransitionRefused
from sanderling.model import plans
from sanderling.model.disks import DISKS, DiskState, restarts_exports
from sanderling.model.operations import Operation, OperationKind, Step
from sanderling.records import disks, operations
from sanderling.records.tables import DiskRow


def refuse_impossible(kind: OperationKind, state: DiskState, line: Sequence[Operation]) -> None:
    """`TransitionRefused` when it would not be possible after those in the line, given that each of them succeeds."""
    for operation in line:
        events = (
            plans.when_begun(operation.kind) if operation.is_queued else None,
            plans.when_done(operation.kind, operation.steps),
        )
        for event in events:
            if event is not None and DISKS.allows(state, event):
                state = DISKS.next(state, event)
    wanted = plans.when_begun(kind)
    if wanted is not None and not DISKS.allows(state, wanted):
        raise TransitionRefused(
            f"after {len(line)} operations that come before it the disk is {state}, and cannot {wanted} then",
            state=state.value,
            event=wanted.value,
            operation_id=line[0].id,
        )


def begin(session: Session, operation_id: str, *, own: settings.Conductor, now: datetime, actor: str) -> Operation | None:
    """Begin the operation if it is queued and comes next; what is not possible any more ends `failed`, with the reason.

    The operation, if it has ended so. One whose gateway another operation has yet to let go stays queued.
    """
    operation = operations.get(session, operation_id)
    line = operations.line(session, operation.resource_id) if operation.is_queued else []
    if not line or line[0].id != operation_id or not line[0].is_queued:
        return None
    try:
        with session.begin_nested():
            steps, params = _begun(session, operation, own, now)
            operations.begin(session, operation_id, steps=steps, params=params, now=now, actor=actor)
    except Busy:
        return None
    except Problem as problem:
        wire = problem.to_wire()
        fix = "it waited for its turn, and nothing of it has been done; look at what there is now, then ask anew"
        wire["context"] = {**wire["context"], "fix": fix}
        operations.refuse(session, operation_id, problem=wire, now=now, actor=actor)
        return operations.get(session, operation_id)
    return None


def _begun(
    session: Session, operation: Operation, own: settings.Conductor, now: datetime
) -> tuple[Sequence[Step], dict[str, Any]]:
    """Do to the disk what its request would have done at once; its steps and params as they are now."""
    kind, params, actor = operation.kind, operation.params, operation.requested_by
    if kind is OperationKind.MARK_DISK:
        _disk(session, operation)
    event = plans.when_begun(kind)
    if event is None:
        return operation.steps, params
    row = _disk(session, operation)
    params, was, started, grows = {**params, "was": row.state}, DiskState(row.state), row.started, False
    if kind is OperationKind.CHANGE_DISK:
        there = disks.changeable(row)
        wanted = {field: value for field, value in params[disks.CHANGE].items() if value != there[field]}
        grows, before = "size_bytes" in wanted, {field: there[field] for field in wanted}
        params |= {disks.CHANGE: wanted, disks.BEFORE: before, disks.RESTARTS: restarts_exports(wanted)}
        disks.change(session, row.id, wanted, now=now, actor=actor, operation_id=operation.id)
    elif kind is OperationKind.CREATE_SNAPSHOT:
        disks.refuse_snapshot(row)
    elif kind is OperationKind.DELETE_SNAPSHOT:
        DISKS.next(was, event)
    else:
        started = was is not DiskState.STOPPED
        disks.apply(session, row.id, event, now=now, actor=actor, operation_id=operation.id)
    return plans.steps_of(kind, own, started=started, grows=grows), params


def _disk(session: Session, operation: Operation) -> DiskRow:
    try:
        return disks.get(session, operation.resource_id)
    except NotFound:
        raise NotFound(f"disk {operation.resource_name} is gone: what came before deleted it, or was to make it") from None
