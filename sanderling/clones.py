"""A disk stays while others read from its snapshots what they have not written themselves: who they are, and what they refuse."""

from sqlalchemy.orm import Session

from sanderling.errors import Busy, InUse
from sanderling.images.base import Snapshot
from sanderling.model.disks import image_of
from sanderling.model.operations import OperationKind
from sanderling.records import disks, operations
from sanderling.records.tables import DiskRow


def refuse_cloned(session: Session, row: DiskRow, snapshot: Snapshot) -> None:
    """`InUse` when there are clones of the snapshot; an image that no disk has is left by a request that came to nothing."""
    if not snapshot.clones:
        return
    clones = [image.removeprefix(image_of("")) for image in snapshot.clones]
    names = disks.names(session, clones)
    said = [f"disk {names[clone]}" if clone in names else f"image {image_of(clone)}" for clone in clones]
    recover = (
        "; an image without a disk becomes one by sanderling disk recover, or goes by rbd rm" if len(names) < len(clones) else ""
    )
    raise InUse(
        f"snapshot {snapshot.name} of disk {row.name} has clones: {', '.join(said)}; delete them first{recover}", disks=clones
    )


def refuse_being_cloned(session: Session, row: DiskRow) -> None:
    """`InUse` when operations that have not ended make clones of the disk's snapshots: the image may not tell of them yet."""
    making = operations.cloning(session, row.id)
    if making:
        said = ", ".join(f"disk {operation.resource_name}" for operation in making)
        raise InUse(
            f"a snapshot of disk {row.name} is being cloned to {said}; cancel that, or delete the clone first",
            disks=[operation.resource_id for operation in making],
        )


def refuse_deletion(session: Session, disk_id: str) -> None:
    """`Busy` when the disk is being deleted, or waits for it: no clone of it begins then. `NotFound` when it is gone."""
    row = disks.get(session, disk_id)
    for operation in operations.line(session, disk_id):
        if operation.kind is OperationKind.DELETE_DISK:
            raise Busy(
                f"disk {row.name} is being deleted by operation {operation.id}; cancel that first, or clone another",
                operation_id=operation.id,
            )
