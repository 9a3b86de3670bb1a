"""Submitting what assigns paths: moves, drains and marks. Every function works in the caller's transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Subject:
    """What an operation that assigns paths is about. There is one open operation of a resource."""

    kind: OperationKind
    resource_id: str
    resource_name: str
    params: Mapping[str, Any]


RECOVERY: Final = Subject(OperationKind.RECOVER_DISKS, "recovery", "disks", {})
MOVES: Final = Subject(OperationKind.ASSIGN_PATHS, plans.ASSIGNMENTS, plans.ASSIGNMENTS, {})


def drain_of(gateway: str) -> Subject:
    """Marking the gateway and moving every path off it. Like all that moves paths it is one at a time."""
    return Subject(OperationKind.DRAIN_GATEWAY, plans.ASSIGNMENTS, gateway[:_NAME_MAX], {"gateway": gateway})


def undrain_of(gateway: str) -> Subject:
    """Lifting the mark; paths come back by balancing."""
    resource_id = gateway if len(gateway) <= _ID_MAX else str(uuid5(NAMESPACE_URL, gateway))
    return Subject(OperationKind.UNDRAIN_GATEWAY, resource_id, gateway[:_NAME_MAX], {"gateway": gateway})


def marks_of(disk: Disk, *, pin: str | None, avoid: frozenset[str]) -> Subject:
    """Replacing the disk's marks by these."""
    return Subject(OperationKind.MARK_DISK, disk.id, disk.name, {"pin": pin, "avoid": sorted(avoid)})


def submit(
    session: Session,
    subject: Subject = MOVES,
    *,
    moves: Sequence[Move] = (),
    conductor: settings.Conductor,
    requested_by: str,
    now: datetime,
    traceparent: str | None = None,
    queue_max: int = 0,
) -> Operation:
    """An operation about the subject that begins with these moves. `Busy`, or queued, as in `operations.submit`."""
    is_drain = subject.kind is OperationKind.DRAIN_GATEWAY  # it plans its moves when it begins: at the most one for each path
    moves_max = _count_paths(session) if is_drain else len(moves)
    operation = operations.submit(
        session,
        kind=subject.kind,
        resource_id=subject.resource_id,
        resource_name=subject.resource_name,
        params=subject.params,
        steps=plans.steps_of(subject.kind, conductor, moves=moves_max),
        requested_by=requested_by,
        now=now,
        traceparent=traceparent,
        queue_max=queue_max,
    )
    move_rows.insert(session, operation.id, moves)
    return operation


def _count_paths(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(PathRow)) or 0
