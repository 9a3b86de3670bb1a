"""The lab's initiator: reads and writes through real iSCSI, and remembers every acknowledgement so that none can be lost.

`python -m cli.lab.initiator` runs the writer as a process of its own, in a network namespace for instance.
"""

import argparse
import json
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from iscsi_worker.targets.probe import IscsiSession
from sanderling.clock import SystemClock
from sanderling.errors import TargetFailed

SECTOR: Final = 512
CLOCK: Final = SystemClock()
ATTEMPT_S: Final = 1.0  # an initiator that waited longer for one answer would not notice that the portal has moved
PAUSE_S: Final = 0.005

_READ_16, _WRITE_16, _SYNC_10, _INQUIRY = 0x88, 0x8A, 0x35, 0x12
_BLOCK = struct.Struct("=8sIQQI")  # magic, writer, LBA, number of the write, CRC of what is before it
_READ_CAPACITY_16: Final = bytes([0x9E, 0x10, *bytes(11), 32, 0, 0])
_MAGIC: Final = b"SNDBLOCK"


class Initiator:
    """One session over the first portal that lets it in; lost sessions are made again within `timeout_s` of each call.

    A write is sent again until it is acknowledged, as an operating system's initiator does, so one that raised `TargetFailed`
    may or may not have happened. A CHECK CONDITION is not tried again: its sense is in the problem's context.
    """

    def __init__(
        self,
        iqn: str,
        portals: str | Sequence[str],
        *,
        lun: int = 1,
        initiator_name: str = "iqn.2026-11.io.sanderling.lab:initiator",
        timeout_s: float = 10.0,
        attempt_s: float = ATTEMPT_S,
        login: tuple[str, str] | None = None,
        target_login: tuple[str, str] | None = None,
    ) -> None:
        """`login` is the CHAP name and secret to prove, `target_login` those that the target must."""
        self._login, self._target_login = login, target_login
        self._iqn, self._lun, self._name, self._timeout_s, self._attempt_s = iqn, lun, initiator_name, timeout_s, attempt_s
        self._portals = [portals] if isinstance(portals, str) else list(portals)
        self._session: IscsiSession | None = None
        self.logins = 0

    def __enter__(self) -> "Initiator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def login(self) -> None:
        self._command(bytes(6))  # TEST UNIT READY

    def read(self, lba: int, sectors: int = 1) -> bytes:
        return self._command(struct.pack(">BBQIBB", _READ_16, 0, lba, sectors, 0, 0), read_bytes=sectors * SECTOR)

    def write(self, lba: int, data: bytes) -> None:
        """Returns once it is acknowledged."""
        assert len(data) % SECTOR == 0, "whole sectors"
        self._command(struct.pack(">BBQIBB", _WRITE_16, 0, lba, len(data) // SECTOR, 0, 0), write=data)

    def flush(self) -> None:
        self._command(bytes([_SYNC_10]) + bytes(9))

    def sectors(self) -> int:
        """How many it is told there are."""
        last, size = struct.unpack_from(">QI", self._command(_READ_CAPACITY_16, read_bytes=32))
        assert size == SECTOR, "whole sectors"
        return int(last) + 1

    def inquiry(self, page: int) -> bytes:
        """A vital product data page."""
        return self._command(bytes([_INQUIRY, 1, page, 0, 255, 0]), read_bytes=255).rstrip(b"\0")

    def _command(self, cdb: bytes, *, read_bytes: int = 0, write: bytes = b"") -> bytes:
        deadline, turn, never = CLOCK.monotonic() + self._timeout_s, 0, threading.Event()
        while True:
            left = deadline - CLOCK.monotonic()
            attempt_s = max(0.01, min(self._attempt_s, left))
            try:
                if self._session is None:
                    portal = self._portals[turn % len(self._portals)]
                    self._session = IscsiSession(
                        portal,
                        self._iqn,
                        lun=self._lun,
                        initiator=self._name,
                        login=self._login,
                        target_login=self._target_login,
                        timeout_s=attempt_s,
                        clock=CLOCK,
                    )
                    self.logins += 1
                return self._session.command(cdb, read_bytes=read_bytes, write=write, timeout_s=attempt_s)
            except TargetFailed as failed:
                if "sense" in failed.context:
                    raise
                was_in = self._session is not None
                self.close()
                turn += 1
                if CLOCK.monotonic() + PAUSE_S >= deadline:
                    raise
                if not was_in:  # a lost session is made again at once
                    CLOCK.wait(never, PAUSE_S)


@dataclass(slots=True)
class BlockHistory:
    """What one writer sent to each sector of a region that nobody else writes: C1 of spec/goals.md."""

    writer: int
    sent: dict[int, list[int]] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)

    def block(self, lba: int, number: int) -> bytes:
        """The sector that carries this write; it proves its own place, number and wholeness."""
        head = _BLOCK.pack(_MAGIC, self.writer, lba, number, 0)
        body = bytes((number + at) % 251 for at in range(SECTOR - len(head)))
        crc = zlib.crc32(head + body)
        return _BLOCK.pack(_MAGIC, self.writer, lba, number, crc) + body

    @staticmethod
    def number(found: bytes) -> int | None:
        """The number that a sector claims to carry; None when it is none of ours."""
        magic, _, _, number, _ = _BLOCK.unpack_from(found)
        return int(number) if magic == _MAGIC else None

    def sending(self, lba: int, number: int) -> bytes:
        self.sent.setdefault(lba, []).append(number)
        return self.block(lba, number)

    def acknowledge(self, lba: int, number: int) -> None:
        self.acknowledged[lba] = number

    def wrong(self, lba: int, found: bytes) -> str | None:
        """Why this sector cannot be what an honest disk holds now; None when it can."""
        least = self.acknowledged.get(lba)
        allowed = [number for number in self.sent.get(lba, ()) if least is None or number >= least]
        if least is None and found == bytes(SECTOR):
            return None
        for number in allowed:
            if found == self.block(lba, number):
                return None
        magic, writer, place, number, _ = _BLOCK.unpack_from(found)
        if magic != _MAGIC:
            return f"sector {lba}: write {least} was acknowledged and is lost"
        if (writer, place) != (self.writer, lba) or found != self.block(lba, number):
            return f"sector {lba}: holds what was never written to it"
        return f"sector {lba}: write {least} was acknowledged, but the older write {number} is back"

    def check(self, read: Callable[[int], bytes]) -> list[str]:
        """Every sector of the region that is wrong, read directly from the image; empty when no promise was broken."""
        return [wrong for lba in sorted(self.sent) if (wrong := self.wrong(lba, read(lba))) is not None]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"writer": self.writer, "sent": self.sent, "acknowledged": self.acknowledged}))

    @classmethod
    def load(cls, path: Path) -> "BlockHistory":
        told = json.loads(path.read_text())
        return cls(
            told["writer"],
            {int(lba): numbers for lba, numbers in told["sent"].items()},
            {int(lba): number for lba, number in told["acknowledged"].items()},
        )


