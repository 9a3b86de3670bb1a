"""Leadership without processes: a tenure that stops by itself, and candidates on the embedded store."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from cli.lab.parts.daemons import waited
from leader.duties import Duty, Tenure
from leader.election import Act, Standing
from leader.service import Candidate
from sanderling import settings
from sanderling.clock import ManualClock
from sanderling.coordination.base import Entry, Listing
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.coordination.leaders import leader_of, leaders
from sanderling.errors import SessionLost, StaleTerm, Unavailable
from sanderling.model.leaders import Leader, leader_key
from sanderling.settings import Settings

BOUNDS = settings.Leader()
HANDOVER_S = BOUNDS.lease_s + BOUNDS.duty_stop_timeout_s
KEY = leader_key("cluster")
LAST = Leader(node="b", term=7, since=datetime(2026, 1, 1, tzinfo=UTC))


# --- a tenure ---


class StillClock(ManualClock):
    """Stands still until a test advances it; a wait looks again every few milliseconds."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        until = self.monotonic() + timeout_s
        while not event.wait(0.002):
            if self.monotonic() >= until:
                return False
        return True


@dataclass
class Recorded:
    """A duty that remembers what was done to it, and does what the test wants it to."""

    name: str
    acts: list[str]
    on_start: Callable[[Tenure], None] = lambda tenure: None
    on_stop: Callable[[], None] = lambda: None
    terms: list[int] = field(default_factory=list)
    hangs: bool = False

    def start(self, tenure: Tenure) -> None:
        self.terms.append(tenure.term)
        self.acts.append(f"start {self.name}")
        self.on_start(tenure)

    def stop(self) -> None:
        self.on_stop()
        self.acts.append(f"stop {self.name}")


def holds(released: threading.Event) -> None:
    released.wait(30.0)


@dataclass
class Bench:
    """A clock that stands still, a list of what the duties did, and whether the process would have ended."""

    clock: StillClock = field(default_factory=StillClock)
    acts: list[str] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)

    def tenure(self, *duties: Duty) -> Tenure:
        until = self.clock.monotonic() + BOUNDS.lease_s
        tenure = Tenure(8, duties, until=until, bounds=BOUNDS, clock=self.clock, end_process=self.ends.set)
        tenure.begin()
        return tenure

    def waited(self, *acts: str) -> None:
        waited(lambda: self.acts == list(acts), within_s=5.0, what=f"{acts}")

    def passes_until(self, true: Callable[[], bool], what: str) -> None:
        """Time passes until it is true."""

        def passed() -> bool:
            self.clock.advance(0.1)
            return true()

        waited(passed, within_s=10.0, what=what)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.rows("LE-18", "W-LE-6")
def test_duties_start_in_order_with_their_term_and_end_in_reverse(bench: Bench) -> None:
    first, second = Recorded("one", bench.acts), Recorded("two", bench.acts)
    tenure = bench.tenure(first, second)
    bench.waited("start one", "start two")
    tenure.end()
    assert bench.acts == ["start one", "start two", "stop two", "stop one"]
    assert first.terms == second.terms == [8]
    assert not bench.ends.is_set()


@pytest.mark.rows("W-LE-3")
def test_duties_stop_by_themselves_when_the_lease_runs_out(bench: Bench) -> None:
    tenure = bench.tenure(Recorded("one", bench.acts))
    bench.waited("start one")
    bench.clock.advance(BOUNDS.lease_s)
    assert not tenure.holds()
    bench.waited("start one", "stop one")
    assert tenure.standing is Standing.OVER


def test_a_proof_extends_the_lease_and_an_older_one_does_not_shorten_it(bench: Bench) -> None:
    tenure = bench.tenure()
    tenure.extend(10.0)
    tenure.extend(5.0)
    bench.clock.advance(9.9)
    assert tenure.holds()
    assert tenure.standing is Standing.LEADS
    bench.clock.advance(0.1)
    assert not tenure.holds()


def test_a_proof_that_comes_after_the_end_revives_nothing(bench: Bench) -> None:
    tenure = bench.tenure(Recorded("one", bench.acts))
    bench.waited("start one")
    tenure.end()
    tenure.extend(1000.0)
    assert not tenure.holds()


