"""The snapshots of a disk, as the image store has them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from api.context import Context
from sanderling import clones
from sanderling.errors import InUse, InvalidInput, NotFound
from sanderling.images.base import Snapshot
from sanderling.model.disks import image_of
from sanderling.records.tables import DiskRow


def of(context: Context, row: DiskRow) -> tuple[Snapshot, ...]:
    """Oldest first; none of a disk that has no image (yet). `Unavailable` when the store does not answer in time."""
    try:
        return context.images.ask(lambda images: images.snapshots(image_of(row.id)))
    except NotFound:
        return ()


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


def refuse_kept(session: Session, row: DiskRow, kept: Sequence[Snapshot], *, force: bool) -> None:
    """`InUse` when the disk's snapshots would go with it unasked, or cannot go since there are clones of them, or will be."""
    clones.refuse_being_cloned(session, row)
    for snapshot in kept:
        clones.refuse_cloned(session, row, snapshot)
    if kept and not force:
        names = [snapshot.name for snapshot in kept]
        raise InUse(
            f"disk {row.name} has snapshots: {', '.join(names)}; delete them first, or send force=true&confirm={row.name}",
            snapshots=names,
        )
