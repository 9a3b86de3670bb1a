"""Where the data is: the seam (base) and what stands behind it, chosen by `[images] backend`."""

from typing import TYPE_CHECKING

from sanderling.clock import Clock
from sanderling.settings import Settings

if TYPE_CHECKING:
    from sanderling.images.base import Images


def connect(settings: Settings, *, clock: Clock) -> "Images":
    """The image store that the settings name. This never waits for it: it is reached at the first call."""
    if settings.images.backend == "files":
        from sanderling.images.files import FileImages  # noqa: PLC0415 - a process loads only the backend it uses

        return FileImages(settings.images, clock=clock)
    from sanderling.images.rbd import RbdImages  # noqa: PLC0415 - librados is not there on a machine without Ceph

    return RbdImages(settings.images, clock=clock)