def test_a_duty_that_does_not_stop_takes_the_process_with_it(bench: Bench) -> None:
    released = threading.Event()
    bench.tenure(Recorded("stuck", bench.acts, on_stop=lambda: holds(released)))
    bench.waited("start stuck")
    bench.clock.advance(BOUNDS.lease_s)
    bench.clock.advance(BOUNDS.duty_stop_timeout_s)
    bench.passes_until(bench.ends.is_set, "the process is ended")
    released.set()


def test_a_duty_that_fails_to_stop_takes_the_process_with_it(bench: Bench) -> None:
    def refuse() -> None:
        raise RuntimeError("no")

    tenure = bench.tenure(Recorded("bad", bench.acts, on_stop=refuse))
    bench.waited("start bad")
    threading.Thread(target=tenure.end, daemon=True).start()
    assert bench.ends.wait(5.0)


def test_a_duty_that_blocks_in_its_start_takes_the_process_with_it_when_it_has_to_stop(bench: Bench) -> None:
    released = threading.Event()
    bench.tenure(Recorded("slow", bench.acts, on_start=lambda tenure: holds(released)))
    bench.waited("start slow")
    bench.clock.advance(BOUNDS.lease_s)
    bench.passes_until(bench.ends.is_set, "the process is ended")
    released.set()


@pytest.mark.rows("W-LE-5")
def test_a_duty_that_does_not_start_ends_the_tenure_and_stops_what_was_begun(bench: Bench) -> None:
    def refuse(tenure: Tenure) -> None:
        raise RuntimeError("no")

    duties = Recorded("one", bench.acts), Recorded("bad", bench.acts, on_start=refuse), Recorded("three", bench.acts)
    tenure = bench.tenure(*duties)
    bench.waited("start one", "start bad", "stop bad", "stop one")
    assert tenure.standing is Standing.FAILED


def test_no_duty_starts_on_a_lease_that_has_run_out(bench: Bench) -> None:
    tenure = Tenure(8, [Recorded("one", bench.acts)], until=0.0, bounds=BOUNDS, clock=bench.clock, end_process=bench.ends.set)
    tenure.begin()
    tenure.end()
    assert bench.acts == []


# --- candidates on the embedded store ---


@dataclass
class Stage(Bench):
    """Candidates that a test moves turn by turn."""

    store: EmbeddedCoordination = field(init=False)

    def __post_init__(self) -> None:
        self.store = EmbeddedCoordination(clock=self.clock)

    def candidate(self, node: str, *duties: Duty) -> Candidate:
        named = Settings(sanderling=settings.General(node=node))
        chosen = duties or (Recorded(node, self.acts),)
        return Candidate("cluster", chosen, named, coordination=self.store, clock=self.clock, end_process=self.ends.set)

    def leading(self, node: str, *duties: Duty) -> Candidate:
        """A candidate that has just won the key."""
        candidate = self.candidate(node, *duties)
        self.turned_until(candidate, Act.CAMPAIGN)
        return candidate

    def turned_until(self, candidate: Candidate, act: Act) -> None:
        """Turn after turn, each when the one before asked for it, until it does this."""
        for _ in range(10):
            action = candidate.turn(0.0)
            if action.act is act:
                return
            self.clock.advance(action.look_s)
        pytest.fail(f"it never did {act}, last {action}")

    def stopped(self, candidate: Candidate) -> None:
        """Stop it while time passes."""
        stopping = threading.Thread(target=candidate.stop, daemon=True)
        stopping.start()
        self.passes_until(lambda: not stopping.is_alive(), "it has stopped")


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.clock.advance(1000.0)  # every tenure ends


def acts_of(candidate: Candidate, turns: int) -> list[Act]:
    return [candidate.turn(0.0).act for _ in range(turns)]


@pytest.mark.rows("LE-1", "LE-2", "LE-3", "LE-16")
def test_a_candidate_starts_as_nobody_and_leads_under_its_services_key(stage: Stage) -> None:
    candidate = stage.candidate("a")
    assert not candidate.leads
    assert stage.store.get(KEY) is None
    leading = stage.leading("a")
    assert leading.leads
    assert stage.store.list("leaders/").entries[0].key == KEY


