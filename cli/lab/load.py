"""The load under every fault: one writer and one reader on a disk, each with a session of its own, and a journal of all they did.

`python -m cli.lab.load` is the load itself, a process in the initiator's namespace; `Load` starts one and follows its journal.
A journal has one line an event, in the order in which they happened:

    s LBA NUMBER TIME          a write is sent (again, when it is not the first time)
    a LBA NUMBER TIME          it is acknowledged
    r LBA NUMBER BEGAN ENDED   a read returned that write (0: zeros; -1: what nobody wrote)
    e TIME TEXT                a command was answered with an error
    l TIME                     a session was made
"""

import argparse
import itertools
import random
import signal
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO, TypeVar

from cli.lab.initiator import SECTOR, BlockHistory, Initiator
from cli.lab.parts.daemons import Daemon, spawn, waited
from cli.lab.registers import NEVER_WRITTEN, UNREADABLE, History, Read, Write
from sanderling.clock import SystemClock
from sanderling.errors import TargetFailed
from sanderling.signals import Told

T = TypeVar("T")
CLOCK: Final = SystemClock()
SECTORS: Final = 32
FLUSH_S: Final = 0.1
PAUSE_S: Final = 0.02
PATIENCE_S: Final = 5.0  # as open-iscsi's NOP-out: a session that is silent for longer is given up
STOP_WITHIN_S: Final = 45.0
INITIATOR: Final = "iqn.2026-11.io.sanderling.lab"


@dataclass(frozen=True, slots=True)
class Gap:
    """The longest time without a completion in a window, and when it began."""

    length_s: float
    began: float


