"""Writing the disk's own description, kept on its image: the fact that every other store's copy follows.

Each operation decides once which revision it writes and stores that first. So a repeated attempt sees that it is done, and one
that lingers behind an undo, which writes a higher revision yet, finds that its compare no longer holds.
"""

from typing import Final

from pydantic import ValidationError

from conductor.steps.base import Action, Context
from conductor.steps.reading import export_of, exports_in
from sanderling.errors import Conflict, ImageFailed, NotFound
from sanderling.images.base import Images
from sanderling.model.disks import Disk, image_of
from sanderling.model.exports import UNKNOWN_CLIENT
from sanderling.model.operations import OperationKind

METADATA_KEY: Final = "sanderling.disk"
_REVISION: Final = "revision"  # among the operation's params
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
    return found[1]


def describe(context: Context) -> None:
    disk = context.indexed().model_copy(update={"started": False})
    if read(context.stores.images, disk.image) is None:
        with context.effect("write"):
            context.stores.images.set_metadata(disk.image, METADATA_KEY, disk.model_dump_json(), expected=None)


def describe_started(context: Context) -> None:
    """Start is also a new generation: the exports are made anew, and no command for an older one may fit them."""
    _write(context, started=True)


def describe_stopped(context: Context) -> None:
    if context.operation.kind is OperationKind.DELETE_DISK and undescribed(context):
        return  # a disk that failed while it was being created; there is nobody to tell
    _write(context, started=False)


def undescribe_started(context: Context) -> None:
    target = context.operation.params.get(_REVISION)
    if target is not None and not undescribed(context):
        _compare_and_set(context, revision=target + 1, started=False)


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


def _write(context: Context, *, started: bool) -> None:
    target = context.operation.params.get(_REVISION)
    if target is None:
        target = described(context).revision + 1
        clients = [] if started else _serving(context)
        with context.effect("note"):
            context.note({_REVISION: target, SERVED_BY: clients})
    _compare_and_set(context, revision=target, started=started)


def _serving(context: Context) -> list[str]:
    entries = exports_in(context.stores.coordination.list(f"exports/{context.disk_id}/").entries).values()
    return [client for entry in entries if (client := export_of(entry).client) not in ("", UNKNOWN_CLIENT)]


def _compare_and_set(context: Context, *, revision: int, started: bool) -> None:
    image, images = image_of(context.disk_id), context.stores.images
    while True:
        found = read(images, image)
        if found is None:
            raise NotFound(f"image {image} is missing or has no description; it cannot be started or stopped", image=image)
        stored, disk = found
        if disk.revision == revision and disk.started == started:
            return
        if disk.revision >= revision:
            raise Conflict(f"the description on {image} is at revision {disk.revision}; this would write {revision}", image=image)
        generation = disk.generation + 1 if started else disk.generation
        after = disk.model_copy(update={"revision": revision, "started": started, "generation": generation})
        with context.effect("write"):
            if images.set_metadata(image, METADATA_KEY, after.model_dump_json(), expected=stored):
                return


DESCRIBE = Action(describe, effects=("write",))
DESCRIBE_STARTED = Action(describe_started, undo=undescribe_started, effects=("note", "write"), undo_effects=("write",))
DESCRIBE_STOPPED = Action(describe_stopped, effects=("note", "write"))
