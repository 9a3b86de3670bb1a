"""Images on Ceph: RBD with layering as the only feature, and the OSD blocklist as the fence.

Why not simply call librbd: it has calls that no timeout of its own bounds, and no compare-and-set for an image's metadata.
"""

import errno
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC
from typing import Any, Final, TypeVar

import rados
import rbd
import structlog

from sanderling.bounded import Bounded, Late
from sanderling.clock import Clock
from sanderling.errors import Conflict, Exhausted, Fenced, ImageFailed, InUse, InvalidInput, NotFound, Problem, Unavailable
from sanderling.images.base import NAME, BackingStore, Capacity, Image, Snapshot
from sanderling.settings import Images as Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CLIENT = re.compile(r"(?P<address>\S+:0)/(?P<nonce>[1-9][0-9]*)")
CALLS_MOST: Final = 64  # at once, those included that were given up and have not ended
_ROLLER: Final = "sanderling.roller"  # of an image: the client that rolls it back, or did; never absent again
_ENDED: Final = " ended"
_SLICE_BYTES: Final = 64 << 30  # how much of an image is given back between two looks at the clock
_UNREACHABLE = {errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class RbdImages:
    """One connection for all threads, made at the first call and made anew after a failure.

    A call lasts at most `connect_timeout_s` + `operation_timeout_s`. A client is named as Ceph names it, "address:0/nonce".
    A client that died without being fenced stays listed, and keeps its image `InUse`, for `osd_client_watch_timeout` (30 s).
    """

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._bounded = Bounded(CALLS_MOST)
        self._connection: _Connection | None = None

    def create(self, name: str, size_bytes: int, *, metadata: dict[str, str]) -> None:
        assert NAME.fullmatch(name), name

        def work(_: Any, pool: Any) -> None:
            held = _create(pool, name, size_bytes)
            if held != size_bytes:
                raise Conflict(f"image {name} is there with {held} bytes, not {size_bytes}", size_bytes=held)
            with rbd.Image(pool, name, read_only=True) as image:
                header = _header(image)
            for key, value in metadata.items():
                self._written(pool, header, key, value, expected={key: None})

        self._ask(f"create image {name}", work)

    def remove(self, name: str) -> None:
        """As promised; a large image takes several calls (`Unavailable` until the last), each going on where one stopped.

        It goes to the pool's trash first, where nobody can open it by name any more, and gives its space back from there.
        """
        deadline = self._clock.monotonic() + self._settings.operation_timeout_s

        def work(cluster: Any, pool: Any) -> None:
            _move_to_trash(cluster, pool, name)
            trashed = [entry["id"] for entry in rbd.RBD().trash_list(pool) if entry["name"] == name]
            for image_id in trashed:
                _restore_if_open(cluster, pool, image_id, name)
                self._empty(pool, image_id, deadline)
                rbd.RBD().trash_remove(pool, image_id, True)

        self._ask(f"remove image {name}", work)

    def grow(self, name: str, size_bytes: int) -> None:
        def work(_: Any, pool: Any) -> None:
            with rbd.Image(pool, name) as image:
                if image.size() > size_bytes:
                    raise Conflict(f"image {name} has {image.size()} bytes already; it cannot be made smaller")
                if image.size() < size_bytes:
                    image.resize(size_bytes, False)  # never by a late attempt what another has grown further

        self._ask(f"grow image {name}", work)

    def used_bytes(self, name: str) -> int:
        """Counted by the objects that are there, so the time it takes grows with the image's size."""
        deadline = self._clock.monotonic() + self._settings.operation_timeout_s

        def work(_: Any, pool: Any) -> int:
            extents: list[int] = []

            def count(_: int, length: int, exists: bool) -> None:
                extents.append(length * exists)

            with rbd.Image(pool, name, read_only=True) as image:
                for start in range(0, image.size(), _SLICE_BYTES):
                    length = min(_SLICE_BYTES, image.size() - start)
                    image.diff_iterate(start, length, None, count, include_parent=False)
                    if self._clock.monotonic() > deadline:
                        raise Unavailable(f"image {name} is too large to be counted in time", dependency="ceph")
            return sum(extents)

        return self._ask(f"count image {name}", work)

    def snapshot(self, name: str, snapshot: str) -> None:
        """A writer's client is told before this returns, so it orders its writes by the snapshot from then on.

        One that is there may have lost its maker before that was told, so it is told again: an empty notification of the header
        is librbd's word for "read it again".
        """
        assert NAME.fullmatch(snapshot), snapshot

        def work(_: Any, pool: Any) -> None:
            with rbd.Image(pool, name) as image:
                try:
                    image.create_snap(snapshot)
                except rbd.ImageExists:
                    pool.notify(_header(image), "", timeout_ms=math.ceil(self._settings.operation_timeout_s * 1000))

        self._ask(f"take snapshot {snapshot} of image {name}", work)

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        def work(_: Any, pool: Any) -> tuple[Snapshot, ...]:
            with rbd.Image(pool, name, read_only=True) as image:
                return tuple(
                    Snapshot(
                        entry["name"],
                        entry["size"],
                        image.get_snap_timestamp(entry["id"]).replace(tzinfo=UTC),
                        _clones(image, entry["name"]),
                    )
                    for entry in sorted(_snapshots(image), key=lambda entry: int(entry["id"]))
                )

        return self._ask(f"list snapshots of image {name}", work)

    def roll_back(self, name: str, snapshot: str, *, only_if: tuple[str, str], timeout_s: float) -> None:
        """By a client of its own, which the image names until it has ended in good order: whoever comes next fences it first."""
        key, value = only_if
        if snapshot not in [one.name for one in self.snapshots(name)]:
            raise NotFound(f"image {name} has no snapshot {snapshot}", snapshot=snapshot)
        before = self._roller(name)
        if before and not before.endswith(_ENDED):
            self.fence(before)
        connection = self._made()
        client = str(connection.cluster.get_addrs())

        def work() -> None:
            try:
                with connection.cluster.open_ioctx(self._settings.pool) as pool, rbd.Image(pool, name) as image:
                    image.rollback_to_snap(snapshot)
            finally:
                connection.released()

        try:
            if not self._compare_and_set(name, _ROLLER, client, expected={_ROLLER: before, key: value}):
                if self.get_metadata(name).get(key) != value:
                    raise Conflict(f"{key} of image {name} has changed; it is not rolled back")
                raise Unavailable(f"another rolls image {name} back at this moment; it is tried again", dependency="ceph")
        except BaseException:
            connection.released()
            raise
        try:
            with self._translated(f"roll image {name} back to {snapshot}"):
                self._in_thread(f"roll back {name}", work, timeout_s)
        except BaseException:
            self.fence(client)
            raise
        self.set_metadata(name, _ROLLER, f"{client}{_ENDED}", expected=client)  # unless whoever came next has fenced it

    def end_roll_back(self, name: str) -> None:
        client = self._roller(name)
        if client and not client.endswith(_ENDED):
            self.fence(client)
            self.set_metadata(name, _ROLLER, f"{client}{_ENDED}", expected=client)

    def _roller(self, name: str) -> str | None:
        """The client that rolled the image back last, marked when it has ended."""

        def work(_: Any, pool: Any) -> str | None:
            with rbd.Image(pool, name, read_only=True) as image:
                return dict(image.metadata_list()).get(_ROLLER)

        return self._ask(f"look for a roll-back of image {name}", work)

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        def work(_: Any, pool: Any) -> None:
            with rbd.Image(pool, name) as image:
                if snapshot in [entry["name"] for entry in _snapshots(image)]:
                    _remove_snapshot(image, name, snapshot)

        self._ask(f"remove snapshot {snapshot} of image {name}", work)

    def clone(self, name: str, snapshot: str, clone: str) -> None:
        """Linked to the snapshot, which is protected from then on: it goes only after its clones."""
        assert NAME.fullmatch(clone), clone

        def work(_: Any, pool: Any) -> None:
            with rbd.Image(pool, name) as image:
                if snapshot not in [entry["name"] for entry in _snapshots(image)]:
                    raise NotFound(f"image {name} has no snapshot {snapshot}", snapshot=snapshot)
                if not image.is_protected_snap(snapshot):
                    image.protect_snap(snapshot)
            try:
                rbd.RBD().clone(pool, name, snapshot, pool, clone, features=rbd.RBD_FEATURE_LAYERING)
            except rbd.ImageExists:
                if not _is_clone(pool, clone, name, snapshot):
                    raise Conflict(f"image {clone} is there, and no clone of {name}@{snapshot}") from None
                with rbd.Image(pool, name, read_only=True) as image:
                    is_known = clone in _clones(image, snapshot)
                if not is_known:  # its maker died before it told the snapshot, which could be removed under it
                    rbd.RBD().remove(pool, clone)
                    rbd.RBD().clone(pool, name, snapshot, pool, clone, features=rbd.RBD_FEATURE_LAYERING)
            _remove_inherited_metadata(pool, name, clone)

        self._ask(f"clone {name}@{snapshot}", work)

    def stat(self, name: str) -> Image:
        return Image(name, self._ask(f"stat image {name}", lambda _, pool: _size(pool, name)))

    def list(self) -> tuple[str, ...]:
        return tuple(sorted(self._ask("list images", lambda _, pool: rbd.RBD().list(pool))))

    def get_metadata(self, name: str) -> dict[str, str]:
        def work(_: Any, pool: Any) -> dict[str, str]:
            with rbd.Image(pool, name, read_only=True) as image:
                return {key: value for key, value in image.metadata_list() if key != _ROLLER}

        return self._ask(f"read metadata of image {name}", work)

    def set_metadata(self, name: str, key: str, value: str, *, expected: str | None) -> bool:
        return self._compare_and_set(name, key, value, expected={key: expected})

    def backing_store(self, name: str) -> BackingStore:
        settings = self._settings
        return BackingStore("rbd", f"{settings.pool}/{name}", f"conf={settings.ceph_conf};id={settings.ceph_user}")

    def capacity(self) -> Capacity | None:
        """What this pool can hold, after replication; None while no manager daemon counts it."""
        report = self._ask("ask for capacity", lambda cluster, _: json.loads(_command(cluster, prefix="df", format="json")))
        stats = next((pool["stats"] for pool in report["pools"] if pool["name"] == self._settings.pool), None)
        if stats is None or stats["stored"] + stats["max_avail"] == 0:
            return None
        return Capacity(total_bytes=stats["stored"] + stats["max_avail"], free_bytes=stats["max_avail"])

    def clients(self, name: str) -> tuple[str, ...]:
        def work(cluster: Any, pool: Any) -> tuple[str, ...]:
            with rbd.Image(pool, name, read_only=True) as image:
                return _others(cluster, image)

        return self._ask(f"list clients of image {name}", work)

    def fence(self, client: str) -> None:
        """Blocklist the client, by nonce, for `fence_expire_s`; its watches go with it.

        An OSD refuses the client from the moment it has the map that says so. Every later client brings that map along, and an
        OSD takes it before it answers: no write of the fenced client lands behind what such a client has read or written.
        """
        _checked(client)

        def work(cluster: Any, pool: Any) -> None:
            expire = float(self._settings.fence_expire_s)
            _command(cluster, prefix="osd blocklist", blocklistop="add", addr=client, expire=expire)
            cluster.wait_for_latest_osdmap()
            _touch(pool)

        self._ask(f"fence {client}", work)
        log.info("client fenced", client=client)

    def is_fenced(self, client: str) -> bool:
        address = _checked(client)["address"]
        said = self._ask("read the blocklist", lambda cluster, _: _command(cluster, prefix="osd blocklist ls", format="json"))
        return any(entry["addr"] in {client, f"{address}/0"} for entry in _entries(said))

    def ping(self) -> None:
        """A monitor and an OSD answer."""

        def work(cluster: Any, pool: Any) -> None:
            _command(cluster, prefix="fsid")
            _touch(pool)

        self._ask("ping", work)

    def touch(self) -> None:
        """An OSD answers. Monitors are left out of it: once there is a connection, data can be reached without them."""
        self._ask("reach an OSD", lambda _, pool: _touch(pool))

    def close(self) -> None:
        with self._lock:
            unused, self._connection = self._connection, None
        if unused is not None:
            unused.released()

    def _ask(self, what: str, work: Callable[[Any, Any], T]) -> T:
        """Run `work(cluster, pool)` in a thread of its own: librados bounds neither waiting for a map nor registering a watch.

        A thread that was given up ends by the bounds that librados does have, or else when Ceph is back. There are
        `CALLS_MOST` at most; what is asked beyond waits for room, within its own bound.
        """
        bound_s = self._settings.connect_timeout_s + self._settings.operation_timeout_s
        with self._translated(what):
            return self._in_thread(what, lambda: self._on_cluster(work), bound_s)

    def _in_thread(self, what: str, work: Callable[[], T], bound_s: float) -> T:
        try:
            return self._bounded.run(work, name=f"rbd: {what}", within_s=bound_s)
        except Late:
            raise rados.TimedOut(f"no answer within {bound_s} s", errno.ETIMEDOUT) from None

    def _on_cluster(self, work: Callable[[Any, Any], T]) -> T:
        connection = self._connected()
        try:
            with connection.cluster.open_ioctx(self._settings.pool) as pool:
                return work(connection.cluster, pool)
        finally:
            connection.released()

    def _connected(self) -> "_Connection":
        """To be released by the caller."""
        with self._lock:
            if self._connection is not None:
                return self._connection.taken()
        made = self._made()
        with self._lock:
            spare, self._connection = (made, self._connection) if self._connection else (None, made)
            taken = self._connection.taken()
        if spare is not None:  # another thread was quicker
            spare.released()
        return taken

    def _made(self) -> "_Connection":
        """A new one, for the caller to release."""
        settings = self._settings
        bounds = {
            "client_mount_timeout": str(math.ceil(settings.connect_timeout_s)),
            "rados_mon_op_timeout": str(math.ceil(settings.operation_timeout_s)),
            "rados_osd_op_timeout": str(math.ceil(settings.operation_timeout_s)),
        }
        try:
            made = _Connection(rados.Rados(conffile=settings.ceph_conf, rados_id=settings.ceph_user, conf=bounds))
            made.connect()
        except rados.Error as error:
            raise Unavailable(
                f"Ceph cannot be reached as {settings.ceph_user} with {settings.ceph_conf}: {error}", dependency="ceph"
            ) from error
        return made

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (rados.Error, rbd.Error) as error:
            problem = _problem(what, error)
            if isinstance(problem, Unavailable | Fenced):
                self.close()
            raise problem from error

    def _compare_and_set(self, name: str, key: str, value: str, *, expected: Mapping[str, str | None]) -> bool:
        """Write one key of the image's metadata where these keys hold these values, which are compared and written as one."""

        def work(_: Any, pool: Any) -> bool:
            with rbd.Image(pool, name, read_only=True) as image:
                header = _header(image)
            return self._written(pool, header, key, value, expected=expected)

        return self._ask(f"write metadata of image {name}", work)

    def _written(self, pool: Any, header: str, key: str, value: str, *, expected: Mapping[str, str | None]) -> bool:
        """Write one key of the header object at the version that was read with it; again when another write came between."""
        field = f"metadata_{key}"
        wanted = {f"metadata_{each}": text.encode() for each, text in expected.items() if text is not None}
        fields = tuple(f"metadata_{each}" for each in expected)
        deadline = self._clock.monotonic() + self._settings.operation_timeout_s
        while self._clock.monotonic() < deadline:
            with rados.ReadOpCtx() as read:
                found, _ = pool.get_omap_vals_by_keys(read, fields)
                pool.operate_read_op(read, header)
                held = {name: text or b"" for name, text in found}
            if held != wanted:
                return False
            with rados.WriteOpCtx() as write:
                write.assert_version(pool.get_last_version())
                pool.set_omap(write, (field,), (value.encode(),))
                try:
                    pool.operate_write_op(write, header)
                except rados.OSError as error:
                    if error.errno not in {errno.ERANGE, errno.EOVERFLOW}:
                        raise
                else:
                    return True
        raise rados.TimedOut(f"{key} was written by others all the time", errno.ETIMEDOUT)

    def _empty(self, pool: Any, image_id: str, deadline: float) -> None:
        """Give the image's space back slice by slice: librbd's own removal has no bound and starts over after a crash."""
        with rbd.Image(pool, image_id=image_id) as image:
            while (size := image.size()) > _SLICE_BYTES:
                image.resize(size - _SLICE_BYTES)
                if self._clock.monotonic() > deadline:
                    left = image.size()
                    detail = f"{left >> 30} GiB are still to be given back; repeat to go on"
                    raise Unavailable(detail, dependency="ceph", left_bytes=left)


class _Connection:
    """Shut down by the last who uses it: rados leaves sockets and threads behind when its object merely goes."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self._lock = threading.Lock()
        self._users = 1  # the store itself

    def connect(self) -> None:
        """Needs nothing to be cleared away when it fails."""
        try:
            self.cluster.connect()
        except BaseException:
            self.released()
            raise

    def taken(self) -> "_Connection":
        with self._lock:
            self._users += 1
        return self

    def released(self) -> None:
        with self._lock:
            self._users -= 1
            unused = self._users == 0
        if unused:  # in a thread of its own: it waits for Ceph, within no bound
            threading.Thread(target=self.cluster.shutdown, name="rados shutdown", daemon=True).start()


def _create(pool: Any, name: str, size_bytes: int) -> int:
    """The size of the image of that name, made if it is not there; what a crash left of one is cleared away first."""
    with suppress(rbd.ImageExists):
        rbd.RBD().create(pool, name, size_bytes, old_format=False, features=rbd.RBD_FEATURE_LAYERING)
        return size_bytes
    try:
        return _size(pool, name)
    except rbd.ImageNotFound:
        _clear_half_made(pool, name)
        rbd.RBD().create(pool, name, size_bytes, old_format=False, features=rbd.RBD_FEATURE_LAYERING)
        return size_bytes


def _move_to_trash(cluster: Any, pool: Any, name: str) -> None:
    try:
        with rbd.Image(pool, name, read_only=True) as image:
            if others := _others(cluster, image):
                raise _in_use(name, others)
            if any(_snapshots(image)):
                _remove_snapshots(pool, name)
        rbd.RBD().trash_move(pool, name, 0)
    except rbd.ImageNotFound:
        _clear_half_made(pool, name)


def _remove_snapshots(pool: Any, name: str) -> None:
    """All of them, or none while there is a clone of any."""
    with rbd.Image(pool, name) as image:
        snapshots = [str(entry["name"]) for entry in _snapshots(image)]
        for snapshot in snapshots:
            _refuse_cloned(image, name, snapshot)
        for snapshot in snapshots:
            _remove_snapshot(image, name, snapshot)


def _remove_snapshot(image: Any, name: str, snapshot: str) -> None:
    _refuse_cloned(image, name, snapshot)
    if image.is_protected_snap(snapshot):
        image.unprotect_snap(snapshot)
    image.remove_snap(snapshot)


def _refuse_cloned(image: Any, name: str, snapshot: str) -> None:
    clones = _clones(image, snapshot)
    if clones:
        raise InUse(f"snapshot {snapshot} of image {name} has clones: {', '.join(clones)}", clones=list(clones))


def _snapshots(image: Any) -> list[dict[str, Any]]:
    """Those that were taken by name; librbd keeps others of its own in the same list."""
    return [entry for entry in image.list_snaps() if entry["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]


def _clones(image: Any, snapshot: str) -> tuple[str, ...]:
    image.set_snap(snapshot)
    try:
        return tuple(sorted(entry["image"] for entry in image.list_children2()))
    finally:
        image.set_snap(None)


def _remove_inherited_metadata(pool: Any, name: str, clone: str) -> None:
    """librbd copies the metadata of the image to its clone, which would make the clone say that it is the other."""
    with rbd.Image(pool, name, read_only=True) as image:
        inherited = dict(image.metadata_list())
    with rbd.Image(pool, clone) as image:
        for key, value in dict(image.metadata_list()).items():
            if inherited.get(key) == value:
                image.metadata_remove(key)


def _is_clone(pool: Any, clone: str, name: str, snapshot: str) -> bool:
    with rbd.Image(pool, clone, read_only=True) as image:
        try:
            _, parent, of = image.parent_info()
        except rbd.ImageNotFound:
            return False
    return bool((parent, of) == (name, snapshot))


def _restore_if_open(cluster: Any, pool: Any, image_id: str, name: str) -> None:
    """Catch the client that opened the image between the first look and its move to the trash; none can come after that."""
    with rbd.Image(pool, image_id=image_id, read_only=True) as image:
        others = _others(cluster, image)
    if others:
        rbd.RBD().trash_restore(pool, image_id, name)
        raise _in_use(name, others)


def _in_use(name: str, clients: tuple[str, ...]) -> InUse:
    return InUse(f"image {name} is open at {', '.join(clients)}", clients=list(clients))


def _clear_half_made(pool: Any, name: str) -> None:
    """Take away the name that librbd writes before it writes the image: a crash in between leaves a name that nothing opens."""
    with suppress(rbd.ImageNotFound):
        rbd.RBD().remove(pool, name)


def _others(cluster: Any, image: Any) -> tuple[str, ...]:
    watchers = {watcher["addr"] for watcher in image.watchers_list()}
    lockers = {address for _, _, address in (image.list_lockers() or {"lockers": []})["lockers"]}
    return tuple(sorted((watchers | lockers) - {cluster.get_addrs()}))


def _size(pool: Any, name: str) -> int:
    with rbd.Image(pool, name, read_only=True) as image:
        return int(image.size())


def _header(image: Any) -> str:
    """The object that holds the image's metadata; opened read-only an image has no watch, so nobody counts as its client."""
    return f"rbd_header.{image.id()}"


def _touch(pool: Any) -> None:
    with suppress(rados.ObjectNotFound):
        pool.stat("rbd_directory")


def _command(cluster: Any, **command: Any) -> str:
    code, out, said = cluster.mon_command(json.dumps(command), b"")
    if code != 0:
        raise rados.OSError(f"{command['prefix']}: {said}", errno=-code)
    return str(out.decode())


def _entries(text: str) -> Iterator[Any]:
    """The entries of several JSON lists in a row: `osd blocklist ls` says clients and ranges so."""
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        entries, at = decoder.raw_decode(text, at)
        yield from entries


def _checked(client: str) -> re.Match[str]:
    """Refuses a nonce of 0, which would fence everything on that address: the worker, and a converged node's OSDs."""
    match = _CLIENT.fullmatch(client)
    if match is None:
        raise InvalidInput.of("client", f"{client!r} names no client of Ceph", "give address:0/nonce, the nonce not 0")
    return match


def _problem(what: str, error: Any) -> Problem:
    detail = f"Ceph could not {what}: {error}"
    number = getattr(error, "errno", None)
    if isinstance(error, rbd.ImageNotFound):
        return NotFound(detail)
    if isinstance(error, rbd.ImageBusy):
        return InUse(detail)
    if number == errno.ESHUTDOWN:
        return Fenced(f"{detail}: this client has been fenced; the next call is made by a new one")
    if number in _UNREACHABLE or isinstance(error, rados.ObjectNotFound):
        return Unavailable(detail, dependency="ceph")
    if number in _FULL:
        return Exhausted(detail)
    return ImageFailed(detail)
