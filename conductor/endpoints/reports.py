"""What workers report, into the history. A report delivered twice is recorded once."""

from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import select

from rpc.bus import Handler
from rpc.messages import ExportReport, Message
from sanderling.records import events
from sanderling.records.database import Records
from sanderling.records.tables import EventRow

SEEN: Final = ("served", "adopted", "left", "refused", "fenced", "lapsed")
"""The words of a report; each is an event type of the bus and the kind of an event in the history."""


def handlers(records: Records, *, tell: Callable[[], None]) -> Mapping[str, tuple[type[Message], Handler]]:
    """By event type. `Unavailable` from the records means that the report is delivered again."""

    def record(report: ExportReport) -> Message | None:
        with records.begin() as session:
            if session.scalar(select(EventRow.id).where(EventRow.source_id == report.report_id)) is not None:
                return None
            events.append(
                session,
                f"export.{report.seen}",
                at=records.now(),
                actor=report.node,
                resource_id=report.disk_id,
                data={**report.detail, "index": report.index, "epoch": f"{report.generation}.{report.counter}"},
                source_id=report.report_id,
            )
        tell()
        return None

    return {f"export.{seen}": (ExportReport, record) for seen in SEEN}
