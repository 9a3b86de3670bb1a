"""Making and removing the image that holds a disk's data."""

from collections.abc import Iterable
from typing import Final

import structlog

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import SERVED_BY, serving
from sanderling.errors import InUse, Unavailable
from sanderling.model.disks import image_of
from sanderling.model.exports import UNKNOWN_CLIENT
from sanderling.records import disks, events, operations

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S: Final = 0.5
_LATEST_MAX: Final = 20  # operations on the disk, and exports of it; the clients of older ones are long off the list


def create(context: Context) -> None:
    disk, images = context.indexed(), context.stores.images
    source = context.operation.params.get(disks.SOURCE)
    if source is not None:
        fence_ended(context, source["disk_id"])
    with context.effect("create"):
        if source is None:
            images.create(disk.image, disk.size_bytes, metadata={})
        else:
            images.clone(image_of(source["disk_id"]), source["snapshot"], disk.image)
            images.grow(disk.image, disk.size_bytes)


def grow(context: Context) -> None:
    fence_ended(context, context.disk_id)
    with context.effect("grow"):
        context.stores.images.grow(image_of(context.disk_id), context.operation.params[disks.CHANGE]["size_bytes"])


def remove(context: Context) -> None:
    """Remove image and data. One that somebody has open is waited for, since clients that ended are listed for a while yet.

    What has served the disk does not any more: fencing it takes it off the list at once. A large image is removed in parts; as
    long as there is time for another, no attempt is spent on it.
    """
    image, images, clock = image_of(context.disk_id), context.stores.images, context.stores.clock
    while True:
        began = clock.monotonic()
        try:
            with context.effect("remove"):
                images.remove(image)
        except InUse as problem:
            if "clones" in problem.context:  # waiting does not help
                raise
            clients = set(images.clients(image))
            if context.left_s <= _LOOK_AGAIN_S:
                fix = "end what has it open, then delete the disk again"
                raise InUse(f"{problem.detail}; {fix}", image=image, clients=sorted(clients)) from problem
            ended = clients & _have_served(context, context.disk_id)
            _fence(context, image, ended)
            context.pause(0 if ended else _LOOK_AGAIN_S)
        except Unavailable as problem:
            if "left_bytes" not in problem.context or context.left_s <= clock.monotonic() - began:
                raise
            log.info("removed a part", image=image, left_bytes=problem.context["left_bytes"])
        else:
            return


def fence_ended(context: Context, disk_id: str) -> None:
    """Fence what is listed at the disk's image and has ended, before the image is changed: it has served the disk, and no export
    names it any more.

    librbd waits until everybody listed has answered: 5 s, and for a snapshot until the client's watch ends, 30 s (measured). That
    is what it takes where nobody can tell who serves the disk.
    """
    image = image_of(disk_id)
    try:
        listed = set(context.stores.images.clients(image)) & _have_served(context, disk_id)
        named = serving(context, disk_id) if listed else []  # read after the others: who serves is named before it is told of
    except Unavailable as problem:
        log.warning("not known who has ended", image=image, reason=problem.detail)
        return
    if UNKNOWN_CLIENT not in named:
        _fence(context, image, listed.difference(named))


def _fence(context: Context, image: str, ended: Iterable[str]) -> None:
    for client in ended:
        with context.effect("fence"):
            context.stores.images.fence(client)
        log.info("fenced what has ended and is still listed", client=client, image=image)


def _have_served(context: Context, disk_id: str) -> set[str]:
    """The clients of exports that an operation on this disk was to make workers give up, or that workers have told of."""
    with context.stores.records.read() as session:
        before = operations.page(session, marker=None, limit=_LATEST_MAX, resource_id=disk_id)
        served = events.latest(session, "export.served", resource_id=disk_id, limit=_LATEST_MAX)
    stopped = {client for operation in before for client in operation.params.get(SERVED_BY, ())}
    return stopped | {str(event.data["client"]) for event in served if "client" in event.data}


CREATE_IMAGE = Action(create, undo=remove, effects=("create",), undo_effects=("remove",))
GROW_IMAGE = Action(grow, effects=("grow",))
REMOVE_IMAGE = Action(remove, effects=("remove",))
