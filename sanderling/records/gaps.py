"""The gaps that workers have reported: how long operations were held by a move, or nobody served an export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from sanderling.records.tables import EventRow, MoveRow

SERVED: Final = "export.served"
FAILOVER: Final = "failover"  # the `kind` in the report of a gateway that took over from one that was gone
RESTART: Final = "restart"  # and of one that serves again what its own process had served


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds, the newest first."""

    moves: Sequence[float]
    failovers: Sequence[float]
    restarts: Sequence[float]


def recent(session: Session, *, limit: int) -> Gaps:
    """Those of the newest `limit` moves, also of such as ended where they began, failovers, and restarts that have one."""

    def reported(kind: str) -> list[float]:
        query = select(EventRow.data).where(EventRow.kind == SERVED, EventRow.data["kind"].as_string() == kind)
        return _seconds(list(session.scalars(query.order_by(EventRow.id.desc()).limit(limit))))

    moved = select(MoveRow.gap_s).where(MoveRow.gap_s.is_not(None)).order_by(MoveRow.started_at.desc()).limit(limit)
    return Gaps([gap for gap in session.scalars(moved) if gap is not None], reported(FAILOVER), reported(RESTART))


def quantile(gaps: Sequence[float], part: float) -> float | None:
    """The gap that this part of them (0 to 1) did not exceed; None when there are none."""
    ordered = sorted(gaps)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None


def _seconds(reports: Sequence[dict[str, object]]) -> list[float]:
    return [float(gap) for data in reports if isinstance(gap := data.get("gap_s"), int | float)]
