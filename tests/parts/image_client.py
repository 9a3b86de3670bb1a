"""A process that holds an image open and writes to it, as a target process does: what a fence must stop."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.lab.parts.daemons import CLOCK, Daemon, start_time, waited
from sanderling.images.base import BackingStore
from tests.simulation.ceph import Ceph

BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Write:
    """When a write began (CLOCK_MONOTONIC), and whether it succeeded."""

    began: float
    succeeded: bool


class ImageClient:
    """Fills block 0 with `byte`, once for each `write()`, or without end when `restless`.

    `client` is what the store calls it; `writes` is what became of each write so far.
    """

    def __init__(self, store: BackingStore, *, byte: str = "a", restless: bool = False) -> None:
        mode = "restless" if restless else "told"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.parts.image_client", store.kind, store.location, store.options, byte, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.writes: list[Write] = []
        self.client = self._stdout.readline().strip()
        assert self.client, "the image could not be opened"
        self._daemon = Daemon("image client", self._process.pid, str(start_time(self._process.pid)))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def write(self) -> bool:
        """Whether a write succeeds now; one by a process that is gone does not."""
        seen = len(self.writes)
        with suppress(BrokenPipeError):
            self._stdin.write("write\n")
            self._stdin.flush()
        waited(lambda: len(self.writes) > seen or not self._reader.is_alive(), within_s=30, what="the write ends")
        return len(self.writes) > seen and self.writes[seen].succeeded

    def pause(self) -> None:
        self._daemon.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._daemon.signal(signal.SIGCONT)

    def wait_for_a_write(self, *, succeeded: bool) -> None:
        """Until one that begins after now has ended so, or the process is gone."""
        now = CLOCK.monotonic()
        waited(
            lambda: not self._reader.is_alive() or any(w.began > now and w.succeeded is succeeded for w in list(self.writes)),
            within_s=30,
            what="a write",
        )

    def stop(self) -> None:
        """Kill it; every write it has told of is in `writes` then. Stopping twice is no error."""
        self._daemon.kill()
        self._process.wait()
        self._reader.join(timeout=10)
        self._stdout.close()
        with suppress(BrokenPipeError):
            self._stdin.close()

    def _read(self) -> None:
        for line in self._stdout:
            began, ended = line.split()
            self.writes.append(Write(float(began), ended == "succeeded"))


class MemoryClient:
    """The same for the simulated Ceph: it writes when it is told to, or waited for, and what it had begun when it is resumed."""

    _made = itertools.count(1)

    def __init__(self, ceph: Ceph, image: str, byte: str) -> None:
        self._ceph, self._image, self._block = ceph, image, byte.encode() * BLOCK_BYTES
        self._lives = True
        self.writes: list[Write] = []
        self.client = f"client.test:{next(self._made)}"
        ceph.open(image, self.client, lambda: self._lives)

    def write(self) -> bool:
        succeeded = self._lives and self._image in self._ceph.images and self.client not in self._ceph.data.fenced
        if succeeded:
            self._ceph.data.blocks[self._image, 0] = self._block
        self.writes.append(Write(CLOCK.monotonic(), succeeded))
        return succeeded

    def pause(self) -> None: ...

    def resume(self) -> None:
        self.write()

    def wait_for_a_write(self, *, succeeded: bool) -> None:
        assert self.write() is succeeded

    def stop(self) -> None:
        """Closed in order, or fenced: in either case it is listed no longer."""
        self._lives = False
        self._ceph.opened[self._image].pop(self.client, None)


def block_of(store: BackingStore) -> bytes:
    """Block 0 of the image, read through a client of its own."""
    if store.kind == "file":
        return Path(store.location).read_bytes()[:BLOCK_BYTES]
    import rados  # noqa: PLC0415 - a client of a file needs no Ceph
    import rbd  # noqa: PLC0415

    options = dict(option.split("=", 1) for option in store.options.split(";"))
    pool_name, name = store.location.split("/")
    with (
        rados.Rados(conffile=options["conf"], rados_id=options["id"]) as cluster,
        cluster.open_ioctx(pool_name) as pool,
        rbd.Image(pool, name, read_only=True) as image,
    ):
        return bytes(image.read(0, BLOCK_BYTES))


def _open_file(location: str) -> tuple[str, Callable[[bytes], Any]]:
    image = os.open(location, os.O_RDWR)
    return f"pid:{os.getpid()}:{start_time(os.getpid())}", lambda block: os.pwrite(image, block, 0)


def _open_rbd(location: str, options: str) -> tuple[str, Callable[[bytes], Any]]:
    import rados  # noqa: PLC0415
    import rbd  # noqa: PLC0415

    given = dict(option.split("=", 1) for option in options.split(";"))
    cluster = rados.Rados(conffile=given["conf"], rados_id=given["id"], conf={"rbd_cache": "false"})
    cluster.connect()
    pool, name = location.split("/")
    image = rbd.Image(cluster.open_ioctx(pool), name)
    return cluster.get_addrs(), lambda block: image.write(block, 0)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _write(write: Callable[[bytes], Any], block: bytes) -> None:
    began = CLOCK.monotonic()
    try:
        write(block)
        ended = "succeeded"
    except Exception:  # noqa: BLE001 - whatever the failure, it is the answer
        ended = "failed"
    _say(f"{began} {ended}")


def main(kind: str, location: str, options: str, byte: str, mode: str) -> None:
    client, write = _open_file(location) if kind == "file" else _open_rbd(location, options)
    _say(client)
    block = byte.encode() * BLOCK_BYTES
    while mode == "restless":
        _write(write, block)
    for _ in sys.stdin:
        _write(write, block)


if __name__ == "__main__":
    main(*sys.argv[1:])
