"""Making and removing the image that holds a disk's data."""

from typing import Final

import structlog

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import SERVED_BY
from sanderling.errors import InUse, Unavailable
from sanderling.model.disks import image_of
from sanderling.records import disks, events, operations

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S: Final = 0.5
_LATEST_MAX: Final = 20  # operations on the disk, and moves of it; the clients of older ones are long off the list


SOURCE: Final = "source"  # among the operation's params: the disk and the snapshot of which the new one is a clone


def create(context: Context) -> None:
    disk, images = context.indexed(), context.stores.images
    source = context.operation.params.get(SOURCE)
    with context.effect("create"):
        if source is None:
            images.create(disk.image, disk.size_bytes, metadata={})
        else:
            images.clone(image_of(source["disk_id"]), source["snapshot"], disk.image)
            images.grow(disk.image, disk.size_bytes)


def grow(context: Context) -> None:
    with context.effect("grow"):
        context.stores.images.grow(image_of(context.disk_id), context.operation.params[disks.CHANGE]["size_bytes"])


def remove(context: Context) -> None:
    """Remove image and data. One that somebody has open is waited for, since clients that ended are listed for a while yet.

    What workers gave up or handed on has ended: fencing it takes it off the list at once. A large
    image is removed in parts; as long as there is time for another, no attempt is spent on it.
    """
    image, images, clock = image_of(context.disk_id), context.stores.images, context.stores.clock
    while True:
        began = clock.monotonic()
        try:
            with context.effect("remove"):
                images.remove(image)
        except InUse as problem:
            clients = set(images.clients(image))
            if context.left_s <= _LOOK_AGAIN_S:
                fix = "end what has it open, then delete the disk again"
                raise InUse(f"{problem.detail}; {fix}", image=image, clients=sorted(clients)) from problem
            ended = clients & _given_up(context)
            for client in ended:
                with context.effect("fence"):
                    images.fence(client)
                log.info("fenced what was given up and is still listed", client=client, image=image)
            context.pause(0 if ended else _LOOK_AGAIN_S)
        except Unavailable as problem:
            if "left_bytes" not in problem.context or context.left_s <= clock.monotonic() - began:
                raise
            log.info("removed a part", image=image, left_bytes=problem.context["left_bytes"])
        else:
            return


def _given_up(context: Context) -> set[str]:
    """The clients of exports that were given up by an operation on this disk, or handed on: each of them has ended."""
    with context.stores.records.read() as session:
        before = operations.page(session, marker=None, limit=_LATEST_MAX, resource_id=context.disk_id)
        handed_on = events.latest(session, "export.handed_on", resource_id=context.disk_id, limit=_LATEST_MAX)
    stopped = {client for operation in before for client in operation.params.get(SERVED_BY, ())}
    return stopped | {str(event.data["client"]) for event in handed_on if "client" in event.data}


CREATE_IMAGE = Action(create, undo=remove, effects=("create",), undo_effects=("remove",))
GROW_IMAGE = Action(grow, effects=("grow",))
REMOVE_IMAGE = Action(remove, effects=("remove",))
