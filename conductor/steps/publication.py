"""Putting the copy of a disk and the keys of its exports into coordination, where workers watch, and taking them out again."""

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import described, stopped_again, undescribed
from conductor.steps.keys import delete_keys, exports_prefix, keys_for, keys_of, publish_disk, publish_exports
from conductor.steps.serving import await_released, must_publish, publish_again
from sanderling.model.exports import UNKNOWN_CLIENT
from sanderling.model.operations import OperationKind


def publish(context: Context) -> None:
    """Tell the workers what the image says now.

    Also for a disk that is to stop: where coordination was lost, its exports' keys are made again, or nobody would find out
    about a worker that still serves.
    """
    if context.operation.kind is OperationKind.DELETE_DISK and undescribed(context):
        return
    disk, coordination = described(context), context.stores.coordination
    if context.step.attempts and disk.started and must_publish(coordination.list(exports_prefix(disk.id)), disk):
        publish_again(context)  # an attempt before may have published them, and workers have served: no epoch is given out twice
        return
    with context.stores.telling_workers(keys_for(disk)):
        with context.effect("disk"):
            publish_disk(coordination, disk, cause=context.cause)
        with context.effect("exports"):
            client = "" if _is_new(context) else UNKNOWN_CLIENT
            publish_exports(coordination, disk, client_of=lambda _: client)


def publish_changed(context: Context) -> None:
    """Tell the workers what the image says now. Keys of exports that were lost are made again by who waits for them."""
    disk = described(context)
    with context.stores.telling_workers(keys_for(disk)), context.effect("disk"):
        publish_disk(context.stores.coordination, disk)


def unpublish(context: Context) -> None:
    """Tell the workers to give the disk up, wait until they have, and remove its keys."""
    disk, coordination = described(context), context.stores.coordination
    with context.stores.telling_workers(keys_for(disk)):
        with context.effect("disk"):
            publish_disk(coordination, stopped_again(disk, context), cause=context.cause)
        with context.effect("exports"):
            publish_exports(coordination, disk, client_of=lambda _: UNKNOWN_CLIENT)
    await_released(context)
    retract(context)


def retract(context: Context) -> None:
    coordination = context.stores.coordination
    while True:
        entries = keys_of(coordination, context.disk_id)
        with context.effect("delete"), context.stores.telling_workers([entry.key for entry in entries]):
            if delete_keys(coordination, entries):
                return
        context.check("its exports to stay free")
        await_released(context)


def _is_new(context: Context) -> bool:
    """Whether no worker can ever have heard of the disk. Of one that was stopped this is not certain: Consul may lose keys."""
    return context.operation.kind is OperationKind.CREATE_DISK and context.step.attempts == 0


PUBLISH = Action(publish, undo=unpublish, effects=("disk", "exports"), undo_effects=("disk", "exports", "delete"))
PUBLISH_CHANGED = Action(publish_changed, effects=("disk",))  # undone by describing anew, which tells the workers, too
RETRACT = Action(retract, effects=("delete",))