class Writer:
    """Writes numbered sectors one after another until it is told to stop, reading some of them back on the way."""

    def __init__(
        self, initiator: Initiator, *, writer: int = 1, first_lba: int = 0, sectors: int = 64, read_every: int = 8
    ) -> None:
        self.history = BlockHistory(writer)
        self.failure: str = ""
        self.gaps_s: list[float] = []
        self._initiator, self._read_every = initiator, read_every
        self._lbas = range(first_lba, first_lba + sectors)
        self._written = threading.Condition()
        self._count = 0
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="writer", daemon=True)

    @property
    def count(self) -> int:
        """Acknowledged writes so far."""
        return self._count

    @property
    def logins(self) -> int:
        """How often a session had to be made."""
        return self._initiator.logins

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, within_s: float = 30.0) -> None:
        """Stop after the write under way; an AssertionError with what went wrong if something did."""
        self._stopping = True
        self._thread.join(within_s)
        assert not self._thread.is_alive(), "the writer is stuck"
        self._initiator.close()
        assert not self.failure, self.failure

    def halt(self) -> None:
        """Ask a writer that runs elsewhere to stop."""
        self._stopping = True

    def wrote(self, more: int, *, within_s: float = 30.0) -> None:
        """Wait until this many more writes than now have been acknowledged."""
        with self._written:
            until = self._count + more
            done = self._written.wait_for(lambda: self._count >= until or bool(self.failure), within_s)
            assert done, f"{self._count} of {until} writes"
        assert not self.failure, self.failure

    def run(self) -> None:
        """Write until stopped; what ends it early is in `failure`."""
        try:
            for number, lba in enumerate(self._places(), start=1):
                before = CLOCK.monotonic()
                self._initiator.write(lba, self.history.sending(lba, number))
                self.history.acknowledge(lba, number)
                self.gaps_s.append(CLOCK.monotonic() - before)
                if number % self._read_every == 0:
                    self._read_back(number)
                with self._written:
                    self._count = number
                    self._written.notify_all()
        except (TargetFailed, AssertionError) as problem:
            self.failure = f"after {self._count} writes: {problem}"
            with self._written:
                self._written.notify_all()

    def _places(self) -> Iterator[int]:
        while not self._stopping:
            for lba in self._lbas:
                if self._stopping:
                    return
                yield lba

    def _read_back(self, number: int) -> None:
        lba = self._lbas[number * 7919 % len(self._lbas)]
        if lba in self.history.sent:
            wrong = self.history.wrong(lba, self._initiator.read(lba))
            assert wrong is None, f"read back: {wrong}"


def summary(writer: Writer) -> dict[str, object]:
    ordered: Iterable[float] = sorted(writer.gaps_s, reverse=True)
    return {"writes": writer.count, "longest_s": list(ordered)[:10], "failure": writer.failure}


def main(argv: Sequence[str] | None = None) -> int:
    """Write until SIGTERM or SIGINT, then save the history and print a summary as JSON."""
    parser = argparse.ArgumentParser(prog="python -m cli.lab.initiator")
    parser.add_argument("--target", required=True)
    parser.add_argument("--portal", action="append", required=True, help="address:port; again for more paths")
    parser.add_argument("--history", type=Path, required=True, help="where the history is saved at the end")
    parser.add_argument("--initiator", default="iqn.2026-11.io.sanderling.lab:writer")
    parser.add_argument("--writer", type=int, default=1)
    parser.add_argument("--first-lba", type=int, default=0)
    parser.add_argument("--sectors", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=60.0, help="longest time until a write is acknowledged")
    parser.add_argument("--attempt", type=float, default=ATTEMPT_S, help="longest time one attempt waits for its answer")
    asked = parser.parse_args(argv)
    initiator = Initiator(
        asked.target, asked.portal, initiator_name=asked.initiator, timeout_s=asked.timeout, attempt_s=asked.attempt
    )
    writer = Writer(initiator, writer=asked.writer, first_lba=asked.first_lba, sectors=asked.sectors)

    def halt(_number: int, _frame: FrameType | None) -> None:
        writer.halt()

    signal.signal(signal.SIGTERM, halt)
    signal.signal(signal.SIGINT, halt)
    writer.run()
    writer.history.save(asked.history)
    print(json.dumps(summary(writer)))  # noqa: T201  its caller reads this
    return 1 if writer.failure else 0


if __name__ == "__main__":
    sys.exit(main())
