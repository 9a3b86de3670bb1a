"""Taking snapshots of an image, going back to one, and removing one."""

from typing import Final

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import SNAPSHOT, described, rolling_back
from conductor.steps.images import fence_ended
from sanderling import clones
from sanderling.errors import Conflict, NotFound
from sanderling.model.disks import SCHEDULED, image_of
from sanderling.records import disks, events

KEEP: Final = "keep"  # among the operation's params: how many snapshots of the schedule are to be there afterwards


def create(context: Context) -> None:
    disk, name = described(context), _name(context)
    fence_ended(context, disk.id)
    with context.effect("create"):
        context.stores.images.snapshot(disk.image, name)
    _tell(context, events.SNAPSHOT_CREATED)


def uncreate(context: Context) -> None:
    """Take it away again. A cancel comes before it is there, or while it is made."""
    try:
        with context.effect("remove"):
            context.stores.images.remove_snapshot(image_of(context.disk_id), _name(context))
    except NotFound:
        return


def check_snapshot(context: Context) -> None:
    """`NotFound`, or `Conflict` where its size is another, before the disk counts as half rolled back, with no way out of it."""
    images, disk, name = context.stores.images, context.indexed(), _name(context)
    size_bytes = next((one.size_bytes for one in images.snapshots(disk.image) if one.name == name), None)
    if size_bytes is None:
        raise NotFound(f"disk {disk.name} has no snapshot {name}", disk=disk.name, snapshot=name)
    if size_bytes != disk.size_bytes:
        raise Conflict(f"snapshot {name} has {size_bytes} bytes, disk {disk.name} has {disk.size_bytes}", snapshot=name)


def roll_back(context: Context) -> None:
    """The image is nobody's now: who still has it open, a worker that died or an attempt that was given up, is fenced first."""
    images, image = context.stores.images, image_of(context.disk_id)
    for client in images.clients(image):
        with context.effect("fence"):
            images.fence(client)
    with context.effect("roll_back"):
        images.roll_back(image, _name(context), only_if=rolling_back(context), timeout_s=context.left_s)
    _tell(context, "snapshot.rolled_back")


def remove(context: Context) -> None:
    fence_ended(context, context.disk_id)
    with context.effect("remove"):
        context.stores.images.remove_snapshot(image_of(context.disk_id), _name(context))
    _tell(context, "snapshot.deleted")


def prune(context: Context) -> None:
    """Of the snapshots that the disk's schedule has taken, remove the oldest beyond those that are to be kept.

    One that has clones is kept as well, and counts.
    """
    images, image = context.stores.images, image_of(context.disk_id)
    taken = [one for one in images.snapshots(image) if one.name.startswith(SCHEDULED)]
    for snapshot in taken[: -context.operation.params[KEEP]]:
        if not snapshot.clones:
            with context.effect("remove"):
                images.remove_snapshot(image, snapshot.name)


def check_uncloned(context: Context) -> None:
    """`InUse` while the disk has clones, or one is being made; a disk that stays must not stop for its deletion.

    None is accepted once the deletion is, so there will be none afterwards either.
    """
    with context.stores.records.read() as session:  # before the image, which has those that were made by then
        row = disks.get(session, context.disk_id)
        clones.refuse_being_cloned(session, row)
    try:
        kept = context.stores.images.snapshots(image_of(row.id))
    except NotFound:
        return
    with context.stores.records.read() as session:
        for snapshot in kept:
            clones.refuse_cloned(session, row, snapshot)


def _name(context: Context) -> str:
    return str(context.operation.params[SNAPSHOT])


def _tell(context: Context, kind: str) -> None:
    """Record it, unless an attempt before this one has."""
    records, operation = context.stores.records, context.operation
    source_id = f"{operation.id} {context.step.name}"
    with context.effect("record"), records.begin() as session:
        if not events.is_recorded(session, source_id):
            events.append(
                session,
                kind,
                at=records.now(),
                actor=str(operation.claimed_by),
                resource_id=operation.resource_id,
                operation_id=operation.id,
                data={"name": disks.get(session, operation.resource_id).name, "snapshot": _name(context)},
                source_id=source_id,
            )


CREATE_SNAPSHOT = Action(create, undo=uncreate, effects=("create", "record"), undo_effects=("remove",))
ROLL_BACK_IMAGE = Action(roll_back, effects=("roll_back", "record"))
REMOVE_SNAPSHOT = Action(remove, effects=("remove", "record"))
PRUNE_SNAPSHOTS = Action(prune)
CHECK_SNAPSHOT = Action(check_snapshot)
CHECK_UNCLONED = Action(check_uncloned)
