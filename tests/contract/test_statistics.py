"""What the window of samples promises: one sample a slot, averages behind it, and an end."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sanderling import settings
from sanderling.clock import ManualClock
from sanderling.model.statistics import Figures, Sample, average, slot
from sanderling.records import statistics
from sanderling.records.database import Records
from sanderling.records.statistics import FINE

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=ManualClock())
    opened.migrate()
    yield opened
    opened.close()


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def record(records: Records, seconds: float, **figures: Figures) -> set[str]:
    """Samples of resources, whose names are written with "_" for "/"."""
    with records.begin() as session:
        return statistics.record(
            session, [Sample(at(seconds), resource.replace("_", "/"), each) for resource, each in figures.items()]
        )


def page(records: Records, *, span_s: int = FINE, limit: int = 100, resource: str | None = None) -> list[Sample]:
    with records.read() as session:
        return statistics.page(session, since=START, span_s=span_s, limit=limit, resource=resource)


def test_a_slot_is_the_same_for_whoever_looks_within_it() -> None:
    assert slot(at(19.999), 10) == slot(at(10), 10) == at(10)
    assert slot(at(20), 10) == at(20)
    assert slot(at(1.3), 0.5) == at(1)


def test_an_average_is_of_the_known_numbers_and_takes_the_last_of_the_rest() -> None:
    figures: list[Figures] = [
        {"used_bytes": 10, "live": True, "gateway": "a", "free_bytes": None},
        {"used_bytes": None, "live": True, "gateway": "a", "free_bytes": None},
        {"used_bytes": 20, "live": False, "gateway": "b", "free_bytes": None},
    ]
    assert average(figures) == {"used_bytes": 15, "live": False, "gateway": "b", "free_bytes": None}


def test_a_slot_that_another_leader_measured_stays_as_it_is(records: Records) -> None:
    assert record(records, 10, cluster={"exports": 1}) == {"cluster"}
    assert record(records, 10, cluster={"exports": 2}, gateway_a={"exports": 3}) == {"gateway/a"}
    assert [(sample.resource, sample.figures["exports"]) for sample in page(records)] == [("cluster", 1), ("gateway/a", 3)]


def test_pages_go_on_behind_the_last_sample_of_the_one_before(records: Records) -> None:
    for seconds in (0, 10, 20):
        record(records, seconds, cluster={}, gateway_a={}, gateway_b={}, export_d_0={})
    seen, after = list[tuple[datetime, str]](), None
    for _ in range(100):
        with records.read() as session:
            found = statistics.page(session, since=START, span_s=FINE, limit=5, after=after)
        if not found:
            break
        seen += [(sample.at, sample.resource) for sample in found]
        after = seen[-1]
    assert len(seen) == len(set(seen)) == 12
    assert seen == sorted(seen)


def test_samples_are_found_by_resource_and_by_what_is_above_it(records: Records) -> None:
    record(records, 0, cluster={}, gateway_a={}, gateway_ab={}, export_d_0={}, export_e_1={})
    assert [sample.resource for sample in page(records, resource="gateway/a")] == ["gateway/a"]
    assert [sample.resource for sample in page(records, resource="gateway/")] == ["gateway/a", "gateway/ab"]
    assert [sample.resource for sample in page(records, resource="export/e/")] == ["export/e/1"]
    assert page(records, resource="export/%/") == []


def test_averages_are_made_of_slots_that_are_over_once_and_not_of_exports(records: Records) -> None:
    for seconds in range(0, 650, 10):
        record(records, seconds, cluster={"exports": seconds}, export_d_0={"connections": 1})
    made = []
    for _ in range(5):
        with records.begin() as session:
            made.append(statistics.thin(session, coarse_s=300, now=at(640)))
    assert made == [True, True, False, False, False]
    found = page(records, span_s=300)
    assert [(sample.at, sample.resource) for sample in found] == [(at(0), "cluster"), (at(300), "cluster")]
    assert [sample.figures["exports"] for sample in found] == [145, 445]


def test_a_gap_in_what_was_measured_is_a_gap_in_the_averages_and_holds_nothing_up(records: Records) -> None:
    record(records, 0, cluster={"exports": 1})
    record(records, 3000, cluster={"exports": 2})
    for _ in range(3):
        with records.begin() as session:
            statistics.thin(session, coarse_s=300, now=at(4000))
    assert [sample.at for sample in page(records, span_s=300)] == [at(0), at(3000)]


def test_what_is_older_than_its_bound_is_dropped_a_bounded_part_at_a_time(records: Records) -> None:
    for seconds in range(0, 100, 10):
        record(records, seconds, cluster={}, gateway_a={})
    dropped = []
    for _ in range(4):
        with records.begin() as session:
            dropped.append(statistics.prune(session, fine_before=at(70), coarse_before=at(0), limit=5))
    assert dropped == [6, 6, 2, 0]
    assert {sample.at for sample in page(records)} == {at(70), at(80), at(90)}


def test_averages_are_kept_for_longer_than_what_they_were_made_of(records: Records) -> None:
    record(records, 0, cluster={})
    with records.begin() as session:
        statistics.thin(session, coarse_s=300, now=at(1000))
        statistics.prune(session, fine_before=at(1000), coarse_before=at(-1), limit=100)
    assert page(records) == []
    assert len(page(records, span_s=300)) == 1


def test_the_newest_figures_of_each_gateway_are_found(records: Records) -> None:
    record(records, 0, gateway_a={"live": True}, gateway_b={"live": True})
    record(records, 10, gateway_a={"live": False})
    with records.read() as session:
        assert statistics.gateways(session) == {"a": {"live": False}, "b": {"live": True}}
