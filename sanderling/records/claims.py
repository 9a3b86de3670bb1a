"""Who works on what now: what the records tell of an operation's place among all that have not ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, not_, or_, select
from sqlalchemy.orm import Session

from sanderling.model.operations import Operation, OperationState
from sanderling.records import operations
from sanderling.records.tables import EventRow, OperationRow


@dataclass(frozen=True, slots=True)
class Standing:
    """`is_held`: the operation's claim is in force. `ahead`: how many that nobody works on come before it. `claims`: how many
    operations each conductor works on. `told_at`: when the history last told of the operation. `before`: of one that is queued,
    id and kind of those on its resource that come before it."""

    is_held: bool
    ahead: int
    claims: Mapping[str, int]
    told_at: datetime
    before: tuple[tuple[str, str], ...] = ()


def standing(session: Session, operation: Operation, *, now: datetime, ttl_s: float) -> Standing:
    held, is_open = operations.held_at(now, ttl_s), OperationRow.ended_at.is_(None)
    at, not_queued = OperationRow.created_at, OperationRow.state != OperationState.QUEUED
    before = or_(at < operation.created_at, and_(at == operation.created_at, OperationRow.id < operation.id))
    here = OperationRow.resource_id == operation.resource_id, OperationRow.turn < operation.turn
    line = select(OperationRow.id, OperationRow.kind).where(is_open, *here).order_by(OperationRow.turn)
    claims = select(OperationRow.claimed_by, func.count()).where(is_open, held).group_by(OperationRow.claimed_by)
    return Standing(
        is_held=session.scalar(select(OperationRow.id).where(OperationRow.id == operation.id, is_open, held)) is not None,
        ahead=session.scalar(select(func.count()).select_from(OperationRow).where(is_open, not_queued, not_(held), before)) or 0,
        claims={str(row[0]): row[1] for row in session.execute(claims)},
        told_at=session.scalar(select(func.max(EventRow.at)).where(EventRow.operation_id == operation.id))
        or operation.created_at,
        before=tuple((row.id, row.kind) for row in session.execute(line)) if operation.is_queued else (),
    )
