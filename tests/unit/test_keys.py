"""A disk's keys in coordination: nothing newer is lost by writing or removing them."""

from conductor.steps.keys import delete_keys, disk_key, keys_of, publish_disk, publish_exports
from conductor.steps.reading import disk_of
from sanderling.clock import ManualClock
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.model.disks import Disk, Path

PATH = Path(index=1, address="10.0.0.1", prefix_len=24, interface="eth0", subnet="front")
NEWER = Disk(id="1", name="vol", iqn="iqn.x:vol", size_bytes=512, paths=(PATH,), started=True, generation=2, revision=5)
OLDER = NEWER.model_copy(update={"revision": 4, "started": False})


def published(coordination: EmbeddedCoordination) -> Disk | None:
    entry = coordination.get(disk_key(NEWER.id))
    return disk_of(entry) if entry else None


def test_a_published_description_is_never_replaced_by_an_older_one() -> None:
    coordination = EmbeddedCoordination(clock=ManualClock())
    publish_disk(coordination, OLDER)
    publish_disk(coordination, NEWER)
    assert published(coordination) == NEWER
    publish_disk(coordination, OLDER)
    assert published(coordination) == NEWER


def test_keys_that_somebody_has_written_since_they_were_read_are_not_removed() -> None:
    coordination = EmbeddedCoordination(clock=ManualClock())
    publish_disk(coordination, OLDER)
    publish_exports(coordination, OLDER, client_of=lambda _: "")
    read = keys_of(coordination, OLDER.id)
    publish_disk(coordination, NEWER)
    assert not delete_keys(coordination, read)
    assert published(coordination) == NEWER
    assert delete_keys(coordination, keys_of(coordination, OLDER.id))
    assert keys_of(coordination, OLDER.id) == ()
