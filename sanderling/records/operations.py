"""Operations and their steps in the records: submitted once, claimed by compare-and-set, driven step by step, always ended.

Every function works in the caller's transaction, moves states only by the tables of `sanderling.model.operations`, and writes
the event of its change with the change. A write of a claimed operation repeats the compare on `claim_epoch`: `ClaimLost` means
that another conductor has it, and that nothing was written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import ColumnElement, CursorResult, and_, bindparam, exists, func, insert, literal, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from sanderling.errors import Busy, ClaimLost, InvalidInput, NotFound, TooManyRequests, TransitionRefused
from sanderling.model import plans
from sanderling.model.disks import DiskEvent, DiskState
from sanderling.model.operations import (
    OPERATIONS,
    STEPS,
    Operation,
    OperationEvent,
    OperationKind,
    OperationState,
    Step,
    StepEvent,
    StepState,
)
from sanderling.records import disks, events, moves
from sanderling.records.statements import run
from sanderling.records.tables import OperationRow, StepRow

_ENDING_S: Final = 5  # in which one of some operations may have ended; nobody can tell

_INSERT: Final = insert(OperationRow)
_INSERT_STEPS: Final = insert(StepRow)
_OPEN_ON: Final = select(OperationRow.id).where(
    OperationRow.resource_id == bindparam("resource_id"), OperationRow.ended_at.is_(None)
)
_OPEN_OF_KIND: Final = select(literal(1)).where(OperationRow.ended_at.is_(None), OperationRow.kind == bindparam("kind"))
_UNCAST: Final = (
    select(OperationRow.id, OperationRow.traceparent)
    .where(OperationRow.cast_at.is_(None))
    .order_by(OperationRow.created_at)
    .limit(bindparam("limit"))
)
_GLANCE: Final = select(OperationRow.kind, OperationRow.state).where(OperationRow.id == bindparam("id"))
_COUNT_OPEN: Final = select(func.count()).select_from(_OPEN_OF_KIND.limit(bindparam("most")).subquery())


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An operation whose wake-up is not noted as cast."""

    id: str
    traceparent: str | None


def submit(  # noqa: PLR0913  each is a column, given by its name
    session: Session,
    *,
    kind: OperationKind,
    resource_id: str,
    resource_name: str,
    params: Mapping[str, Any],
    steps: Sequence[Step],
    requested_by: str,
    now: datetime,
    traceparent: str | None = None,
    queue_max: int = 0,
    check: Callable[[Sequence[Operation]], None] = lambda _line: None,
) -> Operation:
    """Write a new operation and its first event; `Busy`, naming the open one, when the resource has one that has not ended.

    With `queue_max` it is queued behind that one instead, as long as no more than so many wait there; else `TooManyRequests`.
    Before that `check` may refuse it for the line that it would wait in, if there is one.
    One that is queued is nothing but a wish until `begin`: whoever asks for it changes nothing else.

    `params["was"]`, the state of the disk before this request, is what a cancel restores when nothing has begun. Whatever the
    resource, there is one open operation with the same `params["gateway"]` too: that is why no drain and undrain overlap.
    """
    gateway = params.get("gateway")
    before = _line(session, resource_id) if queue_max else []
    if not before and (gateway is not None or not queue_max):  # else the line has just been found empty
        refuse_second(session, resource_id, gateway=gateway)
    if before:
        check([_model(row) for row in before])
    if len(before) > queue_max:
        raise TooManyRequests(
            f"{queue_max} operations on {resource_name} wait for {before[0].id} ({before[0].kind}) already; ask again later",
            retry_after_s=_ENDING_S,
            operation_id=before[0].id,
        )
    operation = Operation(
        id=str(uuid4()),
        kind=kind,
        resource_id=resource_id,
        resource_name=resource_name,
        state=OperationState.QUEUED if before else OperationState.PENDING,
        turn=before[-1].turn + 1 if before else 0,
        params=dict(params),
        steps=tuple(steps),
        requested_by=requested_by,
        traceparent=traceparent,
        created_at=now,
        cast_at=now if before else None,  # who ends the one before looks for the next by itself
    )
    try:
        run(session, _INSERT, operation.model_dump(exclude={"steps", "problem"}) | {"gateway": gateway})
    except IntegrityError as error:  # the partial unique indexes have the last word
        raise Busy(f"another operation on {resource_name} has not ended; wait for it or cancel it") from error
    if operation.steps:
        rows = enumerate(step.model_dump(exclude={"problem"}) for step in operation.steps)
        run(session, _INSERT_STEPS, [{"operation_id": operation.id, "position": position, **row} for position, row in rows])
    _tell(session, operation, now=now, actor=requested_by, data={"kind": kind, "resource_name": resource_name})
    return operation


