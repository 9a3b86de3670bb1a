"""The moves of operations that assign paths, and the plans they came from. Every function works in the caller's transaction."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from sanderling.errors import MoveFailed
from sanderling.model.exports import ExportId
from sanderling.model.moves import MOVES, Move, MoveEvent, MoveState
from sanderling.records import events
from sanderling.records.tables import MoveRow, OperationRow


def insert(session: Session, operation_id: str, moves: Iterable[Move]) -> None:
    """Write the moves of a new operation, each pending."""
    for move in moves:
        session.add(MoveRow(operation_id=operation_id, **move.model_dump()))


def of(session: Session, operation_id: str) -> list[Move]:
    """In the order in which they are begun."""
    query = select(MoveRow).where(MoveRow.operation_id == operation_id).order_by(MoveRow.position)
    return [_model(row) for row in session.scalars(query)]


def open_moves(session: Session) -> list[Move]:
    """The moves of the operations that have not ended: what a list of paths shows beside each path."""
    query = select(MoveRow).join(OperationRow, OperationRow.id == MoveRow.operation_id).where(OperationRow.ended_at.is_(None))
    return [_model(row) for row in session.scalars(query.order_by(MoveRow.position))]


def page(
    session: Session, operation_id: str, *, after: int | None = None, limit: int, state: MoveState | None = None
) -> list[Move]:
    """Like `of`, after the position `after`."""
    query = select(MoveRow).where(MoveRow.operation_id == operation_id).order_by(MoveRow.position).limit(limit)
    if after is not None:
        query = query.where(MoveRow.position > after)
    if state is not None:
        query = query.where(MoveRow.state == state)
    return [_model(row) for row in session.scalars(query)]


def newest_that_moved(session: Session) -> str | None:
    """The id of the last ended operation that has moved an export from one gateway to another."""
    moved = exists().where(MoveRow.operation_id == OperationRow.id, MoveRow.state == MoveState.SUCCEEDED, MoveRow.source != "")
    query = select(OperationRow.id).where(OperationRow.ended_at.is_not(None), moved)
    return session.scalar(query.order_by(OperationRow.created_at.desc(), OperationRow.id.desc()).limit(1))


def counts(session: Session, operation_ids: Sequence[str]) -> dict[str, dict[MoveState, int]]:
    """How many moves of each operation are in each state."""
    counted = {operation_id: dict.fromkeys(MoveState, 0) for operation_id in operation_ids}
    query = select(MoveRow.operation_id, MoveRow.state, func.count()).where(MoveRow.operation_id.in_(operation_ids))
    for operation_id, state, count in session.execute(query.group_by(MoveRow.operation_id, MoveRow.state)):
        counted[operation_id][MoveState(state)] = count
    return counted


def apply(
    session: Session,
    operation_id: str,
    position: int,
    event: MoveEvent,
    *,
    now: datetime,
    actor: str,
    problem: Mapping[str, Any] | None = None,
) -> Move:
    """Take a move one step on in its life cycle, with its event; a refused step is `TransitionRefused`.

    The caller has checked its claim on the operation in this transaction.
    """
    row = session.get_one(MoveRow, (operation_id, position), populate_existing=True)
    row.state = MOVES.next(MoveState(row.state), event)
    if event is MoveEvent.START:
        row.started_at = row.started_at or now
    else:
        row.ended_at, row.problem = now, dict(problem) if problem else None
    move = _model(row)
    data = {"disk": row.disk_name, "index": row.index, "from": row.source, "to": row.destination, "gap_s": row.gap_s}
    events.append(
        session,
        f"move.{row.state}",
        at=now,
        actor=actor,
        resource_id=row.disk_id,
        operation_id=operation_id,
        data={**data, "problem": row.problem},
    )
    return move


def close(session: Session, operation_id: str, *, now: datetime, actor: str) -> None:
    """Bring the moves of an operation that ends to an end: nobody watches them any more."""
    unwatched = MoveFailed("the operation ended while it was under way; the list of paths shows where it is served").to_wire()
    for move in of(session, operation_id):
        event = next((event for event in (MoveEvent.CANCEL, MoveEvent.FAIL) if MOVES.allows(move.state, event)), None)
        if event is not None:
            problem = unwatched if event is MoveEvent.FAIL else None
            apply(session, operation_id, move.position, event, now=now, actor=actor, problem=problem)


def note_gap(
    session: Session, export: ExportId, *, source: str, destination: str, gap_s: float, operation_id: str | None
) -> str | None:
    """Store how long the export's operations were held, with its latest such move; the id of its operation if there is one.

    The source's report names the operation, and may come before or after the move has been seen to end. The heir's cannot, and
    what it saw, which is the end of the gap alone, counts only where the source says nothing.
    """
    same = (MoveRow.disk_id == export.disk_id, MoveRow.index == export.index, MoveRow.destination == destination)
    query = select(MoveRow).where(*same, MoveRow.source == source, MoveRow.started_at.is_not(None))
    if operation_id is not None:
        query = query.where(MoveRow.operation_id == operation_id)
    row = session.scalars(query.order_by(MoveRow.started_at.desc()).limit(1)).first()
    if row is None or (row.gap_s is not None and operation_id is None):
        return None
    row.gap_s = gap_s
    return row.operation_id


def asked_since(session: Session, since: datetime, *, requested_by: str) -> list[Move]:
    """The moves of the operations that this one asked for since then, whatever became of them."""
    query = select(MoveRow).join(OperationRow, OperationRow.id == MoveRow.operation_id)
    query = query.where(OperationRow.requested_by == requested_by, OperationRow.created_at > since)
    return [_model(row) for row in session.scalars(query)]


def _model(row: MoveRow) -> Move:
    return Move(
        position=row.position,
        disk_id=row.disk_id,
        disk_name=row.disk_name,
        index=row.index,
        addresses=tuple(row.addresses),
        source=row.source,
        destination=row.destination,
        state=MoveState(row.state),
        gap_s=row.gap_s,
        problem=row.problem,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
