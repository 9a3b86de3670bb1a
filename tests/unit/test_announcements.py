"""Repeated announcements, on a clock that the test moves."""

import pytest

from iscsi_worker.addresses.memory import Memory
from iscsi_worker.announcements import Announcements
from sanderling.clock import ManualClock
from sanderling.model.disks import Path
from sanderling.settings import Worker

PATH = Path(index=1, address="10.0.0.5", prefix_len=24, interface="eth0", subnet="s")


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.addresses = Memory(self.clock)
        self.addresses.add(PATH.address, prefix_len=24, interface="eth0", lifetime_s=1000)
        self.certain = True
        self.announcements = self.made(Worker(announcements=3, announce_interval_s=0.1))
        self.many = self.made(Worker(announce_interval_s=0.1, announce_interval_most_s=2))

    def made(self, settings: Worker) -> Announcements:
        return Announcements(settings, self.addresses, certain=lambda: self.certain, clock=self.clock)

    @property
    def announced(self) -> int:
        return self.addresses.announced[PATH.address]

    def pass_time(self, seconds: float) -> float | None:
        self.clock.advance(seconds)
        return self.announcements.turn()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_address_is_announced_as_often_and_as_far_apart_as_set_the_first_time_being_the_takers_own(bench: Bench) -> None:
    bench.announcements.repeat([PATH])
    assert bench.pass_time(0.05) == pytest.approx(0.05)
    assert bench.announced == 0
    assert bench.pass_time(0.06) == pytest.approx(0.19)
    assert bench.announced == 1
    assert bench.pass_time(0.2) is None
    assert bench.announced == 2
    assert bench.pass_time(10) is None
    assert bench.announced == 2


def test_announcements_go_on_further_and_further_apart_until_whoever_was_deaf_has_heard_one(bench: Bench) -> None:
    bench.many.repeat([PATH])
    left_s, pauses = bench.many.turn(), []
    while left_s is not None:
        pauses.append(round(left_s, 6))
        bench.clock.advance(left_s + 1e-9)
        left_s = bench.many.turn()
    assert pauses[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0])
    assert max(pauses) == 2.0
    assert bench.announced == len(pauses) == Worker().announcements - 1
    assert sum(pauses) > 30


def test_any_number_of_announcements_can_be_asked_for(bench: Bench) -> None:
    often = bench.made(Worker(announcements=5_000, announce_interval_s=0.1, announce_interval_most_s=2))
    often.repeat([PATH])
    bench.clock.advance(10_000)
    bench.addresses.add(PATH.address, prefix_len=24, interface="eth0", lifetime_s=1000)
    assert often.turn() is None
    assert bench.announced == 4_999


def test_nothing_is_announced_while_it_is_not_certain_whose_it_is(bench: Bench) -> None:
    bench.many.repeat([PATH])
    bench.certain = False
    bench.clock.advance(10)
    bench.many.turn()
    assert bench.announced == 0
    bench.certain = True
    bench.clock.advance(2)
    bench.many.turn()
    assert bench.announced == 1


def test_what_is_forgotten_is_announced_no_more(bench: Bench) -> None:
    bench.announcements.repeat([PATH])
    bench.announcements.forget([PATH.address])
    assert bench.pass_time(10) is None
    assert bench.announced == 0


def test_one_address_that_cannot_be_announced_does_not_hold_up_the_others(bench: Bench) -> None:
    away = PATH.model_copy(update={"index": 2, "address": "10.0.0.6", "interface": "eth9"})
    bench.announcements.repeat([away, PATH])
    bench.pass_time(10)
    assert bench.announced == 2
