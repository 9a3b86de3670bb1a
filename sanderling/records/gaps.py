"""The gaps that workers have reported: how long operations were held by a move, or an export was without owner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from sanderling.records.tables import EventRow

MOVED: Final = "export.handed_on"
SERVED: Final = "export.served"
FAILOVER: Final = "failover"  # the `kind` in the report of a gateway that took over from one that was gone


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds, the newest first."""

    moves: Sequence[float]
    failovers: Sequence[float]


def recent(session: Session, *, limit: int) -> Gaps:
    """Those in the newest `limit` moves and the newest `limit` failovers that were reported."""

    def reports(*these: ColumnElement[bool]) -> list[dict[str, object]]:
        query = select(EventRow.data).where(*these).order_by(EventRow.id.desc()).limit(limit)
        return list(session.scalars(query))

    failovers = reports(EventRow.kind == SERVED, EventRow.data["kind"].as_string() == FAILOVER)
    return Gaps(_seconds(reports(EventRow.kind == MOVED)), _seconds(failovers))


def quantile(gaps: Sequence[float], part: float) -> float | None:
    """The gap that this part of them (0 to 1) did not exceed; None when there are none."""
    ordered = sorted(gaps)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None


def _seconds(reports: Sequence[dict[str, object]]) -> list[float]:
    return [float(gap) for data in reports if isinstance(gap := data.get("gap_s"), int | float)]