class Load:
    """Started by `start`; every property reads what the journal says by now."""

    def __init__(self, name: str, folder: Path, *, netns: str, pace_s: float, patience_s: float = PATIENCE_S) -> None:
        self.name = name
        self._folder, self._netns, self._pace_s, self._patience_s = folder, netns, pace_s, patience_s
        self.journal = folder / f"load-{name}.journal"
        self.history = History()
        self.completions: list[float] = []
        self.acknowledged: list[float] = []
        self.errors: list[str] = []
        self.sessions = 0
        self._sent: dict[tuple[int, int], float] = {}
        self._at = 0
        self._daemon: Daemon | None = None

    def start(self, iqn: str, portals: Sequence[str]) -> None:
        """Run, and return once it has written."""
        words = [sys.executable, "-m", "cli.lab.load", "--target", iqn, "--journal", str(self.journal), "--name", self.name]
        words += [f"--portal={portal}" for portal in portals]
        words += [f"--pace={self._pace_s}", f"--patience={self._patience_s}"]
        self._daemon = spawn(f"load {self.name}", words, log=self._folder / f"load-{self.name}.log", netns=self._netns)
        self.wait_for_writes(10, within_s=30)

    def stop(self) -> None:
        """Stop it and read the rest of its journal; AssertionError when it ended by itself."""
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            lived = daemon.alive
            daemon.terminate(within_s=STOP_WITHIN_S)
            self.follow()
            assert lived, f"the load ended by itself: {(self._folder / f'load-{self.name}.log').read_text()[-2000:]}"

    def wait_for_writes(self, more: int, *, within_s: float) -> None:
        """Until this many more have been acknowledged from now on."""
        since = CLOCK.monotonic()

        def written() -> bool:
            self.follow()
            return len(self.acknowledged) - bisect_left(self.acknowledged, since) >= more

        waited(written, within_s=within_s, what=f"{more} writes on disk {self.name}", every_s=0.05)

    def gap(self, since: float, until: float) -> Gap:
        """Measured from completion to completion, so that it may begin before and end after the window."""
        first = max(0, bisect_left(self.completions, since) - 1)
        last = min(len(self.completions), bisect_left(self.completions, until) + 1)
        window = self.completions[first:last]
        gaps = [Gap(after - before, before) for before, after in itertools.pairwise(window)]
        return max(gaps, key=lambda gap: gap.length_s, default=Gap(until - since, since))

    def everything(self) -> History:
        """The history with the writes whose fate is not known."""
        unknown = [Write(lba, number, at) for (lba, number), at in self._sent.items()]
        return History([*self.history.writes, *unknown], list(self.history.reads))

    def direct(self, read: Callable[[int], bytes]) -> list[Read]:
        """Every sector that was written to, read past the target by `read(lba)`."""
        blocks, found = BlockHistory(_writer(self.name)), []
        for lba in sorted({write.lba for write in self.everything().writes}):
            began = CLOCK.monotonic()
            number = number_in(blocks, lba, read(lba))
            found.append(Read(lba, number, began, CLOCK.monotonic()))
        return found

    def follow(self) -> None:
        """Read on in the journal."""
        if not self.journal.exists():
            return
        with self.journal.open() as lines:
            lines.seek(self._at)
            while (line := lines.readline()).endswith("\n"):
                self._note(line.rstrip("\n"))
                self._at = lines.tell()

    def _completed(self, at: float) -> None:
        self.completions.append(max(at, self.completions[-1] if self.completions else 0.0))

    def _note(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        words = rest.split(" ")
        match kind:
            case "s":
                self._sent.setdefault((int(words[0]), int(words[1])), float(words[2]))
            case "a":
                lba, number, at = int(words[0]), int(words[1]), float(words[2])
                self.history.writes.append(Write(lba, number, self._sent.pop((lba, number)), at))
                self.acknowledged.append(at)
                self._completed(at)
            case "r":
                self.history.reads.append(Read(int(words[0]), int(words[1]), float(words[2]), float(words[3])))
                self._completed(float(words[3]))
            case "e":
                self.errors.append(f"{self.name} at {rest}")
            case "l":
                self.sessions += 1


def number_in(blocks: BlockHistory, lba: int, found: bytes) -> int:
    """Which write of the writer the sector holds whole."""
    if found == bytes(SECTOR):
        return NEVER_WRITTEN
    number = BlockHistory.number(found)
    return number if number is not None and found == blocks.block(lba, number) else UNREADABLE


class Journal:
    """Lines of several threads, in the order in which they came; written to the file by `flush`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._lines: list[str] = []

    def say(self, kind: str, *words: object) -> None:
        with self._lock:
            self._lines.append(f"{kind} {' '.join(map(str, words))}\n")

    def flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        self._file.write("".join(lines))
        self._file.flush()


@dataclass(frozen=True, slots=True)
class _Asked:
    iqn: str
    portals: tuple[str, ...]
    name: str
    pace_s: float
    patience_s: float


class _Client:
    """A session that is made again until told to stop; what it sends is sent again until it is answered."""

    def __init__(self, asked: _Asked, role: str, journal: Journal, stopping: threading.Event) -> None:
        self._initiator = Initiator(
            asked.iqn,
            asked.portals,
            initiator_name=f"{INITIATOR}:{asked.name}-{role}",
            timeout_s=asked.patience_s,
            attempt_s=asked.patience_s,
        )
        self._journal, self._stopping, self._sessions = journal, stopping, 0

    def persist(self, act: Callable[[Initiator], T]) -> T | None:
        """What it returned; None when told to stop first."""
        while not self._stopping.is_set():
            try:
                return act(self._initiator)
            except TargetFailed as failed:
                if "sense" in failed.context:
                    self._journal.say("e", f"{CLOCK.monotonic():.6f}", failed.detail)
                CLOCK.wait(self._stopping, PAUSE_S)
            finally:
                for _ in range(self._initiator.logins - self._sessions):
                    self._journal.say("l", f"{CLOCK.monotonic():.6f}")
                self._sessions = self._initiator.logins
        return None

    def close(self) -> None:
        self._initiator.close()


def write(asked: _Asked, journal: Journal, stopping: threading.Event) -> None:
    """Numbered sectors one after another, paced."""
    client, blocks = _Client(asked, "writer", journal, stopping), BlockHistory(_writer(asked.name))
    for number in itertools.count(1):
        lba = number % SECTORS
        data = blocks.block(lba, number)

        def attempt(initiator: Initiator, lba: int = lba, number: int = number, data: bytes = data) -> bool:
            journal.say("s", lba, number, f"{CLOCK.monotonic():.6f}")
            initiator.write(lba, data)
            journal.say("a", lba, number, f"{CLOCK.monotonic():.6f}")
            return True

        if not client.persist(attempt) or CLOCK.wait(stopping, asked.pace_s):
            break
    client.close()


def read(asked: _Asked, journal: Journal, stopping: threading.Event) -> None:
    """Sectors at random, at half the writer's pace."""
    client, blocks, dice = (
        _Client(asked, "reader", journal, stopping),
        BlockHistory(_writer(asked.name)),
        random.Random(asked.name),
    )
    while not CLOCK.wait(stopping, 2 * asked.pace_s):
        lba = dice.randrange(SECTORS)

        def attempt(initiator: Initiator, lba: int = lba) -> bool:
            began = CLOCK.monotonic()
            number = number_in(blocks, lba, initiator.read(lba))
            journal.say("r", lba, number, f"{began:.6f}", f"{CLOCK.monotonic():.6f}")
            return True

        client.persist(attempt)
    client.close()


def _writer(name: str) -> int:
    return int.from_bytes(name.encode()[:7], "big")


def main(argv: Sequence[str] | None = None) -> int:
    """Write and read until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m cli.lab.load")
    parser.add_argument("--target", required=True)
    parser.add_argument("--portal", action="append", required=True, help="address:port; again for more paths")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--pace", type=float, required=True, help="seconds between writes")
    parser.add_argument("--patience", type=float, required=True, help="longest time to wait for one answer")
    said = parser.parse_args(argv)
    asked = _Asked(said.target, tuple(said.portal), said.name, said.pace, said.patience)
    stopping = Told(signal.SIGTERM, signal.SIGINT)
    with said.journal.open("a") as file:
        journal = Journal(file)
        threads = [threading.Thread(target=act, args=(asked, journal, stopping), daemon=True) for act in (write, read)]
        for thread in threads:
            thread.start()
        while not CLOCK.wait(stopping, FLUSH_S) and all(thread.is_alive() for thread in threads):
            journal.flush()
        stopping.set()
        for thread in threads:
            thread.join(STOP_WITHIN_S)
        journal.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
