"""An initiator that always has so many writes in flight and stamps every answer: the longest time between two is the gap.

`python -m bench.probe` is the initiator, a process in the initiator's namespace; `Probe` starts one and reads its stamps.
"""

import argparse
import ctypes
import itertools
import select
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from bench.reference import pause
from cli.lab.initiator import PAUSE_S, SECTOR
from cli.lab.parts.daemons import Daemon, spawn, waited
from iscsi_worker.targets.probe import _CALLBACK, _OUT, IscsiSession, _Buffer
from sanderling.clock import SystemClock
from sanderling.errors import TargetFailed
from sanderling.model.disks import LUN

CLOCK: Final = SystemClock()
ATTEMPT_S: Final = 1.0  # silence for this long makes the initiator give its session up
SETTLED: Final = 50  # answers after which a gap is over
PACE_S: Final = 0.001  # between two writes when one is in flight
STAMP: Final = struct.Struct("=d")
IN_FLIGHT: Final = 64
_GOOD: Final = 0
_KEPT: Final = 100_000


def longest_gap(stamps: Sequence[float], *, since: float) -> float:
    """The longest time between two answers of which the second came after `since`."""
    first = next((place for place, at in enumerate(stamps) if at > since), len(stamps))
    assert 0 < first < len(stamps), "no answer on both sides"
    return max(after - before for before, after in itertools.pairwise(stamps[first - 1 :]))


class Probe:
    """Started by `start`; silent between `rest` and `wake`, its session kept, so that several can take turns."""

    def __init__(self, name: str, folder: Path, *, netns: str, iqn: str, portal: str, in_flight: int = 1) -> None:
        self._name, self._folder, self._netns = name, folder, netns
        self._words = ["--target", iqn, "--portal", portal, "--in-flight", str(in_flight)]
        self._file = folder / f"{name}.stamps"
        self._daemon: Daemon | None = None

    def start(self) -> None:
        """Run, and return once it is answered."""
        self._file.touch()
        words = [sys.executable, "-m", "bench.probe", "--stamps", str(self._file), *self._words]
        self._daemon = spawn(self._name, words, log=self._folder / f"{self._name}.log", netns=self._netns)
        self.answered(SETTLED)

    def rest(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)
        self.answered(SETTLED)

    def kill(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()

    def answered(self, more: int, *, within_s: float = 60.0) -> None:
        """Until so many more writes have been answered from now on."""
        since = CLOCK.monotonic()

        def enough() -> bool:
            stamps = self.stamps(newest=more)  # no more: the reading would take the processor from what is measured
            return len(stamps) == more and stamps[0] > since

        waited(enough, within_s=within_s, what=f"{more} answers to {self._name}", every_s=0.005)

    def gap(self, since: float, *, within_s: float = 60.0) -> float:
        """The longest gap since then, once answers come again."""
        self.answered(SETTLED, within_s=within_s)
        return longest_gap(self.stamps(newest=_KEPT), since=since)

    def stamps(self, *, newest: int) -> list[float]:
        """The newest of all so far."""
        assert self._daemon is not None, f"{self._name} was never started"
        assert self._daemon.alive, f"{self._name} ended: {self._log()}"
        with self._file.open("rb") as file:
            whole = file.seek(0, 2) // STAMP.size * STAMP.size
            file.seek(max(0, whole - newest * STAMP.size))
            return [at for (at,) in STAMP.iter_unpack(file.read(whole - file.tell()))]

    def _signal(self, number: int) -> None:
        assert self._daemon is not None, f"{self._name} was never started"
        self._daemon.signal(number)

    def _log(self) -> str:
        return (self._folder / f"{self._name}.log").read_text()[-2000:]


class Flood(IscsiSession):
    """A session with so many writes in flight until nothing has been answered for a while."""

    def run(self, in_flight: int, stamps: BinaryIO) -> None:
        """Ends with `TargetFailed` when the session is lost or silent. A single write is followed by the next at its time."""
        slots = [_Slot(place, self._lib) for place in range(in_flight)]
        try:
            for slot in slots:
                self._submit(slot)
            heard = CLOCK.monotonic()
            while True:
                self._serve_once()
                done = [slot for slot in slots if slot.status is not None]
                good = [slot.at for slot in done if slot.status == _GOOD]
                stamps.write(b"".join(map(STAMP.pack, good)))
                if in_flight == 1 and good:
                    pause(PACE_S - CLOCK.monotonic() % PACE_S)
                for slot in done:
                    self._submit(slot)
                heard = good[-1] if good else heard
                if CLOCK.monotonic() - heard > ATTEMPT_S:
                    raise TargetFailed("silence")
        finally:
            self.close()
            for slot in slots:
                slot.free()

    def _submit(self, slot: "_Slot") -> None:
        task = slot.task_anew()
        if self._lib.iscsi_scsi_command_async(self._context, LUN, task, slot.done, ctypes.byref(slot.data), None) != 0:
            raise self._lost("command")

    def _serve_once(self) -> None:
        poll = select.poll()
        poll.register(self._lib.iscsi_get_fd(self._context), self._lib.iscsi_which_events(self._context))
        happened = poll.poll(ATTEMPT_S * 1000)
        if happened and self._lib.iscsi_service(self._context, happened[0][1]) < 0:
            raise self._lost("service")


class _Slot:
    """A write to a sector of its own, again and again. `status` is that of its answer, None while it is in flight."""

    def __init__(self, lba: int, library: Any) -> None:
        self._lib = library
        self._cdb = struct.pack(">BBQIBB", 0x8A, 0, lba, 1, 0, 0)  # WRITE(16)
        self._block = ctypes.create_string_buffer(bytes(SECTOR), SECTOR)
        self.data = _Buffer(SECTOR, ctypes.cast(self._block, ctypes.c_void_p))
        self.done = _CALLBACK(lambda _context, status, _data, _private: self._answered(status))
        self.status: int | None = None
        self.at = 0.0
        self._task: int | None = None

    def task_anew(self) -> int:
        self.free()
        self.status = None
        self._task = self._lib.scsi_create_task(len(self._cdb), self._cdb, _OUT, SECTOR)
        assert self._task is not None, "libiscsi has no memory"
        return self._task

    def free(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._lib.scsi_free_scsi_task(task)

    def _answered(self, status: int) -> None:
        self.status, self.at = status, CLOCK.monotonic()


def main() -> None:
    """Write until killed; a lost session is made again at once."""
    parser = argparse.ArgumentParser(prog="python -m bench.probe")
    parser.add_argument("--target", required=True)
    parser.add_argument("--portal", required=True)
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, default=1)
    asked = parser.parse_args()
    name = f"iqn.2026-11.io.sanderling.bench:{asked.stamps.stem}"
    with asked.stamps.open("ab", buffering=0) as stamps:
        while True:
            was_in = False
            try:
                session = Flood(asked.portal, asked.target, lun=LUN, initiator=name, timeout_s=ATTEMPT_S, clock=CLOCK)
                was_in = True
                session.run(asked.in_flight, stamps)
            except TargetFailed:
                if not was_in:
                    pause(PAUSE_S)


if __name__ == "__main__":
    main()
