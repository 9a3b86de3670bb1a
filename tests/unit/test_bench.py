"""What the benchmarks compute from what they measure; what they measure is never judged by a test."""

import pytest

from bench.__main__ import BENCHMARKS
from bench.probe import longest_gap
from bench.reference import Constants
from bench.report import Goal, Samples, extrapolated, interleaved, percentile


def test_a_percentile_is_always_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert percentile(values, 50) == 100
    assert percentile(values, 99) == 198
    assert percentile(values, 100) == 200
    assert percentile([3.0], 99) == 3.0


def test_an_extrapolation_repeats_the_mean_and_adds_what_happens_once() -> None:
    assert extrapolated([1.0, 3.0], 500, fixed_s=13.0) == 1013.0


def test_the_rarely_measured_stands_evenly_among_the_others() -> None:
    order = interleaved({"ours": 6, "naive": 2, "reference": 1})
    assert sorted(order) == ["naive"] * 2 + ["ours"] * 6 + ["reference"]
    assert order.index("reference") == 4
    halves = order[:4], order[5:]
    assert [half.count("naive") for half in halves] == [1, 1]


@pytest.mark.parametrize(
    ("since", "gap"),
    [
        pytest.param(1.5, 4.0, id="begun before and ended after"),
        pytest.param(5.5, 4.0, id="under way already"),
        pytest.param(6.0, 1.0, id="over before"),
    ],
)
def test_a_gap_counts_when_it_ends_after_the_fault(since: float, gap: float) -> None:
    assert longest_gap([0.0, 1.0, 2.0, 6.0, 6.5, 7.5], since=since) == gap


def test_a_gap_that_has_not_ended_is_no_answer() -> None:
    with pytest.raises(AssertionError, match="no answer"):
        longest_gap([0.0, 1.0], since=1.0)


def test_a_goal_is_met_at_its_bound() -> None:
    assert Goal("a", 80, at_least=80).met
    assert Goal("a", 0.02, at_most=0.02).met
    assert not Goal("a", 79.9, at_least=80).met


def test_samples_without_processor_time_are_reported() -> None:
    sample = Samples("gap", 1, [0.3, 0.1, 0.2])
    assert (sample.median_s, sample.p99_s) == (0.2, 0.3)


def test_the_reference_without_its_sleeps_sleeps_nowhere() -> None:
    bare = Constants().without_sleeps
    assert bare.fixed_s == bare.batch_s == bare.poll_s == bare.fence_s == bare.after_map_s == 0


def test_every_figure_has_a_benchmark() -> None:
    assert set(BENCHMARKS) == {"planner", "moves", "failover", "rebalance", "reconcile", "accept", "start"}
