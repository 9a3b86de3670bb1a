"""What the file backend does with a lock that is not given back, a folder that is gone, and a pid that was given out again."""

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sanderling.clock import ManualClock, SystemClock
from sanderling.errors import ImageFailed, Unavailable
from sanderling.images.files import FileImages
from sanderling.settings import Images as Bounds
from tests.parts.image_client import ImageClient

SIZE = 1 << 20


@pytest.fixture
def bounds(tmp_path: Path) -> Bounds:
    return Bounds(backend="files", folder=str(tmp_path / "images"))


@pytest.fixture
def images(bounds: Bounds) -> FileImages:
    return FileImages(bounds, clock=SystemClock())


@contextmanager
def lock_held(bounds: Bounds) -> Iterator[None]:
    lock = os.open(Path(bounds.folder) / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def test_a_change_does_not_wait_for_ever_for_another_process(bounds: Bounds) -> None:
    images = FileImages(bounds, clock=ManualClock())
    images.create("a", SIZE, metadata={"key": "v1"})
    with lock_held(bounds):
        for change in (
            lambda: images.create("b", SIZE, metadata={}),
            lambda: images.remove("a"),
            lambda: images.set_metadata("a", "key", "v2", expected="v1"),
        ):
            with pytest.raises(Unavailable):
                change()
        assert images.get_metadata("a") == {"key": "v1"}
    assert images.set_metadata("a", "key", "v2", expected="v1")


def test_a_folder_that_is_gone_is_an_outage_and_not_a_missing_image(images: FileImages, bounds: Bounds) -> None:
    images.create("a", SIZE, metadata={})
    shutil.move(bounds.folder, f"{bounds.folder}.away")
    for call in (images.ping, images.touch, images.list, images.capacity, lambda: images.stat("a"), lambda: images.remove("a")):
        with pytest.raises(Unavailable):
            call()
    shutil.move(f"{bounds.folder}.away", bounds.folder)
    images.ping()
    assert images.stat("a").size_bytes == SIZE


def test_what_a_crash_left_of_a_creation_is_no_image_and_is_completed(images: FileImages, bounds: Bounds) -> None:
    (Path(bounds.folder) / "a.img.new").write_bytes(b"half")
    assert images.list() == ()
    images.create("a", SIZE, metadata={"key": "value"})
    assert images.stat("a").size_bytes == SIZE
    assert images.list() == ("a",)


def test_a_creation_that_fails_half_way_leaves_no_image(images: FileImages) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(ImageFailed):
            images.create("a", SIZE, metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert images.list() == ()
    images.create("a", SIZE, metadata={})
    assert images.stat("a").size_bytes == SIZE


def test_what_a_crash_left_of_a_removal_is_not_inherited(images: FileImages, bounds: Bounds) -> None:
    images.create("a", SIZE, metadata={"key": "old"})
    (Path(bounds.folder) / "a.img").unlink()
    images.create("a", SIZE, metadata={"key": "new"})
    assert images.get_metadata("a") == {"key": "new"}
    (Path(bounds.folder) / "a.img").unlink()
    images.remove("a")
    assert [path.name for path in Path(bounds.folder).iterdir()] == [".lock"]


def test_a_process_that_was_given_the_pid_of_a_dead_client_is_left_alone(images: FileImages) -> None:
    images.create("a", SIZE, metadata={})
    client = ImageClient(images.backing_store("a"))
    try:
        pid, started = client.client.removeprefix("pid:").split(":")
        former = f"pid:{pid}:{int(started) - 1}"
        assert images.is_fenced(former)
        images.fence(former)
        assert client.write()
    finally:
        client.stop()


def test_an_image_takes_no_room_before_it_is_written(images: FileImages) -> None:
    images.create("a", 1 << 40, metadata={})
    assert Path(images.backing_store("a").location).stat().st_blocks == 0
