"""A small file system on a loop device of its own, which can be made read-only as by a broken disk, and slow."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cli.lab.parts.daemons import run

BYTES: Final = 64 << 20
_V1 = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")  # of the root group: it holds for everybody
_V2 = Path("/sys/fs/cgroup")


class LoopFilesystem:
    """ext4 over a folder; what the folder held is in it, and back in the folder afterwards. Nobody may use it meanwhile.

    Its device goes by itself when it is unmounted.
    """

    def __init__(self, folder: Path, image: Path) -> None:
        self._folder, self._image = folder, image

    def mount(self) -> None:
        with self._image.open("wb") as file:
            file.truncate(BYTES)
        run(["mkfs.ext4", "-q", str(self._image)])
        with tempfile.TemporaryDirectory() as kept:
            run(["cp", "-a", f"{self._folder}/.", kept])
            self._attach()
            run(["cp", "-a", f"{kept}/.", str(self._folder)])
            run(["sync", "--file-system", str(self._folder)])  # what breaks down forgets what it had not written

    def unmount(self) -> None:
        with tempfile.TemporaryDirectory() as kept:
            run(["cp", "-a", f"{self._folder}/.", kept])
            run(["umount", str(self._folder)])
            run(["cp", "-a", f"{kept}/.", str(self._folder)])
        self._image.unlink()

    def break_down(self) -> None:
        """From now on nothing can be written, as after an error of the disk; until `repair`."""
        run(["mount", "-o", "remount,abort", str(self._folder)])

    def repair(self) -> None:
        """As it was when it broke down, to be written again; nobody may have a file of it open."""
        run(["umount", str(self._folder)])
        self._attach()

    def _attach(self) -> None:
        run(["mount", "-o", "loop", str(self._image), str(self._folder)])

    @contextlib.contextmanager
    def slow(self, bytes_per_s: int, pids: Iterable[int]) -> Iterator[None]:
        """What these processes write takes its time; they wait for that when they make it durable."""
        number = self._folder.stat().st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        if _V1.exists():
            _V1.write_text(f"{device} {bytes_per_s}")
            try:
                yield
            finally:
                _V1.write_text(f"{device} 0")
            return
        with _group(pids) as group:
            (group / "io.max").write_text(f"{device} wbps={bytes_per_s}")
            yield


@contextlib.contextmanager
def _group(pids: Iterable[int]) -> Iterator[Path]:
    """A control group (version 2) of these processes."""
    before = {pid: Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition(":")[2] for pid in pids}
    (_V2 / "cgroup.subtree_control").write_text("+io")
    group = _V2 / "sanderling-lab"
    group.mkdir(exist_ok=True)
    try:
        for pid in before:
            (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for pid, place in before.items():
            with contextlib.suppress(ProcessLookupError):
                (_V2 / place.lstrip("/") / "cgroup.procs").write_text(str(pid))
        group.rmdir()
