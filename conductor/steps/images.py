"""Making and removing the image that holds a disk's data."""

from typing import Final

from conductor.steps.base import Action, Context
from sanderling.errors import InUse
from sanderling.model.disks import image_of

_LOOK_AGAIN_S: Final = 1.0


def create(context: Context) -> None:
    disk = context.indexed()
    with context.effect("create"):
        context.stores.images.create(disk.image, disk.size_bytes, metadata={})


def remove(context: Context) -> None:
    """Remove image and data. Clients that just ended may be listed for a while yet, so one in use is waited for."""
    image = image_of(context.disk_id)
    while True:
        with context.effect("remove"):
            try:
                context.stores.images.remove(image)
            except InUse as problem:
                in_use = problem
            else:
                return
        if context.left_s <= _LOOK_AGAIN_S:
            clients = list(context.stores.images.clients(image))
            raise InUse(f"{in_use.detail}; end what has it open, then delete the disk again", image=image, clients=clients)
        context.pause(_LOOK_AGAIN_S)


CREATE_IMAGE = Action(create, undo=remove, effects=("create",), undo_effects=("remove",))
REMOVE_IMAGE = Action(remove, effects=("remove",))
