"""What an image store promises. Runs on every backend; this file is the definition.

Outages, and what a crash leaves behind, differ too much between backends: test_images_rbd.py, test_images_files.py.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.lab.parts.daemons import CLOCK, waited
from sanderling.clock import SystemClock
from sanderling.errors import Conflict, InUse, InvalidInput, NotFound
from sanderling.images import connect
from sanderling.images.base import Image, Images
from sanderling.settings import Coordination, Settings
from sanderling.settings import Images as Bounds
from tests.parts.image_client import ImageClient, MemoryClient, block_of
from tests.simulation.ceph import Ceph, MemoryImages

SIZE = 8 << 20
KEY = "sanderling.disk"
FRESH = {KEY: "v1"}
AS_MADE = (KEY, "v1")

between_processes = pytest.mark.parametrize("backend", ["files", "rbd"], indirect=True)  # what is in memory has but one


@dataclass(frozen=True, slots=True)
class Backend:
    """A store, and the settings by which another process reaches the same one."""

    images: Images
    settings: Bounds

    @contextmanager
    def client(self, name: str, *, byte: str = "a", restless: bool = False) -> Iterator[ImageClient]:
        """Another process that has the image open."""
        client = ImageClient(self.images.backing_store(name), byte=byte, restless=restless)
        try:
            yield client
        finally:
            client.stop()
            self.images.fence(client.client)  # Ceph lists a dead client for 30 s, one that is fenced no longer

    def block(self, name: str) -> bytes:
        return block_of(self.images.backing_store(name))

    def again(self) -> Images:
        """The same store, as another process has it."""
        return reached(self.settings)


@dataclass(frozen=True, slots=True)
class Memory(Backend):
    """The simulated Ceph, all of it in this process."""

    ceph: Ceph

    @contextmanager
    def client(self, name: str, *, byte: str = "a", restless: bool = False) -> Iterator[Any]:
        client = MemoryClient(self.ceph, name, byte)
        yield client
        client.stop()

    def block(self, name: str) -> bytes:
        return self.ceph.data.blocks.get((name, 0), bytes(512))

    def again(self) -> Images:
        return MemoryImages(self.ceph)


def reached(settings: Bounds) -> Images:
    return connect(Settings(images=settings, coordination=Coordination(backend="embedded")), clock=SystemClock())


@pytest.fixture
def files(tmp_path: Path) -> Bounds:
    return Bounds(backend="files", folder=str(tmp_path / "images"), operation_timeout_s=20)


@pytest.fixture
def rbd(ceph: Any) -> Bounds:
    return Bounds(backend="rbd", ceph_conf=ceph.conf, ceph_user="admin", pool=ceph.pool, operation_timeout_s=20)


@pytest.fixture(params=["files", "rbd", "memory"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "memory":
        ceph = Ceph(SystemClock())
        yield Memory(MemoryImages(ceph), Bounds(), ceph)
        return
    settings = request.getfixturevalue(request.param)
    images = reached(settings)
    yield Backend(images, settings)
    images.close()


@pytest.fixture
def name(backend: Backend, unique: str) -> Iterator[str]:
    """A name that no image has; whatever the test makes of it is gone afterwards."""
    yield unique
    backend.images.remove(unique)


@pytest.fixture
def image(backend: Backend, name: str) -> str:
    backend.images.create(name, SIZE, metadata=FRESH)
    return name


def test_an_image_has_the_size_and_the_metadata_it_was_made_with(backend: Backend, name: str) -> None:
    backend.images.create(name, SIZE, metadata={KEY: '{"name": "väl"}', "other": "two\nlines"})
    assert backend.images.stat(name) == Image(name, SIZE)
    assert backend.images.get_metadata(name) == {KEY: '{"name": "väl"}', "other": "two\nlines"}
    assert name in backend.images.list()


def test_making_an_image_again_changes_nothing(backend: Backend, image: str) -> None:
    with backend.client(image) as client:
        assert client.write()
    assert backend.images.set_metadata(image, KEY, "v2", expected="v1")
    backend.images.create(image, SIZE, metadata=FRESH)
    assert backend.images.get_metadata(image) == {KEY: "v2"}
    assert backend.block(image) == b"a" * 512


def test_making_an_image_again_adds_the_metadata_that_a_crash_left_out(backend: Backend, name: str) -> None:
    backend.images.create(name, SIZE, metadata={})
    backend.images.create(name, SIZE, metadata=FRESH)
    assert backend.images.get_metadata(name) == FRESH


def test_making_an_image_again_with_another_size_is_refused(backend: Backend, image: str) -> None:
    with pytest.raises(Conflict):
        backend.images.create(image, 2 * SIZE, metadata=FRESH)
    assert backend.images.stat(image).size_bytes == SIZE


def test_an_image_made_by_several_at_once_is_made_once(backend: Backend, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        makers = [pool.submit(backend.images.create, name, SIZE, metadata=FRESH) for _ in range(8)]
    for maker in makers:
        maker.result()
    assert backend.images.stat(name) == Image(name, SIZE)
    assert backend.images.get_metadata(name) == FRESH


def test_a_removed_image_is_gone_with_its_metadata(backend: Backend, image: str) -> None:
    backend.images.remove(image)
    assert image not in backend.images.list()
    backend.images.create(image, 2 * SIZE, metadata={})
    assert backend.images.get_metadata(image) == {}


def test_removing_what_is_not_there_is_no_error(backend: Backend, name: str) -> None:
    backend.images.remove(name)


def test_an_image_that_somebody_has_open_is_not_removed(backend: Backend, image: str) -> None:
    with backend.client(image) as client:
        with pytest.raises(InUse) as refused:
            backend.images.remove(image)
        assert refused.value.context["clients"] == [client.client]
        assert client.write()
    assert backend.images.get_metadata(image) == FRESH
    backend.images.remove(image)
    assert image not in backend.images.list()


def test_a_refused_removal_does_not_hide_the_image_for_a_moment(backend: Backend, image: str) -> None:
    def refused() -> None:
        for _ in range(40):
            with pytest.raises(InUse):
                backend.images.remove(image)

    watcher = backend.again()
    with backend.client(image), ThreadPoolExecutor(1) as pool:
        removals = pool.submit(refused)
        while not removals.done():
            assert watcher.stat(image) == Image(image, SIZE)
        removals.result()


def test_what_is_not_there_is_said_to_be_missing(backend: Backend, name: str) -> None:
    for call in (backend.images.stat, backend.images.get_metadata, backend.images.clients):
        with pytest.raises(NotFound):
            call(name)
    with pytest.raises(NotFound):
        backend.images.set_metadata(name, KEY, "v1", expected=None)
    assert name not in backend.images.list()


def test_metadata_is_written_only_over_what_is_expected(backend: Backend, image: str) -> None:
    assert not backend.images.set_metadata(image, KEY, "v2", expected=None)
    assert not backend.images.set_metadata(image, KEY, "v2", expected="v0")
    assert not backend.images.set_metadata(image, "other", "v2", expected="v1")
    assert not backend.images.set_metadata(image, "other", "v2", expected="")
    assert backend.images.get_metadata(image) == FRESH
    assert backend.images.set_metadata(image, KEY, "", expected="v1")
    assert not backend.images.set_metadata(image, KEY, "v2", expected=None)
    assert backend.images.set_metadata(image, KEY, "väl", expected="")
    assert not backend.images.set_metadata(image, KEY, "v2", expected="väg")
    assert backend.images.set_metadata(image, "other", "x" * 65536, expected=None)
    assert backend.images.get_metadata(image) == {KEY: "väl", "other": "x" * 65536}


def test_of_several_that_expect_the_same_exactly_one_writes(backend: Backend, image: str) -> None:
    others = [backend.again() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for turn in range(1, 21):
            expected, wanted = f"v{turn}", f"v{turn + 1}"
            tries = [pool.submit(other.set_metadata, image, KEY, wanted, expected=expected) for other in others]
            assert sorted(done.result() for done in tries) == [False, False, False, True]


def count_up(settings: Bounds, image: str, times: int) -> int:
    """Add one to the number under `count`, `times` times; how many tries that took."""
    images, tries, added = reached(settings), 0, 0
    while added < times:
        held = images.get_metadata(image).get("count")
        added += images.set_metadata(image, "count", str(int(held or 0) + 1), expected=held)
        tries += 1
    return tries


@between_processes
def test_no_update_of_metadata_is_lost_between_processes_and_new_ones_read_it(backend: Backend, image: str) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        counters = [pool.submit(count_up, backend.settings, image, 40) for _ in range(2)]
        assert sum(counter.result() for counter in counters) >= 80
    assert backend.images.get_metadata(image) == FRESH | {"count": "80"}
    assert backend.again().get_metadata(image) == FRESH | {"count": "80"}


@between_processes
def test_a_process_killed_while_it_writes_metadata_leaves_it_whole_and_free(backend: Backend, image: str) -> None:
    for turn in range(1, 6):
        writer = multiprocessing.get_context("spawn").Process(target=count_up, args=(backend.settings, image, 10**9))
        writer.start()
        try:
            waited(lambda: int(written(backend, image)) >= 10 * turn, within_s=30, what="the writer has written")  # noqa: B023
        finally:
            writer.kill()
            writer.join()
        held = written(backend, image)
        assert backend.images.set_metadata(image, "count", str(int(held) + 10), expected=held)


def written(backend: Backend, image: str) -> str:
    return backend.images.get_metadata(image).get("count", "0")


def test_clients_are_those_who_have_the_image_open(backend: Backend, image: str) -> None:
    assert backend.images.clients(image) == ()
    with backend.client(image) as first, backend.client(image) as second:
        assert backend.images.clients(image) == tuple(sorted([first.client, second.client]))
    backend.images.get_metadata(image)
    assert backend.images.clients(image) == ()


def test_what_is_written_through_the_backing_store_stays(backend: Backend, image: str) -> None:
    with backend.client(image, byte="b") as client:
        assert client.write()
    assert backend.again().stat(image).size_bytes == SIZE
    assert backend.block(image) == b"b" * 512


def test_no_write_of_a_busy_client_succeeds_after_the_fence(backend: Backend, image: str) -> None:
    with backend.client(image, restless=True) as client:
        client.wait_for_a_write(succeeded=True)
        assert not backend.images.is_fenced(client.client)
        backend.images.fence(client.client)
        fenced_at = CLOCK.monotonic()
        client.wait_for_a_write(succeeded=False)
        client.stop()
        assert [write for write in client.writes if write.began > fenced_at and write.succeeded] == []
        assert backend.images.is_fenced(client.client)


def test_no_write_of_an_idle_client_succeeds_after_the_fence(backend: Backend, image: str) -> None:
    with backend.client(image) as client:
        assert client.write()
        backend.images.fence(client.client)
        assert not client.write()
        assert not client.write()


def test_a_frozen_client_that_was_fenced_cannot_undo_what_its_heir_wrote(backend: Backend, image: str) -> None:
    with backend.client(image, byte="a", restless=True) as owner:
        owner.wait_for_a_write(succeeded=True)
        owner.pause()
        backend.images.fence(owner.client)
        with backend.client(image, byte="b") as heir:
            assert heir.write()
            owner.resume()
            owner.wait_for_a_write(succeeded=False)
            assert backend.block(image) == b"b" * 512
            assert heir.write()


def test_the_fence_hits_one_client_and_no_other(backend: Backend, image: str) -> None:
    with backend.client(image) as one, backend.client(image) as other:
        backend.images.fence(one.client)
        assert not one.write()
        assert other.write()
        assert not backend.images.is_fenced(other.client)
    assert backend.images.set_metadata(image, KEY, "v2", expected="v1")


def test_fencing_twice_or_what_has_ended_is_no_error(backend: Backend, image: str) -> None:
    with backend.client(image) as client:
        backend.images.fence(client.client)
        backend.images.fence(client.client)
    with backend.client(image) as ended:
        ended.stop()
        backend.images.fence(ended.client)
        assert backend.images.is_fenced(ended.client)


def test_another_store_object_knows_of_the_fence(backend: Backend, image: str) -> None:
    with backend.client(image) as client:
        backend.images.fence(client.client)
        assert backend.again().is_fenced(client.client)


def test_an_image_is_removable_as_soon_as_its_client_is_fenced(backend: Backend, image: str) -> None:
    with backend.client(image) as client:
        backend.images.fence(client.client)
        backend.images.remove(image)
    assert image not in backend.images.list()


@pytest.mark.parametrize("client", ["", "unknown", "10.0.0.1:0/0", "pid:0:1", "pid:1", "10.0.0.1", "pid:1:x"])
def test_what_names_no_client_is_refused(backend: Backend, client: str) -> None:
    with pytest.raises(InvalidInput):
        backend.images.fence(client)
    with pytest.raises(InvalidInput):
        backend.images.is_fenced(client)


@pytest.mark.parametrize("wrong", ["", "../x", "a/b", "a@b", ".hidden", "a" * 101])
def test_a_name_that_could_mean_something_else_is_a_mistake(backend: Backend, wrong: str) -> None:
    with pytest.raises(AssertionError):
        backend.images.create(wrong, SIZE, metadata={})


def test_the_free_capacity_is_part_of_the_whole_where_it_is_known(backend: Backend) -> None:
    capacity = backend.images.capacity()
    assert capacity is None or 0 < capacity.free_bytes <= capacity.total_bytes


def test_a_store_that_answers_says_so_and_works_again_after_closing(backend: Backend, image: str) -> None:
    for asked in (backend.images.ping, backend.images.touch):
        asked()
        backend.images.close()
        asked()
    assert backend.images.stat(image).size_bytes == SIZE


def put(backend: Backend, image: str, byte: str) -> None:
    """Write the first block, by a client that has ended when this returns."""
    with backend.client(image, byte=byte) as client:
        assert client.write()


@pytest.fixture
def clone(backend: Backend, name: str) -> Iterator[str]:
    """The name of a clone, removed before the image that it is one of."""
    yield f"{name}-clone"
    backend.images.remove(f"{name}-clone")


def test_an_image_is_grown_once_keeps_its_data_and_never_shrinks(backend: Backend, image: str) -> None:
    put(backend, image, "a")
    for _ in range(2):
        backend.images.grow(image, 2 * SIZE)
    assert backend.images.stat(image).size_bytes == 2 * SIZE
    assert backend.block(image) == b"a" * 512
    with pytest.raises(Conflict):
        backend.images.grow(image, SIZE)
    assert backend.images.stat(image).size_bytes == 2 * SIZE
    with pytest.raises(NotFound):
        backend.images.grow(f"{image}-none", SIZE)


def test_an_image_takes_up_what_was_written_and_no_more(backend: Backend, image: str) -> None:
    assert backend.images.used_bytes(image) == 0
    put(backend, image, "a")
    assert 512 <= backend.images.used_bytes(image) <= 4 << 20


def test_rolling_back_brings_back_what_the_snapshot_holds(backend: Backend, image: str) -> None:
    put(backend, image, "a")
    for _ in range(2):
        backend.images.snapshot(image, "before")
    put(backend, image, "b")
    for _ in range(2):
        backend.images.roll_back(image, "before", only_if=AS_MADE, timeout_s=30)
        assert backend.block(image) == b"a" * 512
    assert backend.images.get_metadata(image) == FRESH
    with pytest.raises(NotFound):
        backend.images.roll_back(image, "none", only_if=AS_MADE, timeout_s=30)


def test_who_comes_too_late_to_roll_an_image_back_changes_nothing(backend: Backend, image: str) -> None:
    backend.images.snapshot(image, "before")
    put(backend, image, "b")
    backend.images.end_roll_back(image)
    for late in ((KEY, "what it was once"), ("another", "key")):
        with pytest.raises(Conflict, match="has changed"):
            backend.images.roll_back(image, "before", only_if=late, timeout_s=30)
    assert backend.block(image) == b"b" * 512


def test_taking_a_snapshot_again_keeps_what_the_first_did(backend: Backend, image: str) -> None:
    put(backend, image, "a")
    backend.images.snapshot(image, "before")
    put(backend, image, "b")
    backend.images.snapshot(image, "before")
    backend.images.roll_back(image, "before", only_if=AS_MADE, timeout_s=30)
    assert backend.block(image) == b"a" * 512


def test_snapshots_are_listed_oldest_first_with_their_size_and_time(backend: Backend, image: str) -> None:
    before = CLOCK.wall().replace(microsecond=0)
    backend.images.snapshot(image, "b-first")
    backend.images.grow(image, 2 * SIZE)
    backend.images.snapshot(image, "a-second")
    found = backend.images.snapshots(image)
    assert [(one.name, one.size_bytes, one.clones) for one in found] == [("b-first", SIZE, ()), ("a-second", 2 * SIZE, ())]
    assert all(before <= one.taken_at <= CLOCK.wall() for one in found)
    for _ in range(2):
        backend.images.remove_snapshot(image, "b-first")
    assert [one.name for one in backend.images.snapshots(image)] == ["a-second"]


def test_a_clone_begins_as_the_snapshot_and_goes_its_own_way(backend: Backend, image: str, clone: str) -> None:
    put(backend, image, "a")
    backend.images.snapshot(image, "before")
    put(backend, image, "b")
    for _ in range(2):
        backend.images.clone(image, "before", clone)
    assert (backend.images.stat(clone).size_bytes, backend.block(clone)) == (SIZE, b"a" * 512)
    assert KEY not in backend.images.get_metadata(clone), "it would say that it is the other disk"
    assert backend.images.set_metadata(clone, KEY, "its own", expected=None)
    backend.images.clone(image, "before", clone)
    assert backend.images.get_metadata(clone)[KEY] == "its own"
    put(backend, clone, "c")
    assert (backend.block(image), backend.block(clone)) == (b"b" * 512, b"c" * 512)
    with pytest.raises(NotFound):
        backend.images.clone(image, "none", f"{clone}-2")


def test_another_image_is_not_taken_for_a_clone(backend: Backend, image: str, clone: str) -> None:
    backend.images.snapshot(image, "before")
    backend.images.create(clone, SIZE, metadata=FRESH)
    with pytest.raises(Conflict):
        backend.images.clone(image, "before", clone)
    assert backend.images.get_metadata(clone) == FRESH


def test_an_image_goes_with_its_snapshots(backend: Backend, image: str) -> None:
    for name in ("one", "two"):
        backend.images.snapshot(image, name)
    backend.images.remove(image)
    assert image not in backend.images.list()
    backend.images.create(image, SIZE, metadata={})
    assert backend.images.snapshots(image) == ()
