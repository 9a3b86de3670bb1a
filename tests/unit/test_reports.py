"""Workers' reports become history, once each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor.endpoints import reports
from rpc.messages import ExportReport
from sanderling.clock import ManualClock
from sanderling.model.moves import Move, MoveEvent, MoveState
from sanderling.records import assignments, moves
from sanderling.records.database import Records
from sanderling.records.tables import EventRow
from sanderling.settings import Conductor
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
    heard: list[str] = []
    expected, handle = reports.handlers(records, gap_alert_s=5.0, tell=lambda: heard.append("new"))[f"export.{seen}"]
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
    assert heard == ["new"]


def moved(records: Records, *, source: str = "g1") -> str:
    """A move of export d1/2 from the source to g2, under way; its operation's id."""
    move = Move(position=0, disk_id="d1", disk_name="vol", index=2, addresses=("10.0.0.2",), source=source, destination="g2")
    with records.begin() as session:
        asked = assignments.submit(session, moves=[move], conductor=Conductor(), requested_by="alice", now=records.now())
        session.flush()
        moves.apply(session, asked.id, 0, MoveEvent.START, now=records.now(), actor="c1")
    return asked.id


def told(records: Records, seen: str, *, report_id: str = "r1", node: str = "g1", allowed_s: float = 5.0, **detail: Any) -> None:
    _, handle = reports.handlers(records, gap_alert_s=allowed_s, tell=lambda: None)[f"export.{seen}"]
    handle(ExportReport(report_id=report_id, node=node, disk_id="d1", index=2, generation=3, counter=4, seen=seen, detail=detail))


def alerts(records: Records) -> list[EventRow]:
    with records.read() as session:
        return session.query(EventRow).filter_by(kind="alert.gap").all()


@pytest.mark.parametrize("first", ["report", "end"])
def test_the_gap_of_a_move_is_stored_with_it_whichever_comes_first(records: Records, first: str) -> None:
    operation_id = moved(records)
    said: dict[str, Any] = {"to": "g2", "served": True, "gap_s": 0.02, "operation_id": operation_id}
    if first == "report":
        told(records, "handed_on", **said)
    with records.begin() as session:
        moves.apply(session, operation_id, 0, MoveEvent.SUCCEED, now=records.now(), actor="c1")
    if first == "end":
        told(records, "handed_on", **said)
    with records.read() as session:
        (move,) = moves.of(session, operation_id)
        event = session.query(EventRow).filter_by(kind="export.handed_on").one()
    assert (move.gap_s, move.state) == (0.02, MoveState.SUCCEEDED)
    assert event.operation_id == operation_id
    assert alerts(records) == []


def test_a_move_that_was_refused_at_the_end_has_its_gap_too(records: Records) -> None:
    operation_id = moved(records)
    told(records, "kept", to="g2", why="busy", gap_s=3.1, operation_id=operation_id)
    with records.begin() as session:
        moves.apply(session, operation_id, 0, MoveEvent.FAIL, now=records.now(), actor="c1")
    with records.read() as session:
        assert moves.of(session, operation_id)[0].gap_s == 3.1


def test_a_gap_of_another_move_is_not_mixed_up_with_it(records: Records) -> None:
    operation_id = moved(records, source="g3")
    told(records, "handed_on", to="g2", served=True, gap_s=0.02, operation_id=operation_id)
    with records.read() as session:
        assert moves.of(session, operation_id)[0].gap_s is None


def test_a_report_that_was_late_says_nothing_of_the_next_move_between_the_same_gateways(records: Records) -> None:
    operation_id = moved(records)
    told(records, "handed_on", to="g2", served=True, gap_s=0.02, operation_id="an earlier one")
    with records.read() as session:
        assert moves.of(session, operation_id)[0].gap_s is None


@pytest.mark.parametrize("first", ["heir", "source", "heir alone"])
def test_the_gap_that_the_heir_saw_counts_when_the_source_tells_of_none(records: Records, first: str) -> None:
    """A source that dies in the middle, or does not see its heir serve in time, has no gap to tell of."""
    operation_id = moved(records)
    source: dict[str, Any] = {"to": "g2", "operation_id": operation_id, "served": first != "heir alone"}
    if first != "heir alone":
        source["gap_s"] = 0.5
    if first == "source":
        told(records, "handed_on", **source)
    told(records, "served", report_id="r2", node="g2", kind="move", was_on="g1", gap_s=8.0)
    if first != "source":
        told(records, "handed_on", **source)
    with records.read() as session:
        assert moves.of(session, operation_id)[0].gap_s == (8.0 if first == "heir alone" else 0.5)
    assert len(alerts(records)) == (0 if first == "source" else 1), "the source says for how long"


def test_a_gap_that_is_longer_than_allowed_is_an_alert(records: Records) -> None:
    operation_id = moved(records)
    told(records, "handed_on", to="g2", served=True, gap_s=6.0, operation_id=operation_id)
    told(records, "served", report_id="r2", node="g2", gap_s=7.5, kind="failover")
    told(records, "served", report_id="r3", gap_s=4.9, kind="failover")
    move, failover = alerts(records)
    assert (move.operation_id, move.data["gap_s"], move.data["allowed_s"]) == (operation_id, 6.0, 5.0)
    assert (failover.actor, failover.data["gap_s"], failover.data["kind"]) == ("g2", 7.5, "failover")


def test_alerts_of_gaps_can_be_turned_off(records: Records) -> None:
    told(records, "served", gap_s=1000.0, allowed_s=0.0)
    assert alerts(records) == []
