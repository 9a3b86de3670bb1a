"""The snapshots of a disk, as the image store has them."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from api.context import Context
from sanderling import clones
from sanderling.errors import InUse, InvalidInput, NotFound
from sanderling.images.base import Snapshot
from sanderling.model.disks import image_of
from sanderling.records import events
from sanderling.records.tables import DiskRow

SNAPSHOTS_MAX: Final = 200  # of one disk; each makes every open of the image, and every list of them, a little slower


def of(context: Context, row: DiskRow) -> tuple[Snapshot, ...]:
    """Oldest first; none of a disk that has no image (yet). `Unavailable` when the store does not answer in time."""
    try:
        return context.images.ask(lambda images: images.snapshots(image_of(row.id)))
    except NotFound:
        return ()


@dataclass(frozen=True, slots=True)
class Look:
    """A disk's snapshots, and the last event of a snapshot's taking before they were looked at (0: none)."""

    kept: tuple[Snapshot, ...]
    last_taken: int


def look(context: Context, row: DiskRow) -> Look:
    """What a transaction is to go by, together with what was taken `since`; as `of`."""
    with context.records.read() as session:
        last_taken = max((event.id for event in _taken(session, row, limit=1)), default=0)
    return Look(of(context, row), last_taken)


def since(session: Session, row: DiskRow, look: Look) -> set[str]:
    """The names of the snapshots of which it is told, in this transaction, that they were taken after the look."""
    return {event.data["snapshot"] for event in _taken(session, row, limit=SNAPSHOTS_MAX) if event.id > look.last_taken}


def _taken(session: Session, row: DiskRow, *, limit: int) -> list[events.Event]:
    """What is told of the last snapshots of the disk, newest first. One operation at a time works on it, so ids rise."""
    return events.latest(session, events.SNAPSHOT_CREATED, resource_id=row.id, limit=limit)


def find(context: Context, row: DiskRow, name: str, *, field: str | None = None) -> Snapshot:
    """The disk's snapshot of that name; `NotFound`, or `InvalidInput` where the name stands in a field of a body."""
    found = next((one for one in of(context, row) if one.name == name), None)
    if found is not None:
        return found
    if field is not None:
        raise InvalidInput.of(field, f"disk {row.name} has no snapshot {name}", "give one of those the disk has")
    raise NotFound(f"disk {row.name} has no snapshot {name}", disk=row.name, snapshot=name)


def show(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "name": snapshot.name,
        "size_bytes": snapshot.size_bytes,
        "taken_at": snapshot.taken_at.isoformat().replace("+00:00", "Z"),
        "clones": [image.removeprefix(image_of("")) for image in snapshot.clones],
    }


def refuse_kept(session: Session, row: DiskRow, look: Look, *, force: bool) -> None:
    """`InUse` when the disk's snapshots would go with it unasked, or cannot go since there are clones of them, or will be."""
    clones.refuse_being_cloned(session, row)
    for snapshot in look.kept:
        clones.refuse_cloned(session, row, snapshot)
    names = sorted(since(session, row, look).union(snapshot.name for snapshot in look.kept))
    if names and not force:
        raise InUse(
            f"disk {row.name} has snapshots: {', '.join(names)}; delete them first, or send force=true&confirm={row.name}",
            snapshots=names,
        )
