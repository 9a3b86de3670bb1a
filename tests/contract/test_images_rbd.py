"""What the rbd backend does when Ceph does not answer, comes back, or shows the traces of a crash; on a cluster of its own."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import rados
import rbd as librbd

from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.daemons import run, waited
from sanderling.clock import Clock, SystemClock
from sanderling.errors import Fenced, InUse, NotFound, Unavailable
from sanderling.images import connect
from sanderling.images.base import Images
from sanderling.images.rbd import CALLS_MOST, RbdImages
from sanderling.settings import Coordination, Settings
from sanderling.settings import Images as Bounds
from tests.parts.image_client import ImageClient
from tests.parts.usage import used

SIZE = 8 << 20
NOBODY = "127.0.0.1:0/4294967295"
FRESH = {"sanderling.disk": "v1"}
AS_MADE = ("sanderling.disk", "v1")
WITHIN_S = 30.0  # far beyond the bounds set below, far below librados' own 300 s


@pytest.fixture(scope="module")
def own_ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    own_ceph = CephCluster(tmp_path_factory.mktemp("ceph"), objectstore="bluestore")
    try:
        own_ceph.start()
        yield own_ceph
    finally:
        own_ceph.stop()


@pytest.fixture
def bounds(own_ceph: CephCluster) -> Bounds:
    """Short bounds, on a configuration file that sets none itself."""
    used("Ceph", own_ceph.version)
    unbounded = Path(own_ceph.conf).with_name("unbounded.conf")
    unbounded.write_text(Path(own_ceph.conf).read_text().replace("client mount timeout = 5\n", ""))
    return Bounds(
        backend="rbd",
        ceph_conf=str(unbounded),
        ceph_user=own_ceph.user,
        pool=own_ceph.pool,
        connect_timeout_s=2,
        operation_timeout_s=2,
    )


def reached(bounds: Bounds, *, clock: Clock | None = None) -> Images:
    return connect(Settings(images=bounds, coordination=Coordination(backend="embedded")), clock=clock or SystemClock())


@pytest.fixture
def images(bounds: Bounds) -> Iterator[Images]:
    images = reached(replace(bounds, operation_timeout_s=20))
    yield images
    images.close()


@pytest.fixture
def pool(own_ceph: CephCluster) -> Iterator[Any]:
    """The pool as librados sees it, to do what a crash or an operator does."""
    bounded = {"rados_osd_op_timeout": "30", "rados_mon_op_timeout": "30"}  # pytest cannot interrupt a call of librados
    with (
        rados.Rados(conffile=own_ceph.conf, rados_id=own_ceph.user, conf=bounded) as connection,
        connection.open_ioctx(own_ceph.pool) as pool,
    ):
        yield pool


def calls(images: Images, image: str) -> dict[str, Callable[[], object]]:
    return {
        "create": lambda: images.create(f"{image}-new", SIZE, metadata={}),
        "remove": lambda: images.remove(f"{image}-none"),
        "stat": lambda: images.stat(image),
        "list": images.list,
        "get_metadata": lambda: images.get_metadata(image),
        "set_metadata": lambda: images.set_metadata(image, "key", "value", expected=None),
        "clients": lambda: images.clients(image),
        "fence": lambda: images.fence(NOBODY),
        "ping": images.ping,
        "touch": images.touch,
        "is_fenced": lambda: images.is_fenced(NOBODY),
        "capacity": images.capacity,
    }


def ended(asked: dict[str, Callable[[], object]]) -> dict[str, str]:
    """How each call ended, all made at once."""

    def end(call: Callable[[], object]) -> str:
        try:
            call()
        except Unavailable as problem:
            return f"unavailable: {problem.context['dependency']}"
        return "answered"

    with ThreadPoolExecutor(len(asked)) as threads:
        answers = {name: threads.submit(end, call) for name, call in asked.items()}
        return {name: answer.result(timeout=WITHIN_S) for name, answer in answers.items()}


def nothing_hangs() -> bool:
    return not any(thread.name.startswith("rbd: ") for thread in threading.enumerate())


@pytest.mark.parametrize("connected", [True, False], ids=["connected before", "never connected"])
def test_no_call_outlasts_its_bound_when_ceph_is_silent_and_all_work_when_it_is_back(
    own_ceph: CephCluster, bounds: Bounds, unique: str, *, connected: bool
) -> None:
    images = reached(bounds)
    reached(bounds).create(unique, SIZE, metadata={})
    if connected:
        images.ping()
    asked = calls(images, unique)
    own_ceph.pause()
    try:
        assert ended(asked) == dict.fromkeys(asked, "unavailable: ceph")
        waited(nothing_hangs, within_s=WITHIN_S, what="the threads of calls that were given up end")
    finally:
        own_ceph.resume()
    assert ended(asked) == dict.fromkeys(asked, "answered")


def test_no_call_outlasts_its_bound_without_an_osd_and_all_work_when_it_is_back(
    own_ceph: CephCluster, bounds: Bounds, unique: str
) -> None:
    images = reached(bounds)
    images.create(unique, SIZE, metadata={})
    asked = calls(images, unique)
    own_ceph.kill_osd()
    try:
        answers = ended(asked)
    finally:
        own_ceph.start_osd()
    only_the_monitor = {"is_fenced": "answered", "capacity": "answered"}
    assert answers == dict.fromkeys(asked, "unavailable: ceph") | only_the_monitor
    assert ended(asked) == dict.fromkeys(asked, "answered")


def test_metadata_that_was_acknowledged_and_a_fence_outlive_a_crash_of_ceph(
    own_ceph: CephCluster, images: Images, bounds: Bounds, unique: str
) -> None:
    images.create(unique, SIZE, metadata={"key": "v1"})
    client = ImageClient(images.backing_store(unique))
    try:
        assert client.write()
        images.fence(client.client)
        assert images.set_metadata(unique, "key", "v2", expected="v1")
        own_ceph.kill_osd()
        own_ceph.start_osd()
        assert not client.write()
        own_ceph.stop()
        own_ceph.start()
        assert images.get_metadata(unique) == {"key": "v2"}
        assert images.is_fenced(client.client)
        assert not client.write()
    finally:
        client.stop()


def test_a_fence_lasts_as_long_as_the_settings_say(own_ceph: CephCluster, images: Images, bounds: Bounds) -> None:
    images.fence(NOBODY)
    said, _ = json.JSONDecoder().raw_decode(own_ceph.ceph("osd", "blocklist", "ls", "--format", "json").strip())
    until = next(datetime.fromisoformat(entry["until"]) for entry in said if entry["addr"] == NOBODY)
    assert until > datetime.now(UTC) + timedelta(seconds=bounds.fence_expire_s) - timedelta(hours=1)


def test_who_was_fenced_itself_is_told_and_goes_on_as_a_new_client(images: Images, bounds: Bounds, unique: str) -> None:
    images.create(unique, SIZE, metadata={})
    fenced = images._connection.cluster.get_addrs()  # type: ignore[attr-defined]
    reached(bounds).fence(fenced)
    with pytest.raises(Fenced):
        images.set_metadata(unique, "key", "value", expected=None)
    assert images.set_metadata(unique, "key", "value", expected=None)


def leave_a_name(pool: Any, image: str) -> None:
    pool.write_full(f"rbd_id.{image}", (4).to_bytes(4, "little") + b"dead")


def leave_a_name_and_an_entry(pool: Any, image: str) -> None:
    librbd.RBD().create(pool, image, SIZE, old_format=False, features=librbd.RBD_FEATURE_LAYERING)
    with librbd.Image(pool, image, read_only=True) as made:
        header = f"rbd_header.{made.id()}"
    pool.remove_object(header)


def leave_an_image_without_metadata(pool: Any, image: str) -> None:
    librbd.RBD().create(pool, image, SIZE, old_format=False, features=librbd.RBD_FEATURE_LAYERING)


CRASHES = [leave_a_name, leave_a_name_and_an_entry, leave_an_image_without_metadata]


@pytest.mark.parametrize("crash", CRASHES)
def test_an_image_that_a_crash_left_half_made_is_completed(
    images: Images, pool: Any, unique: str, crash: Callable[[Any, str], None]
) -> None:
    crash(pool, unique)
    images.create(unique, SIZE, metadata={"key": "value"})
    assert images.stat(unique).size_bytes == SIZE
    assert images.get_metadata(unique) == {"key": "value"}
    images.remove(unique)
    assert unique not in images.list()


@pytest.mark.parametrize("crash", CRASHES)
def test_an_image_that_a_crash_left_half_made_is_removed(
    images: Images, pool: Any, unique: str, crash: Callable[[Any, str], None]
) -> None:
    crash(pool, unique)
    images.remove(unique)
    assert [found.key for found in pool.list_objects() if unique in found.key] == []
    assert unique not in images.list()


def test_a_large_image_is_given_back_in_bounded_calls_that_go_on_where_one_stopped(
    bounds: Bounds, pool: Any, unique: str
) -> None:
    class Hurried(SystemClock):
        """Every look at it finds the deadline passed."""

        def __init__(self) -> None:
            self.looks = 0

        def monotonic(self) -> float:
            self.looks += 1
            return self.looks * 1e6

    bounds = replace(bounds, operation_timeout_s=60)
    reached(bounds).create(unique, 130 << 30, metadata={})
    left = []
    for _ in range(2):
        images = reached(bounds, clock=Hurried())
        with pytest.raises(Unavailable):
            images.remove(unique)
        assert unique not in images.list()
        with pytest.raises(NotFound):
            images.stat(unique)
        (trashed,) = (entry["id"] for entry in librbd.RBD().trash_list(pool) if entry["name"] == unique)
        with librbd.Image(pool, image_id=trashed, read_only=True) as image:
            left.append(image.size() >> 30)
    assert left == [66, 2]
    reached(bounds).remove(unique)
    assert [entry for entry in librbd.RBD().trash_list(pool) if entry["name"] == unique] == []


def test_an_image_that_was_opened_while_it_was_being_removed_comes_back(
    own_ceph: CephCluster, images: Images, unique: str
) -> None:
    images.create(unique, SIZE, metadata={"key": "value"})
    client = ImageClient(images.backing_store(unique))
    try:
        own_ceph.rbd("trash", "mv", f"{own_ceph.pool}/{unique}")
        with pytest.raises(InUse):
            images.remove(unique)
        assert images.get_metadata(unique) == {"key": "value"}
        assert client.write()
    finally:
        client.stop()


def test_what_has_clones_stays_until_they_are_gone(images: Images, unique: str) -> None:
    clone = f"{unique}-clone"
    images.create(unique, SIZE, metadata={})
    for snapshot in ("cloned", "other"):
        images.snapshot(unique, snapshot)
    images.clone(unique, "cloned", clone)
    with pytest.raises(InUse, match=clone):
        images.remove_snapshot(unique, "cloned")
    with pytest.raises(InUse, match=clone):
        images.remove(unique)
    assert {one.name for one in images.snapshots(unique)} == {"cloned", "other"}
    images.remove(clone)
    images.remove_snapshot(unique, "cloned")
    images.remove(unique)
    assert unique not in images.list()


def test_a_clone_that_its_snapshot_was_never_told_of_is_made_again(own_ceph: CephCluster, images: Images, unique: str) -> None:
    clone = f"{unique}-clone"
    images.create(unique, SIZE, metadata={})
    images.snapshot(unique, "kept")
    images.clone(unique, "kept", clone)
    run(["rados", "--conf", own_ceph.conf, "-p", own_ceph.pool, "rm", "rbd_children"])
    assert [one.clones for one in images.snapshots(unique)] == [()], "as if its maker had died in between"
    images.clone(unique, "kept", clone)
    assert [one.clones for one in images.snapshots(unique)] == [(clone,)]
    images.remove(clone)
    images.remove(unique)


def test_who_writes_is_told_again_of_a_snapshot_whose_maker_may_have_died(
    own_ceph: CephCluster, images: Images, unique: str
) -> None:
    images.create(unique, SIZE, metadata={})
    images.snapshot(unique, "kept")
    told = threading.Event()
    ceph = rados.Rados(conffile=own_ceph.conf, rados_id=own_ceph.user)
    ceph.connect(timeout=10)
    try:
        with ceph.open_ioctx(own_ceph.pool) as pool, librbd.Image(pool, unique, read_only=True) as image:
            watch = pool.watch(f"rbd_header.{image.id()}", lambda *_: told.set())
            try:
                images.snapshot(unique, "kept")
                assert told.wait(10)
            finally:
                watch.close()
    finally:
        ceph.shutdown()
    images.remove(unique)


@pytest.mark.parametrize("by", ["the next", "who ends it"])
def test_who_was_rolling_an_image_back_and_may_be_still_is_fenced(
    own_ceph: CephCluster, images: Images, unique: str, by: str
) -> None:
    images.create(unique, SIZE, metadata=FRESH)
    images.snapshot(unique, "kept")
    earlier = ImageClient(images.backing_store(unique))
    try:
        own_ceph.rbd("image-meta", "set", f"{own_ceph.pool}/{unique}", "sanderling.roller", earlier.client)
        if by == "the next":
            images.roll_back(unique, "kept", only_if=AS_MADE, timeout_s=20)
        else:
            images.end_roll_back(unique)
        assert images.is_fenced(earlier.client)
        assert not earlier.write()
        told = own_ceph.rbd("image-meta", "get", f"{own_ceph.pool}/{unique}", "sanderling.roller").strip()
        assert told.endswith(" ended"), "and nobody rolls it back now"
        assert images.get_metadata(unique) == FRESH, "that is the store's own"
    finally:
        earlier.stop()


def test_calls_that_do_not_end_leave_no_more_threads_than_are_allowed(bounds: Bounds) -> None:
    images, answers = RbdImages(bounds, clock=SystemClock()), threading.Event()
    try:
        for _ in range(CALLS_MOST):
            with pytest.raises(rados.TimedOut):
                images._in_thread("hang", answers.wait, 0.0)
        with pytest.raises(Unavailable, match="no answer within"):
            images.ping()
    finally:
        answers.set()
    waited(lambda: sum(thread.name == "rbd: hang" for thread in threading.enumerate()) == 0, within_s=10, what="they have ended")
    images.ping()
    images.close()


def test_of_two_that_roll_an_image_back_at_once_one_leaves_it_to_the_other(bounds: Bounds, unique: str) -> None:
    class Late(RbdImages):
        """Another rolls back between its look at the image and its own announcement."""

        def fence(self, client: str) -> None:
            self.set_metadata(unique, "sanderling.roller", "another", expected=NOBODY)

    late = Late(replace(bounds, operation_timeout_s=20), clock=SystemClock())
    try:
        late.create(unique, SIZE, metadata=FRESH)
        late.snapshot(unique, "kept")
        late.set_metadata(unique, "sanderling.roller", NOBODY, expected=None)
        with pytest.raises(Unavailable, match="another rolls"):
            late.roll_back(unique, "kept", only_if=AS_MADE, timeout_s=20)
    finally:
        late.close()


def test_who_holds_a_lock_counts_as_a_client(images: Images, own_ceph: CephCluster, unique: str) -> None:
    images.create(unique, SIZE, metadata={})
    own_ceph.rbd("lock", "add", f"{own_ceph.pool}/{unique}", "mine")
    (client,) = images.clients(unique)
    with pytest.raises(InUse):
        images.remove(unique)
    assert not images.is_fenced(client)


def test_images_have_no_exclusive_lock_and_their_metadata_is_what_the_rbd_command_shows(
    own_ceph: CephCluster, images: Images, unique: str
) -> None:
    images.create(unique, SIZE, metadata={"sanderling.disk": "väl"})
    assert json.loads(own_ceph.rbd("info", f"{own_ceph.pool}/{unique}", "--format", "json"))["features"] == ["layering"]
    assert own_ceph.rbd("image-meta", "get", f"{own_ceph.pool}/{unique}", "sanderling.disk").strip() == "väl"
    own_ceph.rbd("image-meta", "set", f"{own_ceph.pool}/{unique}", "sanderling.disk", "by hand")
    assert images.set_metadata(unique, "sanderling.disk", "v2", expected="by hand")


def test_the_capacity_is_unknown_without_a_manager_daemon(images: Images) -> None:
    assert images.capacity() is None


@pytest.mark.parametrize("wrong", [{"ceph_conf": "/nowhere/ceph.conf"}, {"pool": "nowhere"}], ids=str)
def test_what_is_set_wrong_is_named(bounds: Bounds, wrong: dict[str, str]) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        reached(replace(bounds, **wrong)).ping()  # type: ignore[arg-type]


def sockets() -> int:
    """Those of this process."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # a thread of librados closed it meanwhile
            count += os.readlink(link).startswith("socket:")
    return count


def test_a_store_that_is_asked_again_and_again_while_it_is_away_leaves_nothing_behind(
    own_ceph: CephCluster, bounds: Bounds
) -> None:
    """A worker that is cut off asks every other second, for as long as that lasts."""
    images = reached(replace(bounds, connect_timeout_s=1))
    before, threads = sockets(), len(os.listdir("/proc/self/task"))
    own_ceph.pause()
    try:
        for _ in range(3):
            with pytest.raises(Unavailable):
                images.touch()
        waited(lambda: sockets() <= before, within_s=WITHIN_S, what="no socket is left")
        waited(lambda: len(os.listdir("/proc/self/task")) <= threads, within_s=WITHIN_S, what="no thread is left")
    finally:
        own_ceph.resume()


def test_a_store_that_is_closed_gives_its_connection_back(bounds: Bounds) -> None:
    before = sockets()
    for _ in range(5):
        images = reached(bounds)
        images.ping()
        images.close()
    waited(lambda: sockets() <= before, within_s=WITHIN_S, what="no socket is left")