def _line(session: Session, resource_id: str) -> list[OperationRow]:
    """The operations on the resource that have not ended, in their order; none can end or join until the transaction does."""
    if open_on(session, resource_id) is None:
        return []
    here = OperationRow.resource_id == resource_id, OperationRow.ended_at.is_(None)
    return list(session.scalars(select(OperationRow).where(*here).order_by(OperationRow.turn)))


def line(session: Session, resource_id: str) -> list[Operation]:
    """The operations on the resource that have not ended, in their order: the one at work, then those that are queued."""
    return [_model(row) for row in _line(session, resource_id)]


def refuse_second(session: Session, resource_id: str | None = None, *, gateway: str | None = None, at_work: bool = False) -> None:
    """`Busy`, naming it, when an operation has not ended that is on this resource, or drains or undrains this gateway; with
    `at_work` those that are queued do not count.
    """
    asked = ((OperationRow.resource_id, resource_id), (OperationRow.gateway, gateway))
    taken = or_(*(column == value for column, value in asked if value is not None))
    query = select(OperationRow).where(taken, OperationRow.ended_at.is_(None)).order_by(OperationRow.turn).limit(1)
    if at_work:
        query = query.where(OperationRow.state != OperationState.QUEUED)
    other = session.scalar(query)
    if other is not None:
        raise Busy(
            f"operation {other.id} ({other.kind}) on {other.resource_name} has not ended; wait for it or cancel it",
            operation_id=other.id,
        )


def open_on(session: Session, resource_id: str) -> str | None:
    """The id of the resource's operation that has not ended, if there is one."""
    return run(session, _OPEN_ON, {"resource_id": resource_id}).scalar()


def cloning(session: Session, disk_id: str) -> list[Operation]:
    """Those that have not ended and make a disk as a clone of one of this disk's snapshots."""
    source = OperationRow.params[disks.SOURCE]["disk_id"].as_string()
    is_open = OperationRow.ended_at.is_(None), OperationRow.kind == OperationKind.CREATE_DISK
    return [_model(row) for row in session.scalars(select(OperationRow).where(*is_open, source == disk_id))]


def is_deleted(session: Session, disk_id: str) -> bool:
    """Whether a deletion of that disk has succeeded: its id never comes back."""
    found = select(OperationRow.id).where(
        OperationRow.resource_id == disk_id,
        OperationRow.kind == OperationKind.DELETE_DISK,
        OperationRow.state == OperationState.SUCCEEDED,
    )
    return session.scalar(found.limit(1)) is not None


def open_resources(session: Session) -> frozenset[str]:
    """The ids of all resources with an operation that has not ended."""
    return frozenset(session.scalars(select(OperationRow.resource_id).where(OperationRow.ended_at.is_(None))))


def count_open(session: Session, kind: OperationKind, *, most: int) -> int:
    """How many operations of the kind have not ended, counted up to `most`."""
    return int(run(session, _COUNT_OPEN, {"kind": kind, "most": most}).scalar_one())


def get(session: Session, operation_id: str) -> Operation:
    return _model(_row(session, operation_id))


def glance(session: Session, operation_id: str) -> tuple[OperationKind, OperationState]:
    """What kind it is and how far: a fraction of the time that the whole of it takes."""
    found = run(session, _GLANCE, {"id": operation_id}).one_or_none()
    if found is None:
        raise _missing(operation_id)
    return OperationKind(found.kind), OperationState(found.state)


