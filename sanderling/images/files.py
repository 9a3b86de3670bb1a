"""Images as sparse files in one folder, for one host: the newcomer's backend, and the measure of what rbd must do.

The fence is SIGKILL, so it reaches no further than this host's processes.
"""

import errno
import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from sanderling.clock import Clock
from sanderling.errors import Conflict, Exhausted, ImageFailed, InUse, InvalidInput, NotFound, Problem, Unavailable
from sanderling.images.base import NAME, BackingStore, Capacity, Image, Snapshot
from sanderling.settings import Images as Settings

log = structlog.get_logger(__name__)

_CLIENT = re.compile(r"pid:(?P<pid>[1-9][0-9]*):(?P<start_time>[0-9]+)")
_LOCK_POLL_S: Final = 0.01
_CLONE_OF: Final = "sanderling.clone_of"


class FileImages:
    """`NAME.img` is the image, `NAME.json` beside it its metadata; an image is there once its .img has its size. Copies of it in
    `NAME.snapshots` are its snapshots, and a clone is one copy more.

    A client is "pid:PID:START_TIME" (field 22 of /proc/PID/stat). Who has an image open is read from /proc, so a process sees
    only clients it may look into: run as root, or all as one user. Waiting for another process's change is bounded by
    `operation_timeout_s`.
    """

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._folder = Path(settings.folder)
        self._timeout_s = settings.operation_timeout_s
        self._clock = clock
        with self._translated("make the folder of images"):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create(self, name: str, size_bytes: int, *, metadata: dict[str, str]) -> None:
        image, described = self._image(name), self._metadata(name)
        with self._translated(f"create image {name}"), self._locked():
            if not image.exists():
                described.unlink(missing_ok=True)
                _write_sparse(image, size_bytes)
            elif (held := image.stat().st_size) != size_bytes:
                raise Conflict(f"image {name} is there with {held} bytes, not {size_bytes}", size_bytes=held)
            _write(described, metadata | _read(described))

    def remove(self, name: str) -> None:
        with self._translated(f"remove image {name}"), self._locked():
            if self._image(name).exists():
                if clients := self.clients(name):
                    raise InUse(f"image {name} is open at {', '.join(clients)}", clients=list(clients))
                self._image(name).unlink()
            shutil.rmtree(self._snapshots(name), ignore_errors=True)
            self._metadata(name).unlink(missing_ok=True)
            _sync(self._folder)

    def grow(self, name: str, size_bytes: int) -> None:
        with self._translated(f"grow image {name}"), self._locked():
            held = self._image(name).stat().st_size
            if held > size_bytes:
                raise Conflict(f"image {name} has {held} bytes already; it cannot be made smaller")
            if held < size_bytes:
                os.truncate(self._image(name), size_bytes)

    def used_bytes(self, name: str) -> int:
        with self._translated(f"count image {name}"):
            return self._image(name).stat().st_blocks * 512  # the unit of st_blocks, whatever the file system's own is

    def snapshot(self, name: str, snapshot: str) -> None:
        """A copy, so nobody may have the image open meanwhile."""
        assert NAME.fullmatch(snapshot), snapshot
        folder = self._snapshots(name)
        with self._translated(f"take snapshot {snapshot} of image {name}"), self._locked():
            self._refuse_open(name)
            folder.mkdir(mode=0o700, exist_ok=True)
            if not (folder / f"{snapshot}.img").exists():
                self._copy(self._image(name), folder / f"{snapshot}.img")

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        self.stat(name)
        with self._translated(f"list snapshots of image {name}"):
            found = [(path.stem, path.stat()) for path in self._snapshots(name).glob("*.img")]
        made = [Snapshot(stem, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)) for stem, stat in found]
        return tuple(sorted(made, key=lambda one: (one.taken_at, one.name)))

    def roll_back(self, name: str, snapshot: str, *, only_if: tuple[str, str], timeout_s: float) -> None:  # noqa: ARG002
        """Bounded as every copy is."""
        key, value = only_if
        with self._translated(f"roll image {name} back to {snapshot}"), self._locked():
            if _read(self._metadata(name)).get(key) != value:
                raise Conflict(f"{key} of image {name} has changed; it is not rolled back")
            self._refuse_open(name)
            self._copy(self._snapshots(name) / f"{snapshot}.img", self._image(name))

    def end_roll_back(self, name: str) -> None:
        """Whoever rolls it back holds the lock until they have."""
        with self._translated(f"wait for a roll-back of image {name}"), self._locked():
            pass

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        with self._translated(f"remove snapshot {snapshot} of image {name}"), self._locked():
            (self._snapshots(name) / f"{snapshot}.img").unlink(missing_ok=True)

    def clone(self, name: str, snapshot: str, clone: str) -> None:
        source = self._snapshots(name) / f"{snapshot}.img"
        with self._translated(f"clone {name}@{snapshot}"), self._locked():
            if not self._image(clone).exists():
                _write(self._metadata(clone), {_CLONE_OF: f"{name}@{snapshot}"})
                self._copy(source, self._image(clone))
            elif _read(self._metadata(clone)).get(_CLONE_OF) != f"{name}@{snapshot}":
                raise Conflict(f"image {clone} is there, and no clone of {name}@{snapshot}")

    def stat(self, name: str) -> Image:
        with self._translated(f"stat image {name}"):
            return Image(name, self._image(name).stat().st_size)

    def list(self) -> tuple[str, ...]:
        with self._translated("list images"):
            return tuple(sorted(path.stem for path in self._folder.iterdir() if path.suffix == ".img"))

    def get_metadata(self, name: str) -> dict[str, str]:
        self.stat(name)
        with self._translated(f"read metadata of image {name}"):
            return _read(self._metadata(name))

    def set_metadata(self, name: str, key: str, value: str, *, expected: str | None) -> bool:
        with self._translated(f"write metadata of image {name}"), self._locked():
            self.stat(name)
            metadata = _read(self._metadata(name))
            if metadata.get(key) != expected:
                return False
            _write(self._metadata(name), metadata | {key: value})
            return True

    def backing_store(self, name: str) -> BackingStore:
        return BackingStore("file", str(self._image(name)))

    def capacity(self) -> Capacity | None:
        with self._translated("ask for capacity"):
            fs = os.statvfs(self._folder)
        return Capacity(total_bytes=fs.f_blocks * fs.f_frsize, free_bytes=fs.f_bavail * fs.f_frsize)

    def clients(self, name: str) -> tuple[str, ...]:
        with self._translated(f"list clients of image {name}"):
            image = self._image(name).stat()
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
        found = {pid: _start_time(pid) for pid in pids if _has_open(pid, image)}
        return tuple(sorted(f"pid:{pid}:{started}" for pid, started in found.items() if started is not None))

    def fence(self, client: str) -> None:
        """Kill the process and wait until all its threads are gone: a zombie has closed its files, so it counts as gone."""
        pid, started = _checked(client)
        assert pid != os.getpid(), "a process cannot fence itself and return"
        with self._translated(f"fence {client}"), _process(pid, started) as process:
            if process is None:
                return
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            if not _has_ended(process, within_s=self._timeout_s):
                raise Unavailable(f"process {pid} was killed but has not ended in {self._timeout_s} s", dependency="files")
        log.info("client fenced", client=client)

    def is_fenced(self, client: str) -> bool:
        with self._translated(f"look for {client}"), _process(*_checked(client)) as process:
            return process is None or _has_ended(process, within_s=0)

    def ping(self) -> None:
        with self._translated("ping"):
            os.listdir(self._folder)

    def touch(self) -> None:
        self.ping()

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _image(self, name: str) -> Path:
        assert NAME.fullmatch(name), name
        return self._folder / f"{name}.img"

    def _snapshots(self, name: str) -> Path:
        return self._image(name).with_suffix(".snapshots")

    def _refuse_open(self, name: str) -> None:
        if clients := self.clients(name):
            raise InUse(f"image {name} is open at {', '.join(clients)}", clients=list(clients))

    def _copy(self, source: Path, to: Path) -> None:
        """In one step that a crash cannot halve; holes stay holes, and a file system that can share the blocks does."""
        new = to.with_suffix(".img.new")
        source.stat()
        command = ["cp", "--sparse=always", "--reflink=auto", "--", str(source), str(new)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=self._timeout_s)
        except subprocess.CalledProcessError as error:
            if b"No space left" in error.stderr:
                raise Exhausted(f"there is no room to copy {source.name}") from error
            raise ImageFailed(f"{source.name} cannot be copied: {error.stderr.decode(errors='replace').strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"copying {source.name} took longer than {self._timeout_s} s", dependency="files") from error
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(to)
        _sync(to.parent)

    def _metadata(self, name: str) -> Path:
        return self._image(name).with_suffix(".json")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if self._folder.exists():
                raise NotFound(f"could not {what}: {error}") from error
            raise Unavailable(f"could not {what}: the folder {self._folder} is gone", dependency="files") from error
        except OSError as error:
            raise _problem(what, error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time, among all threads and processes; the lock dies with its holder."""
        deadline, never = self._clock.monotonic() + self._timeout_s, threading.Event()
        lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _flock(lock):
                if self._clock.monotonic() > deadline:
                    raise Unavailable(f"another process has held {self._folder} for {self._timeout_s} s", dependency="files")
                self._clock.wait(never, _LOCK_POLL_S)
            yield
        finally:
            os.close(lock)


@contextmanager
def _process(pid: int, started: int) -> Iterator[int | None]:
    """A descriptor of that very process, which its pid alone would not be; None when there is none."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield process if _start_time(pid) == started else None
    finally:
        os.close(process)


def _has_ended(process: int, *, within_s: float) -> bool:
    end = select.poll()
    end.register(process, select.POLLIN)
    return bool(end.poll(within_s * 1000))


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _has_open(pid: int, image: os.stat_result) -> bool:
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), image):
                    return True
    return False


def _checked(client: str) -> tuple[int, int]:
    match = _CLIENT.fullmatch(client)
    if match is None:
        raise InvalidInput.of("client", f"{client!r} names no process", "give pid:PID:START_TIME")
    return int(match["pid"]), int(match["start_time"])


def _flock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def _write(path: Path, metadata: dict[str, str]) -> None:
    """Replace the file in one step that a crash cannot halve, and have it on disk before returning."""
    new = path.with_suffix(".json.new")
    with new.open("w") as file:
        json.dump(metadata, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _write_sparse(path: Path, size_bytes: int) -> None:
    new = path.with_suffix(".img.new")
    with new.open("wb") as file:
        file.truncate(size_bytes)
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(what: str, error: OSError) -> Problem:
    detail = f"could not {what}: {error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Exhausted(detail)
    if error.errno in {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}:
        return Unavailable(detail, dependency="files")
    return ImageFailed(detail)