@pytest.mark.rows("LE-19")
def test_anybody_can_ask_who_leads(stage: Stage) -> None:
    assert leader_of(stage.store, "cluster") is None
    assert leaders(stage.store) == {}
    stage.leading("a")
    found = leader_of(stage.store, "cluster")
    assert found is not None
    assert (found.node, found.left) == ("a", False)
    assert leaders(stage.store) == {"cluster": found}


@pytest.mark.rows("W-LE-10")
def test_no_leader_and_cannot_know_are_different_answers(stage: Stage) -> None:
    class Dead(EmbeddedCoordination):
        def get(self, key: str) -> Entry | None:
            raise Unavailable("the store is away", dependency="coordination")

    with pytest.raises(Unavailable):
        leader_of(Dead(clock=stage.clock), "cluster")
    locker = stage.store.open_session("x", check_ttl_s=60.0)
    assert stage.store.acquire(KEY, b"spoilt", consul_session=locker)
    with pytest.raises(Unavailable):
        leader_of(stage.store, "cluster")


def test_a_leader_that_resigns_stops_its_duties_first_and_another_leads_at_once(stage: Stage) -> None:
    first = stage.leading("a")
    second = stage.candidate("b")
    stage.waited("start a")
    assert acts_of(second, 1) == [Act.WAIT]
    first.step_down()
    assert acts_of(first, 1) == [Act.RESIGN]
    assert stage.acts == ["start a", "stop a"]
    assert leader_of(stage.store, "cluster") is None
    assert acts_of(second, 1) == [Act.CAMPAIGN]
    stage.waited("start a", "stop a", "start b")
    assert acts_of(first, 2) == [Act.REST, Act.WAIT]
    assert not first.leads


def test_terms_grow_from_leader_to_leader(stage: Stage) -> None:
    terms = []
    for node in ("a", "b", "c"):
        candidate = stage.candidate(node)
        stage.turned_until(candidate, Act.CAMPAIGN)
        found = leader_of(stage.store, "cluster")
        assert found is not None
        terms.append(found.term)
        candidate.step_down()
        stage.turned_until(candidate, Act.RESIGN)
    assert terms == sorted(set(terms))


def test_a_silent_leader_is_replaced_and_its_duties_have_stopped_by_then(stage: Stage) -> None:
    stage.leading("a")
    second = stage.candidate("b")
    stage.waited("start a")
    stage.clock.advance(BOUNDS.check_ttl_s + 0.1)
    acts_of(second, 1)
    stage.waited("start a", "stop a")
    stage.turned_until(second, Act.CAMPAIGN)
    stage.waited("start a", "stop a", "start b")


@pytest.mark.rows("W-LE-8")
def test_the_time_to_a_new_leader_is_what_the_settings_of_the_leader_come_to(stage: Stage) -> None:
    stage.leading("a")
    second = stage.candidate("b")
    stage.waited("start a")
    acts_of(second, 1)
    dies_at = stage.clock.monotonic()
    stage.clock.advance(BOUNDS.check_ttl_s + BOUNDS.lock_delay_s)
    stage.turned_until(second, Act.CAMPAIGN)
    pauses = HANDOVER_S + BOUNDS.candidacy_pause_s + 2 * BOUNDS.watch_timeout_s
    assert stage.clock.monotonic() - dies_at <= BOUNDS.check_ttl_s + BOUNDS.lock_delay_s + pauses


@pytest.mark.rows("LE-14", "W-LE-1")
def test_a_leader_whose_session_is_lost_stops_once_and_stands_again_with_a_new_one(stage: Stage) -> None:
    duty = Recorded("a", stage.acts)
    stage.clock.advance(100.0)
    candidate = stage.leading("a", duty)
    stage.waited("start a")
    entry = stage.store.get(KEY)
    assert entry is not None
    assert entry.consul_session is not None
    stage.store.close_session(entry.consul_session)
    with pytest.raises(SessionLost):
        candidate.turn(0.0)
    candidate.start()  # the loop is what handles it
    stage.waited("start a", "stop a")
    stage.passes_until(lambda: candidate.leads, "it leads again")
    stage.waited("start a", "stop a", "start a")
    stage.stopped(candidate)
    assert duty.terms[1] == duty.terms[0] + 1
    assert not candidate.leads


