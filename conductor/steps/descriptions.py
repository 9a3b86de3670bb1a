"""Writing the disk's own description, kept on its image: the fact that every other store's copy follows.

Each operation decides once which revision it writes and stores that first. So a repeated attempt sees that it is done, and one
that lingers behind an undo, which writes a higher revision yet, finds that its compare no longer holds.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from conductor.steps.base import Action, Context
from conductor.steps.keys import keys_for, keys_of, publish_disk
from conductor.steps.reading import export_of, exports_in
from sanderling.errors import Conflict, ImageFailed, NotFound
from sanderling.images.base import Images
from sanderling.model.disks import Disk, image_of
from sanderling.model.operations import OperationKind
from sanderling.records.disks import BEFORE, CHANGE, RESTARTS

METADATA_KEY: Final = "sanderling.disk"
SNAPSHOT: Final = "snapshot"  # among the operation's params: the name of the snapshot that the operation is about
_REVISION: Final = "revision"  # likewise
SERVED_BY: Final = "served_by"  # likewise: the clients of the exports that a stop makes workers give up


def read(images: Images, image: str) -> tuple[str, Disk] | None:
    """The description on an image, as stored and as the model; None when there is no image or nobody has described it.

    `ImageFailed` when it cannot be read.
    """
    try:
        stored = images.get_metadata(image).get(METADATA_KEY)
    except NotFound:
        return None
    try:
        return None if stored is None else (stored, Disk.model_validate_json(stored))
    except ValidationError as error:
        raise ImageFailed(
            f"the description on image {image} cannot be read: {error.error_count()} errors", image=image
        ) from error


def described(context: Context) -> Disk:
    """The description on the operation's image; `NotFound` when there is none."""
    disk = context.indexed()
    found = read(context.stores.images, disk.image)
    if found is None:
        raise NotFound(f"image {disk.image} of disk {disk.name} is missing or has no description", image=disk.image)
    if found[1].id != disk.id:
        raise Conflict(f"image {disk.image} has the description of disk {found[1].name}", image=disk.image)
    return found[1]


def describe(context: Context) -> None:
    """A clone may have been left with the description of the disk that it is a clone of: that counts as none."""
    disk = context.indexed().model_copy(update={"started": False})
    found = read(context.stores.images, disk.image)
    if found is None or found[1].id != disk.id:
        with context.effect("write"):
            expected = found[0] if found else None
            context.stores.images.set_metadata(disk.image, METADATA_KEY, disk.model_dump_json(), expected=expected)


def describe_started(context: Context) -> None:
    """Start is also a new generation: the exports are made anew, and no command for an older one may fit them."""
    disk = described(context)
    if disk.rolling_back_to:
        raise Conflict(
            f"rolling disk {disk.name} back to snapshot {disk.rolling_back_to} broke off half-way; roll it back once "
            "more, to that snapshot or another, before it is started",
            snapshot=disk.rolling_back_to,
        )
    target = _target(context)
    _compare_and_set(context, revision=target, to={"started": True, "presented_at": target}, raises_generation=True)


def describe_stopped(context: Context) -> None:
    if context.operation.kind is OperationKind.DELETE_DISK and undescribed(context):
        return  # a disk that failed while it was being created; there is nobody to tell
    _compare_and_set(context, revision=_target(context, stops=True), to={"started": False})


def describe_changed(context: Context) -> None:
    """What initiators meet only changes with `presented_at`, by which workers know that they must start the export again."""
    target, params = _target(context), context.operation.params
    presented_at = target if params[RESTARTS] else described(context).export_revision
    _compare_and_set(context, revision=target, to={**params[CHANGE], "presented_at": presented_at})


def undescribe_changed(context: Context) -> None:
    """Describe the disk as it was, one revision on, and tell the workers: they start again what they had started anew."""
    target = context.operation.params.get(_REVISION)
    if target is None or undescribed(context):
        return
    revision, params = target + 1, context.operation.params
    presented = {"presented_at": revision} if params[RESTARTS] else {}
    _compare_and_set(context, revision=revision, to={**params[BEFORE], **presented})
    disk = described(context)
    if disk.started:
        with context.stores.telling_workers(keys_for(disk)), context.effect("publish"):
            publish_disk(context.stores.coordination, disk)


