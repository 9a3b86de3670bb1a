"""Workers' reports become history, once each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.endpoints import reports
from rpc.messages import ExportReport
from sanderling.clock import ManualClock
from sanderling.records.database import Records
from sanderling.records.tables import EventRow
from sanderling.settings import Records as RecordsSettings


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(RecordsSettings(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=ManualClock())
    opened.migrate()
    yield opened
    opened.close()


@pytest.mark.rows("W-MC-4")
@pytest.mark.parametrize("seen", reports.SEEN)
def test_a_report_delivered_twice_is_recorded_once(records: Records, seen: str) -> None:
    told: list[str] = []
    expected, handle = reports.handlers(records, tell=lambda: told.append("new"))[f"export.{seen}"]
    report = ExportReport(
        report_id="r1", node="g1", disk_id="d1", index=2, generation=3, counter=4, seen=seen, detail={"client": "c"}
    )
    assert expected is ExportReport
    for _ in range(2):
        handle(report)
    with records.read() as session:
        (row,) = session.query(EventRow).all()
    assert (row.kind, row.actor, row.resource_id) == (f"export.{seen}", "g1", "d1")
    assert row.data == {"client": "c", "index": 2, "epoch": "3.4"}
    assert told == ["new"]
