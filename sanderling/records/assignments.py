"""Submitting what assigns paths: moves, drains and marks. Every function works in the caller's transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sanderling import settings
from sanderling.model import plans
from sanderling.model.disks import Disk
from sanderling.model.moves import Move
from sanderling.model.operations import Operation, OperationKind
from sanderling.records import moves as move_rows
from sanderling.records import operations
from sanderling.records.tables import PathRow

_ID_MAX: Final = 36
_NAME_MAX: Final = 64


def submit(
    session: Session,
    *,
    moves: Sequence[Move],
    conductor: settings.Conductor,
    requested_by: str,
    now: datetime,
    traceparent: str | None = None,
    params: Mapping[str, Any] | None = None,
) -> Operation:
    """An operation that makes these moves. `Busy`, naming the open one, while another operation moves paths."""
    operation = operations.submit(
        session,
        kind=OperationKind.ASSIGN_PATHS,
        resource_id=plans.ASSIGNMENTS,
        resource_name=plans.ASSIGNMENTS,
        params=params or {},
        steps=plans.steps_of(OperationKind.ASSIGN_PATHS, conductor, moves=len(moves)),
        requested_by=requested_by,
        now=now,
        traceparent=traceparent,
    )
    move_rows.insert(session, operation.id, moves)
    return operation


def submit_drain(
    session: Session,
    gateway: str,
    *,
    conductor: settings.Conductor,
    requested_by: str,
    now: datetime,
    traceparent: str | None = None,
) -> Operation:
    """An operation that marks the gateway and moves every path off it; `Busy` as with `submit`, and while it is undrained."""
    paths = session.scalar(select(func.count()).select_from(PathRow)) or 0
    return operations.submit(
        session,
        kind=OperationKind.DRAIN_GATEWAY,
        resource_id=plans.ASSIGNMENTS,
        resource_name=gateway[:_NAME_MAX],
        params={"gateway": gateway},
        steps=plans.steps_of(OperationKind.DRAIN_GATEWAY, conductor, moves=paths),
        requested_by=requested_by,
        now=now,
        traceparent=traceparent,
    )


def submit_undrain(
    session: Session,
    gateway: str,
    *,
    conductor: settings.Conductor,
    requested_by: str,
    now: datetime,
    traceparent: str | None = None,
) -> Operation:
    """An operation that lifts the mark; paths come back by balancing. `Busy` while another does, or drains it."""
    return operations.submit(
        session,
        kind=OperationKind.UNDRAIN_GATEWAY,
        resource_id=gateway if len(gateway) <= _ID_MAX else str(uuid5(NAMESPACE_URL, gateway)),
        resource_name=gateway[:_NAME_MAX],
        params={"gateway": gateway},
        steps=plans.steps_of(OperationKind.UNDRAIN_GATEWAY, conductor),
        requested_by=requested_by,
        now=now,
        traceparent=traceparent,
    )


def submit_marks(
    session: Session,
    disk: Disk,
    *,
    pin: str | None,
    avoid: frozenset[str],
    conductor: settings.Conductor,
    requested_by: str,
    now: datetime,
    traceparent: str | None = None,
) -> Operation:
    """An operation that replaces the disk's marks by these; `Busy` while the disk has an operation that has not ended."""
    return operations.submit(
        session,
        kind=OperationKind.MARK_DISK,
        resource_id=disk.id,
        resource_name=disk.name,
        params={"pin": pin, "avoid": sorted(avoid)},
        steps=plans.steps_of(OperationKind.MARK_DISK, conductor),
        requested_by=requested_by,
        now=now,
        traceparent=traceparent,
    )
