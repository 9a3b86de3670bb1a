"""The two clocks promise the same; the manual one takes no time over it."""

import threading
from datetime import UTC, timedelta

import pytest

from sanderling.clock import Clock, ManualClock, SystemClock


@pytest.fixture(params=[SystemClock, ManualClock])
def clock(request: pytest.FixtureRequest) -> Clock:
    made: Clock = request.param()
    return made


def test_waiting_passes_the_time_that_was_asked_for(clock: Clock) -> None:
    before = clock.monotonic()
    assert not clock.wait(threading.Event(), 0.01)
    assert clock.monotonic() - before >= 0.01


def test_an_event_that_is_set_ends_the_wait(clock: Clock) -> None:
    event = threading.Event()
    event.set()
    assert clock.wait(event, 3600)


def test_a_wait_that_is_overdue_ends_at_once(clock: Clock) -> None:
    before = clock.monotonic()
    assert not clock.wait(threading.Event(), -5)
    assert clock.monotonic() >= before


def test_the_time_of_day_knows_its_zone(clock: Clock) -> None:
    assert clock.wall().tzinfo is UTC


def test_the_manual_clock_moves_both_times_together_and_never_back() -> None:
    clock = ManualClock()
    wall = clock.wall()
    clock.advance(3600)
    assert clock.monotonic() == 3600
    assert clock.wall() - wall == timedelta(hours=1)
    with pytest.raises(AssertionError, match="does not go back"):
        clock.advance(-1)