def page(
    session: Session,
    *,
    marker: str | None,
    limit: int,
    resource_id: str | None = None,
    state: OperationState | None = None,
    kind: OperationKind | None = None,
) -> list[Operation]:
    """Operations, newest first, after the one whose id is `marker`."""
    query = select(OperationRow).order_by(OperationRow.created_at.desc(), OperationRow.id.desc()).limit(limit)
    wanted = ((OperationRow.resource_id, resource_id), (OperationRow.state, state), (OperationRow.kind, kind))
    query = query.where(*(column == value for column, value in wanted if value is not None))
    if marker is not None:
        last = session.get(OperationRow, marker)
        if last is None:
            raise InvalidInput.of("marker", "no operation has this id", "use the next link of the page before")
        at, older = OperationRow.created_at, OperationRow.created_at < last.created_at
        query = query.where(or_(older, and_(at == last.created_at, OperationRow.id < last.id)))
    return [_model(row) for row in session.scalars(query)]


def request_cancel(session: Session, operation_id: str, *, actor: str, now: datetime) -> Operation:
    """Ask that the operation be undone, or, if what its kind does stays, that it do no more. One that nobody has begun is
    cancelled here and now, and its disk is what it was.

    `TransitionRefused` when it has ended, is being undone because it failed, or has begun a step that cannot be undone.
    """
    row = _row(session, operation_id, for_update=True)
    if row.cancel_requested:
        return _model(row)
    if not OPERATIONS.allows(OperationState(row.state), OperationEvent.UNDO):
        was_queued = _model(row).is_queued
        _move(session, row, OperationEvent.CANCEL, now=now, actor=actor)
        row.cancel_requested, row.ended_at, row.cast_at = True, now, row.cast_at or now
        cancelled = _model(row)
        if cancelled.kind.changes_disk and not was_queued:
            undo_disk(session, cancelled, now=now, actor=actor)
        moves.close(session, row.id, now=now, actor=actor)
        return cancelled
    step = plans.past_return(_model(row).steps)
    if step is not None:
        raise TransitionRefused(
            f"the operation has begun {step.name}, which cannot be undone; let it end, then ask for the opposite",
            operation_id=row.id,
            step=step.name,
            state=row.state,
        )
    row.cancel_requested = True
    events.append(session, "operation.cancel_requested", at=now, actor=actor, resource_id=row.resource_id, operation_id=row.id)
    return _model(row)


def undo_disk(session: Session, operation: Operation, *, now: datetime, actor: str, revision: int | None = None) -> None:
    """Move the operation's disk to what it is once nothing of the operation is left; write it with the operation's end."""
    was = DiskState(operation.params.get("was", DiskState.FAILED))
    begun = {step.name for step in operation.steps if step.state is not StepState.PENDING}
    event = plans.when_undone(operation.kind, was, published=plans.PUBLISH in begun)
    if event is None:
        before, restarts = operation.params.get(disks.BEFORE, {}), operation.params.get("restarts", False)
        disks.unchange(session, operation.resource_id, before, now=now, revision=revision, restarts=restarts)
        return
    if event is DiskEvent.DELETED:
        disks.forget(session, operation.resource_id, now=now, actor=actor, operation_id=operation.id)
        return
    disks.apply(
        session,
        operation.resource_id,
        event,
        now=now,
        actor=actor,
        operation_id=operation.id,
        started=False if event is DiskEvent.STOPPED or revision is not None else None,
        revision=revision,
    )


def outbox(session: Session, *, limit: int) -> list[Outgoing]:
    """Operations whose wake-up is still to be cast, oldest first."""
    return [Outgoing(*row) for row in run(session, _UNCAST, {"limit": limit}).all()]


def mark_cast(session: Session, ids: Sequence[str], *, now: datetime) -> None:
    session.execute(update(OperationRow).where(OperationRow.id.in_(ids), OperationRow.cast_at.is_(None)).values(cast_at=now))


def _is_behind() -> ColumnElement[bool]:
    """Of a row: whether it is queued, and another is before it."""
    other = aliased(OperationRow)
    before = other.resource_id == OperationRow.resource_id, other.ended_at.is_(None), other.turn < OperationRow.turn
    return and_(OperationRow.state == OperationState.QUEUED, exists(select(other.id).where(*before)))


