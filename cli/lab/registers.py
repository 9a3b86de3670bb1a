"""C1: what an initiator wrote and read, checked sector by sector as a register that one writer writes.

Numbers rise with every write to a sector, so the check is linear in time: a read returns the last acknowledged write or a later
one, never an older one, and never an older one than an earlier read has returned.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

NEVER_WRITTEN: Final = 0
UNREADABLE: Final = -1


@dataclass(frozen=True, slots=True)
class Write:
    """`acknowledged_at` is None for one whose fate is not known: it may happen at any time after it was sent, or never."""

    lba: int
    number: int
    sent_at: float
    acknowledged_at: float | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """`number` is that of the write found, NEVER_WRITTEN for zeros, UNREADABLE for a sector that nobody can have written."""

    lba: int
    number: int
    began: float
    ended: float


@dataclass(slots=True)
class History:
    """Everything one writer and one reader did to a disk."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Register:
    """What is known of one sector: when it held at least which number, and when each number was first sent."""

    floor_times: Sequence[float]
    floors: Sequence[int]
    sent: Mapping[int, float]

    def least(self, before: float) -> int:
        """The oldest write that a read which began then may return."""
        known = bisect_left(self.floor_times, before)
        return self.floors[known - 1] if known else NEVER_WRITTEN


def violations(history: History) -> list[str]:
    """Every read that no honest disk could have given, in words; empty when no promise was broken."""
    writes, reads = defaultdict(list), defaultdict(list)
    for write in history.writes:
        writes[write.lba].append(write)
    for read in history.reads:
        reads[read.lba].append(read)
    return [fault for lba in sorted(reads) for fault in _of_sector(lba, writes[lba], reads[lba])]


def _of_sector(lba: int, writes: Sequence[Write], reads: Sequence[Read]) -> Iterable[str]:
    acknowledged = _register(writes, ())
    known = _register(writes, reads)
    for read in sorted(reads, key=lambda each: each.began):
        at = f"sector {lba}, read at {read.began:.3f}"
        if read.number == UNREADABLE:
            yield f"{at}: holds what was never written to it"
        elif read.number != NEVER_WRITTEN and known.sent.get(read.number, float("inf")) > read.ended:
            yield f"{at}: holds write {read.number}, which had not been sent"
        elif read.number < (least := acknowledged.least(read.began)):
            yield f"{at}: write {least} was acknowledged, but write {read.number} is there: a stale or lost write"
        elif read.number < (seen := known.least(read.began)):
            yield f"{at}: an earlier read returned write {seen}, this one the older write {read.number}: it went back"


def _register(writes: Iterable[Write], reads: Iterable[Read]) -> _Register:
    known = [(write.acknowledged_at, write.number) for write in writes if write.acknowledged_at is not None]
    known += [(read.ended, read.number) for read in reads]
    known.sort()
    sent: dict[int, float] = {}
    for write in writes:
        sent[write.number] = min(write.sent_at, sent.get(write.number, write.sent_at))
    return _Register([at for at, _ in known], list(accumulate((number for _, number in known), max)), sent)
