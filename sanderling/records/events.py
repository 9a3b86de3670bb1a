"""History: one row for each change of state, written in the same transaction as the change."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from sanderling.records.tables import EventRow


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
    session.add(
        EventRow(
            at=at,
            kind=kind,
            actor=actor,
            resource_id=resource_id,
            operation_id=operation_id,
            data=dict(data or {}),
            source_id=source_id,
        )
    )
