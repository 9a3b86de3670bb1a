"""Putting the copy of a disk and the keys of its exports into coordination, where workers watch, and taking them out again.

Only keys that nobody locks are written, each compared with what was read; a description never replaces a newer one.
"""

from collections.abc import Callable, Sequence

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import described, stopped_again, undescribed
from conductor.steps.serving import await_released
from sanderling.coordination.base import ABSENT, Coordination, Delete, Entry
from sanderling.errors import Unavailable
from sanderling.model.disks import Disk, DiskState
from sanderling.model.exports import UNKNOWN_CLIENT, Export, ExportId
from sanderling.model.operations import OperationKind

_TRIES_MAX = 8  # each is lost only to another writer of the same key


def disk_key(disk_id: str) -> str:
    return f"disks/{disk_id}"


def exports_prefix(disk_id: str) -> str:
    return f"exports/{disk_id}/"


def publish_disk(coordination: Coordination, disk: Disk) -> None:
    """Make `disks/<id>` say this, unless it says something newer already."""
    key, value = disk_key(disk.id), disk.model_dump_json().encode()
    for _ in range(_TRIES_MAX):
        entry = coordination.get(key)
        if entry is not None and (entry.value == value or _age(Disk.model_validate_json(entry.value)) > _age(disk)):
            return
        if coordination.put(key, value, expected=entry.modify_index if entry else ABSENT):
            return
    raise Unavailable(f"{key} was changed by others {_TRIES_MAX} times in a row", dependency="coordination")


def publish_exports(coordination: Coordination, disk: Disk, *, client_of: Callable[[ExportId], str]) -> None:
    """Make every export key that is missing. One that is there stays as it is: its counter goes on, and its client counts.

    `client_of` names whom the first owner of a new key must fence: "" only when nothing of that export can be running.
    """
    present = {entry.key for entry in coordination.list(exports_prefix(disk.id)).entries}
    for export in (ExportId(disk.id, index) for index in disk.export_indexes):
        if export.key not in present:
            value = Export(generation=disk.generation, client=client_of(export))
            coordination.put(export.key, value.model_dump_json().encode(), expected=ABSENT)


def keys_of(coordination: Coordination, disk_id: str) -> tuple[Entry, ...]:
    """The disk's export keys and, last, its published description, as far as they are there."""
    published = coordination.get(disk_key(disk_id))
    return (*coordination.list(exports_prefix(disk_id)).entries, *((published,) if published else ()))


def delete_keys(coordination: Coordination, entries: Sequence[Entry]) -> bool:
    """Remove these keys in one step; False when an export is held, may still be running, or has changed since it was read."""
    exports = [entry for entry in entries if entry.key.startswith("exports/")]
    if any(entry.consul_session is not None or Export.model_validate_json(entry.value).needs_fence for entry in exports):
        return False
    return not entries or coordination.txn([Delete(entry.key, expected=entry.modify_index) for entry in entries])


def publish(context: Context) -> None:
    """Tell the workers what the image says now."""
    if context.operation.kind is OperationKind.DELETE_DISK and undescribed(context):
        return
    disk, coordination = described(context), context.stores.coordination
    with context.effect("disk"):
        publish_disk(coordination, disk)
    with context.effect("exports"):
        if disk.started:
            client = "" if _rested(context) else UNKNOWN_CLIENT
            publish_exports(coordination, disk, client_of=lambda _: client)


def unpublish(context: Context) -> None:
    """Tell the workers to give the disk up, wait until they have, and remove its keys."""
    disk = described(context)
    with context.effect("disk"):
        publish_disk(context.stores.coordination, stopped_again(disk, context))
    await_released(context)
    retract(context)


def retract(context: Context) -> None:
    coordination = context.stores.coordination
    while True:
        with context.effect("delete"):
            if delete_keys(coordination, keys_of(coordination, context.disk_id)):
                return
        context.check("its exports to stay free")
        await_released(context)


def _rested(context: Context) -> bool:
    """Whether no process can be serving the disk: it is new, or it was stopped in order."""
    was = context.operation.params.get("was")
    return context.operation.kind is OperationKind.CREATE_DISK or was == DiskState.STOPPED


def _age(disk: Disk) -> tuple[int, int]:
    return disk.generation, disk.revision


PUBLISH = Action(publish, undo=unpublish, effects=("disk", "exports"), undo_effects=("disk", "delete"))
RETRACT = Action(retract, effects=("delete",))
