"""What workers report, into the history. A report delivered twice is recorded once."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from sqlalchemy.orm import Session

from rpc.bus import Handler
from rpc.messages import ExportReport, Message
from sanderling.model.exports import ExportId
from sanderling.records import events, moves
from sanderling.records.database import Records

SEEN: Final = ("served", "adopted", "left", "refused", "fenced", "lapsed", "handed_on", "kept")
"""The words of a report; each is an event type of the bus and the kind of an event in the history."""

GAP_ALERT: Final = "alert.gap"


def handlers(records: Records, *, gap_alert_s: float, tell: Callable[[], None]) -> Mapping[str, tuple[type[Message], Handler]]:
    """By event type. `Unavailable` from the records means that the report is delivered again.

    A gap in service is stored with its move, and is an alert of its own when it is longer than `gap_alert_s`, unless that is 0.
    """

    def record(report: ExportReport) -> Message | None:
        with records.begin() as session:
            if events.is_recorded(session, report.report_id):
                return None
            operation_id = _note_gap(session, report)
            is_said = _is_heirs(report) and operation_id is None  # by the source, whose gap has the beginning, too
            append = partial(
                events.append,
                session,
                at=records.now(),
                actor=report.node,
                resource_id=report.disk_id,
                operation_id=operation_id,
            )
            data = {**report.detail, "index": report.index, "epoch": f"{report.generation}.{report.counter}"}
            append(f"export.{report.seen}", data=data, source_id=report.report_id)
            if 0 < gap_alert_s < _gap_s(report) and not is_said:
                append(GAP_ALERT, data={**data, "seen": report.seen, "allowed_s": gap_alert_s})
        tell()
        return None

    return {f"export.{seen}": (ExportReport, record) for seen in SEEN}


def _note_gap(session: Session, report: ExportReport) -> str | None:
    """The id of the operation whose move this gap belongs to, if it is one's."""
    told, gap_s = report.detail, _gap_s(report)
    if not gap_s:
        return None
    operation_id: str | None
    if report.seen in {"handed_on", "kept"}:
        source, destination, operation_id = report.node, str(told.get("to", "")), told.get("operation_id")
    elif _is_heirs(report):
        source, destination, operation_id = str(told.get("was_on", "")), report.node, None
    else:
        return None
    export = ExportId(report.disk_id, report.index)
    return moves.note_gap(session, export, source=source, destination=destination, gap_s=gap_s, operation_id=operation_id)


def _is_heirs(report: ExportReport) -> bool:
    """Whether it is of who was handed an export, of the gap that this one saw."""
    return report.seen == "served" and report.detail.get("kind") == "move"


def _gap_s(report: ExportReport) -> float:
    """0 when the report tells of none."""
    gap_s = report.detail.get("gap_s")
    return float(gap_s) if isinstance(gap_s, int | float) else 0.0