@pytest.mark.rows("W-LE-2")
def test_a_candidate_that_never_led_stops_no_duty(stage: Stage) -> None:
    candidate = stage.candidate("a")
    candidate.start()
    stage.stopped(candidate)
    assert stage.acts == []


@pytest.mark.rows("W-LE-4")
def test_a_duty_that_blocks_in_its_start_does_not_keep_the_loop_from_watching(stage: Stage) -> None:
    released = threading.Event()
    leading = stage.leading("a", Recorded("a", stage.acts, on_start=lambda tenure: holds(released)))
    stage.waited("start a")
    stage.clock.advance(BOUNDS.lease_s / 2)
    assert acts_of(leading, 1) == [Act.GO_ON]
    stage.clock.advance(BOUNDS.lease_s / 2)
    assert leading.leads, "the look in between extended the lease"
    released.set()


def test_a_leader_whose_duty_fails_lets_another_lead(stage: Stage) -> None:
    def refuse(tenure: Tenure) -> None:
        raise RuntimeError("no")

    failing = stage.leading("a", Recorded("a", stage.acts, on_start=refuse))
    second = stage.candidate("b")
    stage.waited("start a", "stop a")
    acts_of(second, 1)
    assert acts_of(failing, 1) == [Act.RESIGN]
    assert acts_of(second, 1) == [Act.CAMPAIGN]


def test_a_leader_whose_duty_hangs_lets_another_lead(stage: Stage) -> None:
    duty = Recorded("a", stage.acts)
    hanging, second = stage.leading("a", duty), stage.candidate("b")
    stage.waited("start a")
    acts_of(second, 1)
    duty.hangs = True
    assert acts_of(hanging, 1) == [Act.RESIGN]
    assert acts_of(second, 1) == [Act.CAMPAIGN]


@pytest.mark.rows("W-LE-4")
def test_a_duty_that_blocks_in_its_start_for_too_long_takes_the_process_with_it_so_that_another_leads(stage: Stage) -> None:
    released = threading.Event()
    leading = stage.leading("a", Recorded("a", stage.acts, on_start=lambda tenure: holds(released)))
    stage.waited("start a")
    for _ in range(int(BOUNDS.duty_start_timeout_s)):
        stage.clock.advance(1.0)
        assert acts_of(leading, 1) == [Act.GO_ON]
    stage.clock.advance(0.5)
    acts: list[Act] = []
    turning = threading.Thread(target=lambda: acts.append(leading.turn(0.0).act), daemon=True)
    turning.start()
    stage.passes_until(stage.ends.is_set, "the process is ended")
    released.set()
    turning.join(5.0)
    assert acts == [Act.RESIGN]


@pytest.mark.rows("W-LE-5", "W-LE-9")
def test_a_leader_whose_duties_fail_again_and_again_stands_less_and_less_often(stage: Stage) -> None:
    def refuse(tenure: Tenure) -> None:
        raise RuntimeError("no")

    failing = stage.leading("a", Recorded("a", stage.acts, on_start=refuse))
    pauses = []
    for times in range(1, 7):
        stage.waited(*["start a", "stop a"] * times)
        assert acts_of(failing, 1) == [Act.RESIGN]
        since = stage.clock.monotonic()
        while failing.turn(0.0).act is not Act.CAMPAIGN:
            stage.clock.advance(0.5)
        pauses.append(stage.clock.monotonic() - since)
    wanted = [min(BOUNDS.candidacy_pause_s * 2**n, BOUNDS.candidacy_pause_most_s) for n in range(6)]
    assert pauses == pytest.approx(wanted, abs=0.5)


@pytest.mark.rows("W-LE-6")
def test_a_leader_whose_writes_were_refused_for_a_later_term_stands_with_a_later_one_still(stage: Stage) -> None:
    def refuse(tenure: Tenure) -> None:
        raise StaleTerm("another has led since", term=tenure.term + 1000)

    duty = Recorded("a", stage.acts, on_start=refuse)
    failing = stage.leading("a", duty)
    stage.waited("start a", "stop a")
    assert acts_of(failing, 1) == [Act.RESIGN]
    stage.passes_until(lambda: failing.turn(0.0).act is Act.CAMPAIGN, "it stands again")
    stage.waited(*["start a", "stop a"] * 2)
    assert duty.terms[1] == duty.terms[0] + 1001


