"""The keys of a disk in coordination: its published description and its exports, written so that nothing newer is lost.

Only keys that nobody locks are written, each compared with what was read; a description never replaces a newer one.
"""

from collections.abc import Callable, Sequence

from conductor.steps.reading import disk_of, export_of, exports_in, is_usable
from sanderling.coordination.base import ABSENT, Coordination, Delete, Entry
from sanderling.errors import Unavailable
from sanderling.model.disks import Disk
from sanderling.model.exports import UNKNOWN_CLIENT, Export, ExportId
from sanderling.model.operations import Cause

_TRIES_MAX = 8  # each is lost only to another writer of the same key


def disk_key(disk_id: str) -> str:
    return f"disks/{disk_id}"


def keys_for(disk: Disk) -> tuple[str, ...]:
    """All keys that a disk has while it is started."""
    return (disk_key(disk.id), *(ExportId(disk.id, index).key for index in disk.export_indexes))


def exports_prefix(disk_id: str) -> str:
    return f"exports/{disk_id}/"


def publish_disk(coordination: Coordination, disk: Disk, *, cause: Cause | None = None) -> None:
    """Make `disks/<id>` say this, unless it says something newer already. What cannot be read is overwritten."""
    disk = disk.model_copy(update={"cause": cause or Cause()})
    key, value = disk_key(disk.id), disk.model_dump_json().encode()
    for _ in range(_TRIES_MAX):
        entry = coordination.get(key)
        present = disk_of(entry) if entry else None
        if present is not None and (present == disk or age(present) > age(disk)):
            return
        if coordination.put(key, value, expected=entry.modify_index if entry else ABSENT):
            return
    raise Unavailable(f"{key} was changed by others {_TRIES_MAX} times in a row", dependency="coordination")


def publish_exports(coordination: Coordination, disk: Disk, *, client_of: Callable[[ExportId], str]) -> None:
    """Make every export key that is missing, or free and unreadable. Another stays as it is: its counter and client count.

    `client_of` names whom the first owner of a new key must fence: "" only when nothing of that export can be running.
    """
    present = exports_in(coordination.list(exports_prefix(disk.id)).entries)
    for export in (ExportId(disk.id, index) for index in disk.export_indexes):
        entry = present.get(export)
        if entry is None or not is_usable(entry):
            value = Export(generation=disk.generation, client=UNKNOWN_CLIENT if entry else client_of(export))
            expected = entry.modify_index if entry else ABSENT
            coordination.put(export.key, value.model_dump_json().encode(), expected=expected)


def keys_of(coordination: Coordination, disk_id: str) -> tuple[Entry, ...]:
    """The disk's export keys and, last, its published description, as far as they are there."""
    published = coordination.get(disk_key(disk_id))
    exports = exports_in(coordination.list(exports_prefix(disk_id)).entries).values()
    return (*exports, *((published,) if published else ()))


def delete_keys(coordination: Coordination, entries: Sequence[Entry]) -> bool:
    """Remove these keys in one step; False when an export is held, may still be running, or has changed since it was read."""
    exports = [entry for entry in entries if entry.key.startswith("exports/")]
    if any(entry.consul_session is not None or export_of(entry).needs_fence for entry in exports):
        return False
    return not entries or coordination.txn([Delete(entry.key, expected=entry.modify_index) for entry in entries])


def age(disk: Disk) -> tuple[int, int]:
    """Of two descriptions of a disk the one with the higher age is the newer."""
    return disk.generation, disk.revision