def begin(
    session: Session, operation_id: str, *, steps: Sequence[Step], params: Mapping[str, Any], now: datetime, actor: str
) -> None:
    """Let a queued operation be claimed: its turn has come, and these are its steps and params now."""
    row = _row(session, operation_id)
    if row.gateway is not None:
        refuse_second(session, gateway=row.gateway, at_work=True)
    row.params = dict(params)
    row.steps = _step_rows(steps)
    _move(session, row, OperationEvent.BEGIN, now=now, actor=actor)
    session.flush()


def refuse(session: Session, operation_id: str, *, problem: Mapping[str, Any], now: datetime, actor: str) -> None:
    """End a queued operation: its turn has come, and it is not possible any more."""
    row = _row(session, operation_id)
    row.ended_at, row.problem = now, dict(problem)
    _move(session, row, OperationEvent.FAIL, now=now, actor=actor, data={"problem": row.problem})
    moves.close(session, row.id, now=now, actor=actor)


def due(session: Session, *, now: datetime, ttl_s: float, limit: int) -> list[str]:
    """Operations that have not ended and that nobody works on now: never claimed, released, or with a claim that ran out.

    So has a claim that reaches further than one made now could: the clock went back, and its conductor has not renewed it.
    """
    held = held_at(now, ttl_s)
    query = select(OperationRow.id).where(OperationRow.ended_at.is_(None), not_(held), ~_is_behind())
    return list(session.scalars(query.order_by(OperationRow.created_at).limit(limit)))


def claim(session: Session, operation_id: str, *, conductor: str, now: datetime, ttl_s: float) -> Operation | None:
    """Take an operation that nobody works on; None when another has it, it has ended, or its turn has not come.

    Of two conductors that try at once the compare on `claim_epoch` lets one change the row. The wake-up, if it is still in the
    outbox, is no longer needed.
    """
    row = session.get(OperationRow, operation_id)
    if row is None or row.ended_at is not None or OPERATIONS.allows(OperationState(row.state), OperationEvent.BEGIN):
        return None
    if row.claimed_until is not None and now < row.claimed_until <= _latest_end(now, ttl_s):
        return None
    taken = _compare(
        session,
        operation_id,
        row.claim_epoch,
        {
            "claimed_by": conductor,
            "claim_epoch": row.claim_epoch + 1,
            "claimed_at": now,
            "claimed_until": now + timedelta(seconds=ttl_s),
            "cast_at": row.cast_at or now,
        },
    )
    if not taken:
        return None
    if OPERATIONS.allows(OperationState(row.state), OperationEvent.START):
        row.started_at = now
        _move(session, row, OperationEvent.START, now=now, actor=conductor)
    return _model(row)


def held_at(now: datetime, ttl_s: float) -> ColumnElement[bool]:
    """Of a row of an operation that has not ended: whether a conductor's claim on it is in force."""
    until = OperationRow.claimed_until
    return and_(until.is_not(None), until > now, until <= _latest_end(now, ttl_s))


def _latest_end(now: datetime, ttl_s: float) -> datetime:
    """When a claim ends at the latest that was made by a clock as it is now; the margin is for clocks that differ."""
    return now + timedelta(seconds=2 * ttl_s)


def renew_claim(session: Session, operation_id: str, *, claim_epoch: int, now: datetime, ttl_s: float) -> Operation:
    row = _held(session, operation_id, claim_epoch)
    row.claimed_until = now + timedelta(seconds=ttl_s)
    return _model(row)


def release(session: Session, operation_id: str, *, claim_epoch: int) -> None:
    """Give the operation back unfinished, so that the next sweep takes it at once."""
    row = _held(session, operation_id, claim_epoch)
    row.claimed_by, row.claimed_at, row.claimed_until = None, None, None


def check_claim(session: Session, operation_id: str, *, claim_epoch: int, state: OperationState) -> None:
    """Return when the claim is still in force and the operation is going the same way as then; reads only."""
    claimed = OperationRow.claim_epoch == claim_epoch, OperationRow.state == state
    if session.scalar(select(OperationRow.id).where(OperationRow.id == operation_id, *claimed)) is None:
        raise _lost(operation_id)


