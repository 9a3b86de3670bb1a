"""Who finds itself cut off from the image store, when, and for how long: several gateways over a store that a test takes away."""

import threading
from collections.abc import Iterator

import pytest

from iscsi_worker.image_store import ImageStore, Pulse
from iscsi_worker.view import View
from sanderling.clock import ManualClock, SystemClock
from sanderling.errors import Unavailable
from sanderling.model.exports import Gateway, Store
from sanderling.settings import Worker
from tests.unit.views import view_of

SETTINGS = Worker()
TURN_S = SETTINGS.store_ask_interval_s
SILENT_S = SETTINGS.store_silent_s
CUT_WITHIN = int((SILENT_S + 4 * TURN_S) / TURN_S)


class Node:
    """One gateway: its worker's part that asks the store, and what is wrong with the node. `is_certain` says that it knows its
    own place among the gateways."""

    def __init__(self, name: str, site: "Site") -> None:
        self.name, self._site = name, site
        self.is_cut = self.is_withdrawing = self.is_dead = self.hangs = False
        self.is_certain = True
        self.woken = 0
        self.answer_every = 1  # of so many times that it is asked
        self._asked = 0
        self.pulse = Pulse(self, SETTINGS, clock=site.clock)
        self.store = ImageStore(
            name,
            SETTINGS,
            self.pulse,
            view=lambda: site.seen,
            certain=lambda: self.is_certain,
            on_change=self._wake,
            clock=site.clock,
        )

    def _wake(self) -> None:
        self.woken += 1

    def touch(self) -> None:
        self._asked += 1
        if self.is_cut or self._site.is_away or self._asked % self.answer_every:
            raise Unavailable("no answer", dependency="ceph")

    def turn(self) -> None:
        if not self.hangs:
            self.pulse.ask()
        self.store.turn()

    @property
    def gateway(self) -> Gateway:
        return Gateway(name=self.name, withdrawing=self.is_withdrawing, store=self.store.said)


class Site:
    """Every gateway's turn sees what all of them published in the turn before."""

    def __init__(self, names: str) -> None:
        self.clock = ManualClock()
        self.is_away = False
        self.seen: View | None = None
        self.nodes = {name: Node(name, self) for name in names}
        self.turn(3)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            live = [node for node in self.nodes.values() if not node.is_dead]
            self.seen = view_of({}, {}, {node.name: node.gateway for node in live})
            for node in live:
                node.turn()
            self.clock.advance(TURN_S)

    @property
    def cut(self) -> set[str]:
        return {name for name, node in self.nodes.items() if node.store.said.cut_off}

    @property
    def answered(self) -> set[str]:
        return {name for name, node in self.nodes.items() if node.store.said.answers}


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_gateway_that_the_store_does_not_answer_while_it_answers_others_is_cut_off_within_the_bound(names: str) -> None:
    site = Site(names)
    assert site.answered == set(names)
    site.nodes["a"].is_cut = True
    site.turn(int(SILENT_S / TURN_S) - 1)
    assert site.cut == set(), "too early"
    site.turn(CUT_WITHIN - int(SILENT_S / TURN_S) + 1)
    assert site.cut == {"a"}
    assert site.nodes["a"].store.said.is_lost
    assert site.answered == set(names) - {"a"}


def test_while_the_store_answers_everybody_nothing_is_published_again() -> None:
    site = Site("abc")
    before = [node.woken for node in site.nodes.values()]
    site.turn(50)
    assert [node.woken for node in site.nodes.values()] == before == [1, 1, 1]


@pytest.mark.parametrize("away_for", [3, 7, 12, 60, 600])
def test_a_store_that_is_away_for_all_moves_nothing_however_long_and_whoever_is_answered_first_when_it_is_back(
    away_for: int,
) -> None:
    site = Site("abc")
    site.is_away = True
    site.turn(away_for)
    assert site.cut == set()
    site.nodes["a"].is_cut = True  # it finds the store a little later than the others
    site.is_away = False
    site.turn(int(SETTINGS.store_believed_s / TURN_S) + 2)
    site.nodes["a"].is_cut = False
    site.turn(30)
    assert site.cut == set()
    assert site.answered == {"a", "b", "c"}


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_store_that_goes_away_for_one_a_little_earlier_than_for_the_others_moves_nothing(late: int) -> None:
    site = Site("abc")
    site.nodes["a"].is_cut = True
    site.turn(late)
    site.is_away = True
    site.turn(60)
    assert site.cut == set()


