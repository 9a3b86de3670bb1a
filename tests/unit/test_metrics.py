"""What processes measure: that what happens is counted once, where an alert looks for it, and under labels that cannot grow."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Histogram
from prometheus_client.metrics import MetricWrapperBase

import conductor.metrics
import iscsi_worker.metrics
import leader.metrics
import rpc.parking
from iscsi_worker.metrics import Locks
from iscsi_worker.view import Held
from sanderling.clock import ManualClock
from sanderling.errors import Unavailable
from sanderling.measuring import timed
from sanderling.model.exports import Export, ExportId, ExportPhase
from sanderling.model.operations import OperationKind, OperationState
from sanderling.records.tables import OperationRow
from tests.house import Gateways, House
from tests.unit.api_app import Api, running
from tests.unit.test_leases import Bench
from tests.unit.views import view_of


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def grown(name: str, act: Callable[[], object], **labels: str) -> float:
    """By how much the sample has grown once `act` is done."""
    before = value(name, **labels)
    act()
    return value(name, **labels) - before


def holding(phase: ExportPhase, counter: int = 1) -> Held:
    return Held(Export(generation=1, counter=counter, node="a", phase=phase), "session-a", 1)


def test_the_age_of_a_lock_counts_from_when_its_export_entered_its_phase() -> None:
    one, two, locks = ExportId("d1", 0), ExportId("d2", 0), Locks()
    for now, phases in ((0.0, (ExportPhase.TAKING,) * 2), (3.0, (ExportPhase.TAKING, ExportPhase.SERVING))):
        view = view_of({}, {one: holding(phases[0]), two: holding(phases[1])})
        locks.look(view, view.held_by("session-a"), now=now)
    assert value("sanderling_worker_exports", phase="taking") == 1
    assert value("sanderling_worker_lock_age_seconds", phase="taking") == 3.0
    assert value("sanderling_worker_lock_age_seconds", phase="serving") == 0.0
    taken_anew = view_of({}, {one: holding(ExportPhase.TAKING, counter=2)})
    locks.look(taken_anew, taken_anew.held_by("session-a"), now=5.0)
    assert value("sanderling_worker_lock_age_seconds", phase="taking") == 0.0
    locks.look(view_of({}, {}), (), now=6.0)
    assert value("sanderling_worker_exports", phase="taking") == 0


@pytest.mark.parametrize(
    ("seen", "detail", "kind"),
    [
        ("served", {"kind": "failover", "gap_s": 2.5}, "failover"),
        ("served", {"kind": "restart", "gap_s": 2.5}, "restart"),
        ("served", {"kind": "move", "gap_s": 2.5}, "move_heir"),
        ("handed_on", {"to": "b", "gap_s": 2.5}, "move"),
        ("kept", {"to": "b", "gap_s": 2.5}, "kept"),
    ],
)
def test_a_gap_is_measured_by_what_made_it(seen: str, detail: dict[str, object], kind: str) -> None:
    def report() -> None:
        iscsi_worker.metrics.count_report(seen, detail)

    assert grown("sanderling_worker_gap_seconds_sum", report, kind=kind) == pytest.approx(2.5)
    assert grown("sanderling_worker_reports_total", report, seen=seen) == 1


def test_a_report_without_a_gap_measures_none() -> None:
    def report() -> None:
        iscsi_worker.metrics.count_report("handed_on", {"gap_s": None})

    assert grown("sanderling_worker_gap_seconds_count", report, kind="move") == 0


def test_a_lease_that_nobody_extends_shows_how_little_is_left_of_it() -> None:
    bench = Bench()
    bench.serve()
    bench.leases.cover([replace(lease, gate_open=False) for lease in bench.leases._leases])  # which nothing probes
    bench.proven_until = 5.0
    bench.leases.extend()
    assert value("sanderling_worker_lease_left_seconds") == 5.0
    bench.clock.advance(3.0)
    bench.proven_until = 0.0
    bench.leases.extend()
    assert value("sanderling_worker_lease_left_seconds") == 2.0
    bench.leases.stop()


def test_the_margin_is_what_was_left_when_a_lease_was_extended() -> None:
    bench = Bench()
    bench.serve()
    bench.proven_until = 5.0
    bench.leases.extend()
    bench.clock.advance(1.0)
    bench.proven_until = 6.0
    assert grown("sanderling_worker_lease_margin_seconds_sum", bench.leases.extend) == pytest.approx(4.0)
    bench.leases.stop()


def test_without_an_export_there_is_no_lease_to_alert_on() -> None:
    iscsi_worker.metrics.show_leases(())
    assert math.isnan(value("sanderling_worker_lease_left_seconds"))


def test_what_a_node_is_no_longer_cut_off_on_is_forgotten() -> None:
    cut_off = iscsi_worker.metrics.CutOff()
    cut_off.look(("eth1",), image_store=True)
    assert value("sanderling_worker_cut_off", at="eth1") == value("sanderling_worker_cut_off", at="image-store") == 1
    cut_off.look((), image_store=False)
    assert REGISTRY.get_sample_value("sanderling_worker_cut_off", {"at": "eth1"}) is None
    assert REGISTRY.get_sample_value("sanderling_worker_cut_off", {"at": "image-store"}) == 0


def test_what_is_timed_says_how_it_ended() -> None:
    clock, histogram = ManualClock(), Histogram("timed_in_a_test", "", ["what", "result"], registry=None)
    with timed(histogram, clock, "w"):
        clock.advance(2.0)
    with pytest.raises(Unavailable), timed(histogram, clock, "w"):
        raise Unavailable("away")
    (family,) = histogram.collect()
    sums = {one.labels["result"]: one.value for one in family.samples if one.name.endswith("_sum")}
    assert sums == {"done": 2.0, "unavailable": 0.0}


def test_an_operation_is_counted_where_it_ends_with_the_time_of_each_step(house: House) -> None:
    gateways = Gateways(house.coordination)
    gateways.start()

    def create() -> None:
        house.done(OperationKind.CREATE_DISK, house.disk())

    def create_another() -> None:
        house.done(OperationKind.CREATE_DISK, house.disk(name="other"))

    kind = "disk.create"
    assert grown("sanderling_operations_ended_total", create, kind=kind, state="succeeded") == 1
    step = {"step": "create_image", "way": "do", "result": "done"}
    assert grown("sanderling_step_seconds_count", create_another, **step) == 1
    gateways.stop()


def test_an_operation_that_is_undone_is_counted_as_such(house: House) -> None:
    operation = house.ask(OperationKind.CREATE_DISK, house.disk(), deadline_s=0.3)  # nobody serves it

    def drive() -> None:
        assert house.drive(operation).state is OperationState.ROLLED_BACK

    labels = {"kind": "disk.create", "state": "rolled_back"}
    assert grown("sanderling_operations_ended_total", drive, **labels) == 1
    assert value("sanderling_step_seconds_count", step="publish", way="undo", result="done") >= 1


def test_the_api_tells_how_long_the_oldest_operation_has_waited(api: Api) -> None:
    api.bus.fault = Unavailable("the broker is away")
    api.disk("db")
    with api.records.begin() as session:
        for row in session.query(OperationRow):
            row.created_at -= timedelta(seconds=40)
            row.cast_at = None
    text = api.client.get("/metrics").text
    assert "sanderling_outbox_oldest_seconds 40" in text
    assert 'sanderling_operations_oldest_seconds{state="pending"} 40' in text


def test_the_api_shows_what_the_process_measures_beside_its_own(api: Api) -> None:
    assert f"{rpc.parking.POISON._name}_total" in api.client.get("/metrics").text


@pytest.mark.parametrize("module", [conductor.metrics, iscsi_worker.metrics, leader.metrics])
def test_no_label_names_a_disk_an_export_or_an_operation_but_where_settings_bound_their_number(module: object) -> None:
    bounded = {leader.metrics._OF_EXPORT, leader.metrics._FAILURES, leader.metrics._DELIVERED}  # exports_max, rules_max
    unbounded = [one for one in vars(module).values() if isinstance(one, MetricWrapperBase) and one not in bounded]
    labels = {name for one in unbounded for name in one._labelnames}
    assert labels <= {"kind", "state", "step", "way", "result", "what", "service", "why", "phase", "at", "action", "seen"}
