"""What will not go away when an export leaves a node, an address or a process: it holds nobody up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_worker_moves import Pair, said


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.stop()


@pytest.mark.rows("PA-42", "W-PA-14")
def test_an_address_that_will_not_go_away_keeps_no_export_from_being_handed_on(pair: Pair) -> None:
    pair.a.addresses.is_stuck = True
    pair.ask_to_move()
    pair.until(pair.b.serves, "b serves")
    pair.until(lambda: "handed_on" in said(pair.a) and not pair.a.targets.actual(), "a has ended")
    assert said(pair.a)["handed_on"].detail["gap_s"] > 0
    assert "kept" not in said(pair.a), "it was not"
    assert pair.a.addresses.lent() == {"10.0.0.1"}, "until its lifetime is over"


@pytest.mark.rows("PA-42", "W-PA-14")
def test_an_address_that_will_not_go_away_keeps_no_export_from_being_given_up(pair: Pair) -> None:
    pair.a.addresses.is_stuck = True
    pair.command(pair.a, "clean")
    pair.until(pair.b.serves, "b serves")
    assert not pair.memory.fenced, "it was given up in order"


def test_an_address_that_will_not_go_away_keeps_no_lock_that_could_not_be_used(pair: Pair) -> None:
    pair.b.targets.fails, pair.b.addresses.is_stuck = {"open_portal"}, True
    pair.ask_to_move()
    pair.until(lambda: "refused" in said(pair.b), "b has tried")
    pair.until(pair.a.serves, "a serves again")


def test_a_process_that_will_not_end_was_handed_on_all_the_same_and_is_dropped_once_it_can_be(pair: Pair) -> None:
    pair.a.targets.fails = {"stop"}
    pair.ask_to_move()
    pair.until(lambda: pair.b.serves() and "handed_on" in said(pair.a), "b serves")
    pair.until(lambda: bool(pair.memory.fenced), "what does not end is fenced")
    assert pair.a.worker._intents.told().kept == {}, "it was not"
    pair.a.targets.fails = set()
    pair.until(lambda: not pair.a.targets.actual() and not pair.a.addresses.lent(), "a has ended")
    assert pair.b.serves()