def test_a_store_that_hangs_briefly_for_one_gateway_causes_nothing() -> None:
    site = Site("ab")
    for _ in range(5):
        site.nodes["a"].is_cut = True
        site.turn(int(SILENT_S / TURN_S) - 2)
        site.nodes["a"].is_cut = False
        site.turn(2)
    assert site.cut == set()


def test_one_answer_in_many_is_no_silence_and_no_word_to_rely_on_and_is_not_published_again_and_again() -> None:
    site = Site("ab")
    for node in site.nodes.values():
        node.answer_every = 5
    site.turn(20)
    before = [node.woken for node in site.nodes.values()]
    site.turn(100)
    assert (site.cut, site.answered) == (set(), set())
    assert [node.woken for node in site.nodes.values()] == before


@pytest.mark.parametrize("trouble", ["is_dead", "is_withdrawing", "is_cut"])
def test_a_peer_that_is_dead_withdraws_or_is_not_answered_either_is_no_witness(trouble: str) -> None:
    site = Site("ab")
    setattr(site.nodes["b"], trouble, True)
    site.nodes["a"].is_cut = True
    site.turn(100)
    assert site.cut == set()


def test_a_peer_that_says_nothing_of_the_store_as_an_older_release_does_is_no_witness() -> None:
    site = Site("a")
    site.nodes["a"].is_cut = True
    for _ in range(60):
        site.turn()
        site.seen = view_of({}, {}, {"a": site.nodes["a"].gateway, "old": Gateway(name="old")})
        site.nodes["a"].turn()
    assert site.cut == set()


def test_a_gateway_is_no_witness_against_itself() -> None:
    site = Site("a")
    node = site.nodes["a"]
    site.seen = view_of({}, {}, {"a": node.gateway})
    assert node.store.said.answers
    node.is_cut = True
    for _ in range(60):  # what it said before stays to be seen
        node.turn()
        site.clock.advance(TURN_S)
    assert site.cut == set()


def test_what_peers_say_counts_only_from_when_this_node_knows_its_own_place_again() -> None:
    """Coordination was away together with the store and is back first: what peers have said is from before."""
    site = Site("ab")
    site.nodes["a"].is_cut = True
    site.nodes["a"].is_certain = False
    site.turn(60)
    assert site.cut == set()
    site.nodes["a"].is_certain = True
    site.turn(int(SETTINGS.store_believed_s / TURN_S))
    assert site.cut == set()
    site.turn(4)
    assert site.cut == {"a"}


def test_who_is_answered_again_stands_back_for_a_while_and_longer_when_it_happens_again_soon() -> None:
    site = Site("ab")
    held = []
    for _ in range(3):
        site.nodes["a"].is_cut = True
        site.turn(CUT_WITHIN)
        site.nodes["a"].is_cut = False
        began = site.clock.monotonic()
        while site.cut:
            site.turn()
        held.append(site.clock.monotonic() - began)
    assert held[0] >= SETTINGS.store_hold_s - 2 * TURN_S
    assert held[1] > held[0] + SETTINGS.store_hold_s / 2
    assert held[2] > held[1] + SETTINGS.store_hold_s


def test_once_the_store_is_away_for_the_others_as_well_nobody_stands_back_for_good() -> None:
    site = Site("ab")
    site.nodes["a"].is_cut = True
    site.turn(CUT_WITHIN)
    assert site.cut == {"a"}
    site.is_away = True
    site.turn(int(SETTINGS.store_hold_s / TURN_S) + 10)
    assert site.cut == set()