def test_a_candidate_waits_anew_when_the_key_was_another_leaders_in_between(stage: Stage) -> None:
    candidate = stage.candidate("a")
    candidate.turn(0.0)
    stage.clock.advance(HANDOVER_S - 0.1)
    other = stage.store.open_session("b", check_ttl_s=60.0)
    assert stage.store.acquire(KEY, LAST.to_value(), consul_session=other)
    stage.store.close_session(other)
    stage.clock.advance(0.1)
    assert acts_of(candidate, 1) == [Act.WAIT]
    stage.clock.advance(HANDOVER_S - 0.1)
    assert acts_of(candidate, 1) == [Act.WAIT]
    stage.clock.advance(0.1)
    assert acts_of(candidate, 1) == [Act.CAMPAIGN]


def test_a_candidate_does_not_win_a_key_that_is_no_longer_as_it_saw_it(stage: Stage) -> None:
    class Overtaking(EmbeddedCoordination):
        """Another leads for a moment while the candidate opens its session."""

        def open_session(self, name: str, *, check_ttl_s: float, lock_delay_s: int = 0) -> str:
            other = super().open_session("b", check_ttl_s=60.0)
            assert self.acquire(KEY, LAST.to_value(), consul_session=other)
            self.close_session(other)
            return super().open_session(name, check_ttl_s=check_ttl_s, lock_delay_s=lock_delay_s)

    stage.store = Overtaking(clock=stage.clock)
    candidate = stage.candidate("a")
    stage.turned_until(candidate, Act.CAMPAIGN)
    assert not candidate.leads
    assert acts_of(candidate, 1) == [Act.REST]


def test_a_lease_runs_from_before_the_look_that_proved_the_lock(stage: Stage) -> None:
    class Slow(EmbeddedCoordination):
        """A look takes most of a lease."""

        def watch(self, prefix: str, *, index: int, timeout_s: float) -> Listing:
            seen = super().watch(prefix, index=index, timeout_s=timeout_s)
            stage.clock.advance(BOUNDS.lease_s * 0.9)
            return seen

    stage.store = Slow(clock=stage.clock)
    leading = stage.leading("a")
    assert acts_of(leading, 1) == [Act.GO_ON]
    stage.clock.advance(BOUNDS.lease_s * 0.1)
    assert not leading.leads


@pytest.mark.rows("W-LE-9")
def test_a_leader_that_stepped_down_alone_leads_again_only_after_its_pause(stage: Stage) -> None:
    leading = stage.leading("a")
    leading.step_down()
    assert acts_of(leading, 3) == [Act.RESIGN, Act.REST, Act.WAIT]
    stage.clock.advance(BOUNDS.candidacy_pause_s - 0.1)
    assert acts_of(leading, 1) == [Act.WAIT]
    stage.clock.advance(0.1)
    assert acts_of(leading, 1) == [Act.CAMPAIGN]


@pytest.mark.rows("LE-4", "LE-13", "LE-15")
def test_a_candidate_goes_on_when_the_store_was_away(stage: Stage) -> None:
    away = threading.Event()

    class Flaky(EmbeddedCoordination):
        def open_session(self, name: str, *, check_ttl_s: float, lock_delay_s: int = 0) -> str:
            if away.is_set():
                raise Unavailable("the store is away", dependency="coordination")
            return super().open_session(name, check_ttl_s=check_ttl_s, lock_delay_s=lock_delay_s)

    stage.store = Flaky(clock=stage.clock)
    away.set()
    candidate = stage.candidate("a")
    candidate.start()
    for _ in range(20):
        stage.clock.advance(1.0)
    assert not candidate.leads
    away.clear()
    stage.passes_until(lambda: candidate.leads, "it leads")
    stage.stopped(candidate)


@pytest.mark.rows("W-LE-11")
def test_a_candidate_that_is_told_to_stop_hands_over_and_ends(stage: Stage) -> None:
    candidate = stage.leading("a")
    stage.waited("start a")
    candidate.start()
    stage.stopped(candidate)
    assert stage.acts == ["start a", "stop a"]
    entry = stage.store.get(KEY)
    assert entry is not None
    left = Leader.from_value(entry.value)
    assert (entry.consul_session, left and left.left) == (None, True)