def note(session: Session, operation_id: str, *, claim_epoch: int, values: Mapping[str, Any]) -> Operation:
    """Add to the operation's params what a later attempt, perhaps by another conductor, must find.

    Only while the operation goes forward: an attempt that lingers behind its undoing gets `ClaimLost`.
    """
    row = _held(session, operation_id, claim_epoch)
    if not OPERATIONS.allows(OperationState(row.state), OperationEvent.SUCCEED):
        raise _lost(operation_id)
    row.params = {**row.params, **values}
    return _model(row)


def hold(session: Session, operation_id: str, *, claim_epoch: int) -> Operation:
    """Return when the claim is in force; it stays so until the transaction ends."""
    return _model(_held(session, operation_id, claim_epoch))


def begin_step(session: Session, operation_id: str, position: int, *, claim_epoch: int, now: datetime) -> Operation | None:
    """Count an attempt at the step; None, and nothing written, when a cancel has been asked for.

    A step that winds up by itself is begun again all the same, if it had begun.
    """
    row = _held(session, operation_id, claim_epoch)
    step = row.steps[position]
    if row.cancel_requested and (step.name not in plans.WINDS_UP or STEPS.start == step.state):
        return None
    step.attempts += 1
    step.started_at = step.started_at or now
    step.tried_at, step.next_try_at = now, None
    _move_step(session, row, step, StepEvent.START, now=now)
    return _model(row)


def finish_step(session: Session, operation_id: str, position: int, *, claim_epoch: int, now: datetime) -> Operation:
    row = _held(session, operation_id, claim_epoch)
    row.steps[position].ended_at, row.steps[position].problem = now, None
    _move_step(session, row, row.steps[position], StepEvent.FINISH, now=now)
    return _model(row)


def try_again(
    session: Session, operation_id: str, position: int, *, claim_epoch: int, problem: Mapping[str, Any], next_try_at: datetime
) -> None:
    """Record what the latest attempt at the step, or at undoing it, failed with, and when the next begins."""
    step = _held(session, operation_id, claim_epoch).steps[position]
    step.problem, step.next_try_at = dict(problem), next_try_at


def fail_step(
    session: Session, operation_id: str, position: int, *, claim_epoch: int, now: datetime, problem: Mapping[str, Any]
) -> Operation:
    row = _held(session, operation_id, claim_epoch)
    row.steps[position].ended_at, row.steps[position].problem = now, dict(problem)
    _move_step(session, row, row.steps[position], StepEvent.FAIL, now=now, problem=problem)
    return _model(row)


def begin_undo(
    session: Session, operation_id: str, *, claim_epoch: int, now: datetime, problem: Mapping[str, Any] | None
) -> Operation:
    """Turn round: from now on the steps that have begun are undone in reverse. No problem means that a cancel asked for it."""
    row = _held(session, operation_id, claim_epoch)
    row.problem = dict(problem) if problem is not None else None
    _move(session, row, OperationEvent.UNDO, now=now, actor=str(row.claimed_by), data={"problem": row.problem})
    return _model(row)


def begin_undo_step(session: Session, operation_id: str, position: int, *, claim_epoch: int, now: datetime) -> None:
    """Record that an attempt at undoing the step begins; its own attempts are not counted by it."""
    step = _held(session, operation_id, claim_epoch).steps[position]
    step.tried_at, step.next_try_at = now, None


def undo_step(session: Session, operation_id: str, position: int, *, claim_epoch: int, now: datetime) -> Operation:
    """Record that nothing of the step is left."""
    row = _held(session, operation_id, claim_epoch)
    row.steps[position].next_try_at = None
    _move_step(session, row, row.steps[position], StepEvent.UNDO, now=now)
    return _model(row)


def end(
    session: Session,
    operation_id: str,
    event: OperationEvent,
    *,
    claim_epoch: int,
    now: datetime,
    problem: Mapping[str, Any] | None = None,
) -> Operation:
    """Bring the operation to a terminal state; its resource is free for the next one. A problem given replaces the stored one.

    So do its moves: those that had not begun are cancelled, and one that is still under way has failed.
    """
    row = _held(session, operation_id, claim_epoch)
    row.ended_at, row.claimed_until = now, None
    if problem is not None:
        row.problem = dict(problem)
    _move(session, row, event, now=now, actor=str(row.claimed_by), data={"problem": row.problem})
    moves.close(session, row.id, now=now, actor=str(row.claimed_by))
    ended = _model(row)
    assert ended.ended, f"{event} does not end an operation"
    return ended


