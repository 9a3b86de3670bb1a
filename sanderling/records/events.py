"""History: one row for each change of state, written in the same transaction as the change."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from sanderling.records.tables import EventRow

SNAPSHOT_CREATED: Final = "snapshot.created"  # its data names the disk and the snapshot


class Event(BaseModel):
    """Something that happened. `id` rises with time and is where a reader goes on from."""

    model_config = ConfigDict(frozen=True)

    id: int
    at: datetime
    kind: str
    actor: str
    resource_id: str | None
    operation_id: str | None
    data: dict[str, Any]


_APPEND: Final = insert(EventRow)


def append(
    session: Session,
    kind: str,
    *,
    at: datetime,
    actor: str,
    resource_id: str | None = None,
    operation_id: str | None = None,
    data: Mapping[str, Any] | None = None,
    source_id: str | None = None,
) -> None:
    """Record that something happened; `kind` is "noun.what", such as "disk.state" or "operation.succeeded"."""
    values = {
        "at": at,
        "kind": kind,
        "actor": actor,
        "resource_id": resource_id,
        "operation_id": operation_id,
        "data": dict(data or {}),
        "source_id": source_id,
    }
    session.connection().execute(_APPEND, values)  # what the session has yet to write may be half done, and waits


def page(
    session: Session, *, after: int, limit: int, resource_id: str | None = None, operation_id: str | None = None
) -> list[Event]:
    """Oldest first, those with an id above `after`."""
    query = select(EventRow).where(EventRow.id > after).order_by(EventRow.id).limit(limit)
    if resource_id is not None:
        query = query.where(EventRow.resource_id == resource_id)
    if operation_id is not None:
        query = query.where(EventRow.operation_id == operation_id)
    return [_model(row) for row in session.scalars(query)]


def get(session: Session, event_id: int) -> Event | None:
    row = session.get(EventRow, event_id)
    return None if row is None else _model(row)


def latest(session: Session, kind: str, *, resource_id: str, limit: int) -> list[Event]:
    """The newest of that kind about a resource, newest first."""
    query = select(EventRow).where(EventRow.kind == kind, EventRow.resource_id == resource_id)
    return [_model(row) for row in session.scalars(query.order_by(EventRow.id.desc()).limit(limit))]


def is_recorded(session: Session, source_id: str) -> bool:
    """Whether the event that its source calls so is there."""
    return session.scalar(select(EventRow.id).where(EventRow.source_id == source_id)) is not None


def newest(session: Session) -> int:
    """The id of the last event; 0 before the first."""
    return session.scalar(select(func.max(EventRow.id))) or 0


def _model(row: EventRow) -> Event:
    return Event(
        id=row.id,
        at=row.at,
        kind=row.kind,
        actor=row.actor,
        resource_id=row.resource_id,
        operation_id=row.operation_id,
        data=row.data,
    )
