"""The marks of operators in the records, which coordination gets a copy of."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from sanderling.model.marks import Marks
from sanderling.records import events
from sanderling.records.tables import MarkRow

DRAIN: Final = "drain"
PIN: Final = "pin"
AVOID: Final = "avoid"


def read(session: Session) -> Marks:
    """All marks there are."""
    drained, pins, avoid = set[str](), dict[str, str](), dict[str, set[str]]()
    for row in session.scalars(select(MarkRow)):
        if row.kind == DRAIN:
            drained.add(row.gateway)
        elif row.kind == PIN:
            pins[row.disk_id] = row.gateway
        else:
            avoid.setdefault(row.disk_id, set()).add(row.gateway)
    return Marks(drained=frozenset(drained), pins=pins, avoid={disk_id: frozenset(names) for disk_id, names in avoid.items()})


def of(session: Session, disk_id: str) -> dict[str, Any]:
    """The marks of one disk, as a person sets and sees them."""
    rows = session.scalars(select(MarkRow).where(MarkRow.disk_id == disk_id)).all()
    pins = [row.gateway for row in rows if row.kind == PIN]
    return {"pin": pins[0] if pins else None, "avoid": sorted(row.gateway for row in rows if row.kind == AVOID)}


def drain(session: Session, gateway: str, *, is_drained: bool, now: datetime, actor: str, operation_id: str) -> bool:
    """Set or lift the mark; False, and nothing written, when it is so already."""
    row = session.get(MarkRow, (DRAIN, gateway, ""))
    if (row is not None) == is_drained:
        return False
    if row is None:
        session.add(MarkRow(kind=DRAIN, gateway=gateway, disk_id="", set_by=actor, set_at=now))
    else:
        session.delete(row)
    kind = "gateway.drained" if is_drained else "gateway.undrained"
    events.append(session, kind, at=now, actor=actor, resource_id=gateway, operation_id=operation_id)
    return True


def mark_disk(
    session: Session,
    disk_id: str,
    *,
    pin: str | None,
    avoid: frozenset[str],
    now: datetime,
    actor: str,
    operation_id: str,
) -> None:
    """Replace the disk's marks by these; no pin and nothing to avoid means that it has none."""
    forget_disk(session, disk_id)
    wanted = [(PIN, pin)] if pin else []
    for kind, gateway in [*wanted, *((AVOID, name) for name in sorted(avoid))]:
        session.add(MarkRow(kind=kind, gateway=gateway, disk_id=disk_id, set_by=actor, set_at=now))
    data = {"pin": pin, "avoid": sorted(avoid)}
    events.append(session, "disk.marked", at=now, actor=actor, resource_id=disk_id, operation_id=operation_id, data=data)


def forget_disk(session: Session, disk_id: str) -> None:
    """Drop the marks of a disk that is being deleted."""
    session.execute(delete(MarkRow).where(MarkRow.disk_id == disk_id))