def _step_rows(steps: Sequence[Step]) -> list[StepRow]:
    return [
        StepRow(position=position, name=step.name, state=step.state, deadline_s=step.deadline_s, attempts=0)
        for position, step in enumerate(steps)
    ]


def _row(session: Session, operation_id: str, *, for_update: bool = False) -> OperationRow:
    row = session.get(OperationRow, operation_id, populate_existing=True, with_for_update=for_update or None)
    if row is None:
        raise _missing(operation_id)
    return row


def _missing(operation_id: str) -> NotFound:
    return NotFound(f"there is no operation {operation_id}", operation_id=operation_id)


def _compare(session: Session, operation_id: str, epoch: int, values: Mapping[str, Any]) -> bool:
    """Write the row if it is still open at this epoch. On PostgreSQL the row stays locked until the transaction ends."""
    session.flush()
    done = session.execute(
        update(OperationRow)
        .where(OperationRow.id == operation_id, OperationRow.claim_epoch == epoch, OperationRow.ended_at.is_(None))
        .values(**values),
        execution_options={"synchronize_session": "evaluate"},
    )
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def _held(session: Session, operation_id: str, claim_epoch: int) -> OperationRow:
    if not _compare(session, operation_id, claim_epoch, {"claim_epoch": claim_epoch}):
        raise _lost(operation_id)
    return _row(session, operation_id)


def _lost(operation_id: str) -> ClaimLost:
    return ClaimLost(f"operation {operation_id} is no longer this conductor's", operation_id=operation_id)


def _move(
    session: Session,
    row: OperationRow,
    event: OperationEvent,
    *,
    now: datetime,
    actor: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    row.state = OPERATIONS.next(OperationState(row.state), event)
    _tell(session, row, now=now, actor=actor, data={"kind": row.kind, "resource_name": row.resource_name, **(data or {})})


def _tell(session: Session, row: OperationRow | Operation, *, now: datetime, actor: str, data: Mapping[str, Any]) -> None:
    kind = f"operation.{row.state}"
    events.append(session, kind, at=now, actor=actor, resource_id=row.resource_id, operation_id=row.id, data=data)


def _move_step(
    session: Session,
    row: OperationRow,
    step: StepRow,
    event: StepEvent,
    *,
    now: datetime,
    problem: Mapping[str, Any] | None = None,
) -> None:
    step.state = STEPS.next(StepState(step.state), event)
    data: dict[str, Any] = {"step": step.name, "position": step.position, "attempts": step.attempts}
    if problem is not None:
        data["problem"] = dict(problem)
    kind = f"step.{step.state}"
    events.append(session, kind, at=now, actor=str(row.claimed_by), resource_id=row.resource_id, operation_id=row.id, data=data)


def _model(row: OperationRow) -> Operation:
    return Operation(
        id=row.id,
        kind=OperationKind(row.kind),
        resource_id=row.resource_id,
        resource_name=row.resource_name,
        state=OperationState(row.state),
        params=dict(row.params),
        steps=tuple(
            Step(
                name=step.name,
                state=StepState(step.state),
                deadline_s=step.deadline_s,
                attempts=step.attempts,
                started_at=step.started_at,
                tried_at=step.tried_at,
                next_try_at=step.next_try_at,
                ended_at=step.ended_at,
                problem=step.problem,
            )
            for step in row.steps
        ),
        requested_by=row.requested_by,
        traceparent=row.traceparent,
        cancel_requested=row.cancel_requested,
        claimed_by=row.claimed_by,
        claim_epoch=row.claim_epoch,
        claimed_at=row.claimed_at,
        claimed_until=row.claimed_until,
        cast_at=row.cast_at,
        created_at=row.created_at,
        turn=row.turn,
        started_at=row.started_at,
        ended_at=row.ended_at,
        problem=row.problem,
    )