def describe_rolling_back(context: Context) -> None:
    """From here on the data may be neither what it was nor the snapshot's: nobody may start the disk, and nobody may serve it."""
    disk = described(context)
    if disk.started or keys_of(context.stores.coordination, disk.id):
        raise Conflict(f"disk {disk.name} may still be served by a gateway; stop it first", disk=disk.name)
    _compare_and_set(context, revision=_target(context), to={"rolling_back_to": context.operation.params[SNAPSHOT]})


def describe_rolled_back(context: Context) -> None:
    """One revision after the one that this operation noted. None begins from then on; an attempt that slept may be at it yet."""
    _compare_and_set(context, revision=_target(context) + 1, to={"rolling_back_to": ""})
    with context.effect("end"):
        context.stores.images.end_roll_back(image_of(context.disk_id))


def rolling_back(context: Context) -> tuple[str, str]:
    """The key and the text that say on the image that it is rolled back to this operation's snapshot; `Conflict` when none do."""
    image, snapshot = image_of(context.disk_id), context.operation.params[SNAPSHOT]
    found = read(context.stores.images, image)
    if found is None or found[1].rolling_back_to != snapshot:
        raise Conflict(f"the description on {image} does not say that it is rolled back to {snapshot}", image=image)
    return METADATA_KEY, found[0]


def undescribe_started(context: Context) -> None:
    target = context.operation.params.get(_REVISION)
    if target is not None and not undescribed(context):
        _compare_and_set(context, revision=target + 1, to={"started": False})


def stopped_again(disk: Disk, context: Context) -> Disk:
    """What `undescribe_started` will write, for telling the workers before."""
    return disk.model_copy(update={"started": False, "revision": max(disk.revision, context.operation.params[_REVISION] + 1)})


def revision_undone(params: dict[str, int]) -> int | None:
    """The revision that an undone operation leaves on the image; None when it left it as it was."""
    target = params.get(_REVISION)
    return None if target is None else target + 1


def undescribed(context: Context) -> bool:
    """Whether the image, or its description, is not there."""
    return read(context.stores.images, image_of(context.disk_id)) is None


def _target(context: Context, *, stops: bool = False) -> int:
    """The revision that this operation writes, decided once, and noted with the clients that it `stops`."""
    target = context.operation.params.get(_REVISION)
    if target is None:
        target = described(context).revision + 1
        clients = serving(context, context.disk_id) if stops else []
        with context.effect("note"):
            context.note({_REVISION: target, SERVED_BY: clients})
    return int(target)


def serving(context: Context, disk_id: str) -> list[str]:
    """The clients that the disk's exports name, which may do I/O, or must be fenced before another does; one may be unknown."""
    entries = exports_in(context.stores.coordination.list(f"exports/{disk_id}/").entries).values()
    return [client for entry in entries if (client := export_of(entry).client)]


def _compare_and_set(context: Context, *, revision: int, to: Mapping[str, Any], raises_generation: bool = False) -> None:
    """Write the description with these values at this revision, unless that is done."""
    image, images = image_of(context.disk_id), context.stores.images
    while True:
        found = read(images, image)
        if found is None:
            raise NotFound(f"image {image} is missing or has no description; nothing can be written on it", image=image)
        stored, disk = found
        if disk.revision == revision:
            return
        if disk.revision > revision:
            raise Conflict(f"the description on {image} is at revision {disk.revision}; this would write {revision}", image=image)
        generation = disk.generation + raises_generation
        after = Disk.model_validate({**disk.model_dump(), **to, "revision": revision, "generation": generation})
        with context.effect("write"):
            if images.set_metadata(image, METADATA_KEY, after.model_dump_json(), expected=stored):
                return


DESCRIBE = Action(describe, effects=("write",))
DESCRIBE_STARTED = Action(describe_started, undo=undescribe_started, effects=("note", "write"), undo_effects=("write",))
DESCRIBE_STOPPED = Action(describe_stopped, effects=("note", "write"))
DESCRIBE_CHANGED = Action(describe_changed, undo=undescribe_changed, effects=("note", "write"), undo_effects=("write", "publish"))
DESCRIBE_ROLLING_BACK = Action(describe_rolling_back, effects=("note", "write"))
DESCRIBE_ROLLED_BACK = Action(describe_rolled_back, effects=("write", "end"))