def test_a_process_that_was_stopped_and_resumed_is_not_silent_for_the_time_that_it_was_stopped() -> None:
    site = Site("ab")
    site.nodes["a"].is_cut = True
    site.turn()
    site.nodes["a"].is_cut = False
    site.clock.advance(60.0)
    assert not site.nodes["a"].pulse.is_silent
    site.turn(10)
    assert site.cut == set()


class Hanging:
    """A store that lets its asker hang until it is told otherwise."""

    def __init__(self) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()

    def touch(self) -> None:
        self.asked.set()
        assert self.answer.wait(30)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    store = Hanging()
    yield store
    store.answer.set()


def test_a_store_that_lets_its_asker_hang_does_not_answer(hanging: Hanging) -> None:
    clock = ManualClock()
    pulse = Pulse(hanging, SETTINGS, clock=clock)
    asker = threading.Thread(target=pulse.ask, daemon=True)
    asker.start()
    assert SystemClock().wait(hanging.asked, 10)
    assert not pulse.is_silent
    clock.advance(SILENT_S)
    assert pulse.is_silent
    assert not pulse.is_fresh
    hanging.answer.set()
    asker.join(10)
    assert not pulse.is_silent
    assert not pulse.is_fresh, "what was asked so long ago says nothing of now"


def test_a_store_whose_answers_take_long_is_not_relied_on_and_is_not_published_again_and_again() -> None:
    site = Site("a")
    node = site.nodes["a"]
    step_s, took = TURN_S / 2, int(2 * SETTINGS.store_believed_s / TURN_S) - 2
    said = []

    def turn() -> None:
        site.clock.advance(step_s)
        node.store.turn()
        said.append(node.store.said)

    for _ in range(20):
        began = site.clock.monotonic()
        for _ in range(took):
            turn()
        node.pulse._ended(began)
        for _ in range(3):
            turn()
    assert said[-30:] == [Store()] * 30


def test_an_error_that_nobody_foresaw_counts_as_no_answer() -> None:
    class Broken:
        def touch(self) -> None:
            raise ZeroDivisionError

    clock = ManualClock()
    pulse = Pulse(Broken(), SETTINGS, clock=clock)
    for _ in range(int(SILENT_S)):
        with pytest.raises(ZeroDivisionError):
            pulse.ask()
        clock.advance(1.0)
    assert pulse.is_silent


def test_the_first_answer_of_all_is_relied_on_at_once_and_one_after_a_failure_is_not() -> None:
    site = Site("a")
    fresh = Node("b", site)
    fresh.turn()
    assert fresh.store.said == Store(answers=True)
    failed = Node("c", site)
    failed.is_cut = True
    failed.turn()
    failed.is_cut = False
    failed.turn()
    assert failed.store.said == Store()


def test_a_gateway_whose_exports_are_answered_is_not_cut_off_whatever_else_is() -> None:
    site = Site("ab")
    site.nodes["a"].is_cut = True
    for _ in range(3 * CUT_WITHIN):
        site.nodes["a"].pulse.heard()
        site.turn()
    assert not site.nodes["a"].store.said.cut_off
    site.turn(CUT_WITHIN)
    assert site.nodes["a"].store.said.cut_off


def test_a_store_that_answers_late_is_not_one_that_a_failed_probe_can_be_held_against() -> None:
    clock = ManualClock()
    late_s = 0.0

    class Late:
        def touch(self) -> None:
            clock.advance(late_s)

    pulse = Pulse(Late(), SETTINGS, clock=clock)

    def asked_for(seconds: float) -> None:
        for _ in range(int(seconds / TURN_S)):
            pulse.ask()
            clock.advance(TURN_S - late_s)

    asked_for(5)
    assert pulse.is_steady
    late_s = 0.6 * SETTINGS.store_ask_timeout_s
    asked_for(5)
    assert not pulse.is_steady
    assert not pulse.is_silent
    late_s = 0.0
    asked_for(SETTINGS.store_believed_s + 1)
    assert pulse.is_steady
