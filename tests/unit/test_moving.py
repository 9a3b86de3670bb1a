"""What is decided about moves: bounds, ends, and that what is recorded is what happens, tried out on simulated gateways."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conductor import moving
from conductor.moving import Begin, Decision, End, GivenUp, Held, Repeat, UnderWay, View, Withdraw
from sanderling.model.exports import Epoch, Export, ExportId, ExportPhase, Gateway, Kept
from sanderling.model.moves import MOVES, Move, MoveEvent, MoveState
from sanderling.settings import Conductor, Worker

OWN, WORKER = Conductor(moves_per_gateway=2), Worker()
SERVING, TAKING = ExportPhase.SERVING, ExportPhase.TAKING


def move(position: int = 0, *, disk: str = "d", index: int = 0, source: str = "a", destination: str = "b") -> Move:
    name = f"name-of-{disk}"
    return Move(
        position=position, disk_id=disk, disk_name=name, index=index, addresses=(), source=source, destination=destination
    )


def held(owner: str, *, counter: int = 1, phase: ExportPhase = SERVING) -> Held:
    return Held(Export(generation=1, counter=counter, node=owner, phase=phase), owner)


def view(held_by: Held | None, *, gateways: Iterable[Gateway] = (), started: bool = True, is_cancelled: bool = False) -> View:
    named = {"a": Gateway(name="a"), "b": Gateway(name="b"), "c": Gateway(name="c")} | {each.name: each for each in gateways}
    exports = {ExportId("d", 0): held_by} if held_by else {}
    return View(exports, named, {"d"} if started else set(), is_cancelled)


def decided(
    seen: View, *moves: Move, under_way: dict[int, UnderWay] | None = None, now: float = 0.0, operation_id: str = "o"
) -> list[Decision]:
    return moving.decide(moves or (move(),), under_way or {}, seen, now=now, own=OWN, operation_id=operation_id)


MOVING = move().model_copy(update={"state": MoveState.MOVING})
BEGUN = UnderWay(since=0.0, sent=0.0, epoch=Epoch(1, 1))


def watched(seen: View, state: UnderWay = BEGUN, *, now: float = 1.0) -> Decision | None:
    decisions = decided(seen, MOVING, under_way={0: state}, now=now)
    return decisions[0] if decisions else None


@pytest.mark.rows("PA-29")
def test_a_move_that_is_over_is_left_alone() -> None:
    over = [move().model_copy(update={"state": state}) for state in sorted(MOVES.rest)]
    assert decided(view(held("a")), *over) == []


def test_a_move_is_commanded_at_the_epoch_that_is_in_force() -> None:
    assert decided(view(held("a", counter=7))) == [Begin(move(), Epoch(1, 7))]


def test_an_export_that_nobody_has_is_taken_by_its_destination() -> None:
    assert decided(view(held(""))) == [Begin(move(), Epoch(1, 1))]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (view(held("c")), "c has it now, not a"),
        (view(None), "does not say who serves it"),
        (view(held("a"), started=False), "no longer started"),
        (view(held("a"), gateways=[Gateway(name="b", withdrawing=True)]), "b is not there"),
        (replace(view(held("a")), avoid={"d": {"b"}}), "is to avoid b now"),
        (replace(view(held("a")), drained={"b"}), "b is drained now"),
    ],
)
def test_a_move_that_fits_no_more_is_not_begun(seen: View, why: str) -> None:
    (end,) = decided(seen)
    assert isinstance(end, End)
    assert end.event is MoveEvent.FAIL
    assert why in end.reason


@pytest.mark.rows("W-PA-24")
def test_a_cancel_ends_what_has_not_begun_and_nothing_else() -> None:
    other = move(1, disk="e")
    assert decided(view(held("a"), is_cancelled=True), MOVING, other, under_way={0: BEGUN}) == [End(other, MoveEvent.CANCEL)]


@pytest.mark.rows("PA-32", "PA-33")
def test_a_move_is_over_when_its_destination_serves() -> None:
    assert watched(view(held("b", counter=2, phase=TAKING))) is None
    assert watched(view(held("b", counter=2))) == End(MOVING, MoveEvent.SUCCEED)


ANSWERS = [None, *(held(o, counter=n, phase=p) for o, n, p in product(("", "a", "b", "c"), (1, 2), ExportPhase))]


@pytest.mark.rows("PA-31")
@pytest.mark.parametrize("answer", ANSWERS)
def test_nothing_but_a_destination_that_serves_is_a_success_and_everything_else_fails_in_time(answer: Held | None) -> None:
    under_way, ends = {0: BEGUN}, list[Decision]()
    for settles in range(3):
        now = OWN.move_deadline_s + settles * OWN.move_settle_s
        decisions = decided(view(answer), MOVING, under_way=under_way, now=now)
        ends += [decision for decision in decisions if isinstance(decision, End)]
        under_way = moving.after(under_way, decisions, now=now)
    is_done = answer is not None and answer.served_by == "b"
    assert next(end.event for end in ends if isinstance(end, End)) is (MoveEvent.SUCCEED if is_done else MoveEvent.FAIL)


def test_a_command_is_repeated_while_the_export_has_not_gone_on() -> None:
    assert watched(view(held("a")), now=OWN.move_repeat_s - 0.1) is None
    assert watched(view(held("a")), now=OWN.move_repeat_s) == Repeat(MOVING, Epoch(1, 1))
    assert watched(view(held("b", counter=2, phase=TAKING)), now=OWN.move_repeat_s) is None


@pytest.mark.rows("W-PA-13")
@pytest.mark.parametrize("owner", ["a", "c"])
def test_a_move_whose_lock_went_on_to_somebody_else_has_failed(owner: str) -> None:
    end = watched(view(held(owner, counter=3)))
    assert isinstance(end, End)
    assert end.event is MoveEvent.FAIL
    assert f"{owner} serves it" in end.reason


KEPT = Gateway(name="a", kept={"d/0": Kept(operation_id="o", reason="busy")})


@pytest.mark.rows("PA-35", "W-PA-1", "W-PA-15")
@pytest.mark.parametrize(
    ("gateways", "why"),
    [
        ([KEPT], "a kept it: busy"),
        ([Gateway(name="b", refused={"d/0": "no"})], "b refused it: no"),
        ([Gateway(name="b", withdrawing=True)], "b is gone"),
    ],
)
def test_a_move_that_cannot_be_done_is_withdrawn_and_then_fails(gateways: list[Gateway], why: str) -> None:
    seen, given_up = view(held("a"), gateways=gateways), GivenUp(why, 1.0 + OWN.move_settle_s)
    assert watched(seen) == Withdraw(MOVING, Epoch(1, 1), given_up)
    state = moving.after({0: BEGUN}, [Withdraw(MOVING, Epoch(1, 1), given_up)], now=1.0)[0]
    assert watched(view(held("a")), state, now=given_up.until - 0.1) != End(MOVING, MoveEvent.FAIL, f"{why}; a serves it")
    assert watched(view(held("a")), state, now=given_up.until) == End(MOVING, MoveEvent.FAIL, f"{why}; a serves it")


def test_a_destination_that_has_the_lock_is_given_time_to_serve_before_its_move_has_failed() -> None:
    given_up = GivenUp("not moved in time", 10.0)
    state, taking = replace(BEGUN, given_up=given_up, sent=10.0), view(held("b", counter=2, phase=TAKING))
    assert not isinstance(watched(taking, state, now=10.0 + OWN.move_settle_s - 0.1), End)
    assert isinstance(watched(taking, state, now=10.0 + OWN.move_settle_s), End)


def test_what_a_gateway_said_to_another_operation_counts_for_nothing() -> None:
    assert decided(view(held("a"), gateways=[KEPT]), MOVING, under_way={0: BEGUN}, now=1.0, operation_id="other") == []


@pytest.mark.rows("PA-34", "W-PA-12")
def test_a_move_that_is_late_but_done_has_succeeded() -> None:
    late = UnderWay(since=0.0, sent=0.0, epoch=Epoch(1, 1), given_up=GivenUp("not moved within 30 s", 45.0))
    assert isinstance(watched(view(held("a")), now=OWN.move_deadline_s), Withdraw)
    assert watched(view(held("b", counter=2)), late, now=44.0) == End(MOVING, MoveEvent.SUCCEED)
    assert watched(view(held("b", counter=2)), late, now=46.0) == End(MOVING, MoveEvent.SUCCEED)


@pytest.mark.rows("W-PA-2", "W-PA-3")
def test_a_move_whose_export_is_gone_from_coordination_ends_all_the_same() -> None:
    assert watched(view(None), now=OWN.move_repeat_s) is None
    withdrawn = watched(view(None), now=OWN.move_deadline_s)
    assert isinstance(withdrawn, Withdraw)
    state = moving.after({0: BEGUN}, [withdrawn], now=OWN.move_deadline_s)[0]
    end = watched(view(None), state, now=OWN.move_deadline_s + OWN.move_settle_s)
    assert isinstance(end, End)
    assert "coordination does not say" in end.reason


def test_a_move_whose_disk_was_stopped_ends_at_once() -> None:
    end = watched(view(held("a"), started=False))
    assert isinstance(end, End)
    assert "was stopped meanwhile" in end.reason


@pytest.mark.rows("W-PA-5")
def test_a_move_whose_conductor_died_is_commanded_again() -> None:
    assert decided(view(held("a")), MOVING) == [Begin(MOVING, Epoch(1, 1))]
    assert decided(view(None), MOVING) == [Begin(MOVING, None)]
    unknown = UnderWay(since=0.0, sent=0.0, epoch=None)
    assert watched(view(held("a", counter=5)), unknown, now=OWN.move_repeat_s) == Repeat(MOVING, Epoch(1, 5))


@dataclass(slots=True)
class Told:
    """What one simulated gateway has been told, and until when it counts."""

    wanted: dict[ExportId, tuple[Epoch, float]] = field(default_factory=dict)
    handing: dict[ExportId, tuple[Epoch, str, float]] = field(default_factory=dict)
    alive: bool = True


class World:
    """Gateways that behave as workers may: slow, deaf for a while, dying, refusing; and a bus that loses and delays."""

    def __init__(self, random: Random, *, is_ideal: bool = False) -> None:
        self.random, self.now = random, 0.0
        self.names = [f"g{n}" for n in range(random.randint(2, 4))]
        self.workers = {name: Told() for name in self.names}
        self.said = {name: Gateway(name=name) for name in self.names}
        self.exports: dict[ExportId, Held] = {}
        self.handing_over: dict[ExportId, tuple[float, str]] = {}  # drained and passed on at that time, to that gateway
        self.mail: list[tuple[float, str, str, Begin | Repeat | Withdraw]] = []
        self.disks = {f"d{n}" for n in range(random.randint(1, 5))}
        self.started = set(self.disks)
        self.hidden: set[ExportId] = set()
        self.calm = is_ideal or random.random() < 0.5
        self.deaf = {name for name in self.names if not is_ideal and random.random() < 0.1}
        broker_back = random.random() * 70  # what was sent before then all arrives at once
        self.stalled = dict.fromkeys(self.names, broker_back) if not is_ideal and random.random() < 0.3 else {}
        self.slowness = [3] if is_ideal else [3, 3, 45]
        self.ready_at: dict[tuple[str, ExportId], float] = {}
        for disk in sorted(self.disks):
            for index in range(random.randint(1, 3)):
                self.exports[ExportId(disk, index)] = held(random.choice(self.names))

    def moves(self) -> list[Move]:
        made: list[Move] = []
        for export, has in sorted(self.exports.items()):
            destination = self.random.choice([name for name in self.names if name != has.owner])
            made.append(
                move(
                    len(made),
                    disk=export.disk_id,
                    index=export.index,
                    source=has.owner,
                    destination=destination,
                )
            )
        return made

    def view(self, *, is_cancelled: bool) -> View:
        gateways = {name: gateway for name, gateway in self.said.items() if self.workers[name].alive}
        exports = {export: has for export, has in self.exports.items() if export not in self.hidden}
        return View(exports, gateways, frozenset(self.started), is_cancelled)

    def send(self, decisions: Iterable[Decision]) -> None:
        for one in decisions:
            if isinstance(one, End) or one.epoch is None:
                continue
            for server, method in ((one.move.destination, "path_host"), (one.move.source, "clean")):
                if (
                    server not in self.deaf
                    and self.random.random() < 0.8
                    and not (isinstance(one, Withdraw) and method == "path_host")
                ):
                    self.mail.append((self.now + self.random.random(), server, method, one))

    def pass_time(self, seconds: float) -> None:
        """In small parts, in each of which mail arrives and anything may go wrong."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            arrived = [mail for mail in self.mail if mail[0] <= self.now and self.stalled.get(mail[1], 0) <= self.now]
            self.mail = [mail for mail in self.mail if mail not in arrived]
            for _, server, method, one in arrived:
                self._hear(server, method, one)
            if not self.calm:
                self._go_wrong()
            self._work()

    def _hear(self, server: str, method: str, one: Begin | Repeat | Withdraw) -> None:
        worker, export = self.workers[server], one.move.export
        if not worker.alive or one.epoch != self.exports[export].value.epoch:
            return
        until = self.now + WORKER.move_intent_s
        if method == "path_host":
            worker.wanted[export] = (one.epoch, until)
        else:
            destination = one.move.source if isinstance(one, Withdraw) else one.move.destination
            worker.handing[export] = (one.epoch, destination, until)
            self.said[server] = self.said[server].model_copy(update={"kept": _without(self.said[server].kept, export)})

    def _go_wrong(self) -> None:
        what, name = self.random.random(), self.random.choice(self.names)
        export, worker = self.random.choice(sorted(self.exports)), self.workers[name]
        if what < 0.02 and sum(each.alive for each in self.workers.values()) > 1:
            worker.alive = False
            for one, has in self.exports.items():
                if has.owner == name:
                    self.exports[one] = Held(has.value, "")
                    self.handing_over.pop(one, None)
        elif what < 0.05 and not worker.alive:
            self.workers[name], self.said[name] = Told(), Gateway(name=name)
        elif what < 0.07:
            self.said[name] = self.said[name].model_copy(update={"refused": {str(export): "no"}})
            worker.wanted.pop(export, None)
        elif what < 0.08:
            self.hidden ^= {export}
        elif what < 0.085:
            self.started.discard(export.disk_id)

    def _work(self) -> None:
        for export, has in list(self.exports.items()):
            if has.owner == "" or export.disk_id not in self.started:
                self._take(export, has)
            elif export in self.handing_over:
                self._pass_on(export, has)
            elif has.value.phase is TAKING:
                self.exports[export] = held(has.owner, counter=has.value.counter)
            else:
                self._begin_to_hand_on(export, has)

    def _take(self, export: ExportId, has: Held) -> None:
        alive = [name for name in self.names if self.workers[name].alive]
        if export.disk_id in self.started and self.random.random() < 0.3:
            wanting = [name for name in alive if self._wants(name, export, has)]
            self.exports[export] = held(self.random.choice(wanting or alive), counter=has.value.counter + 1, phase=TAKING)

    def _begin_to_hand_on(self, export: ExportId, has: Held) -> None:
        epoch, destination, until = self.workers[has.owner].handing.get(export, (None, "", 0.0))
        if epoch == has.value.epoch and self.now <= until and destination != has.owner:
            slow_s = self.random.choice(self.slowness) * self.random.random()
            if self._wants(destination, export, has) and self.now >= self.ready_at.setdefault(
                (destination, export), self.now + slow_s
            ):
                took_s = self.random.random() * WORKER.move_drain_s
                self.handing_over[export] = (self.now + took_s, destination)

    def _pass_on(self, export: ExportId, has: Held) -> None:
        at, destination = self.handing_over[export]
        if self.now < at:
            return
        del self.handing_over[export]
        if self.random.random() < (0.0 if self.calm else 0.2) or not self.workers[destination].alive:
            self.workers[has.owner].handing.pop(export, None)
            kept = {**self.said[has.owner].kept, str(export): Kept(operation_id="o", reason="it did not end")}
            self.said[has.owner] = self.said[has.owner].model_copy(update={"kept": kept})
        else:
            self.exports[export] = held(destination, counter=has.value.counter + 1, phase=TAKING)

    def _wants(self, name: str, export: ExportId, has: Held) -> bool:
        epoch, until = self.workers[name].wanted.get(export, (None, 0.0))
        alive = self.workers[name].alive and str(export) not in self.said[name].refused
        return alive and epoch == has.value.epoch and self.now <= until


def _without(kept: dict[str, Kept], export: ExportId) -> dict[str, Kept]:
    return {name: why for name, why in kept.items() if name != str(export)}


EVENTS = {MoveEvent.START: MoveState.MOVING, MoveEvent.SUCCEED: MoveState.SUCCEEDED}


def recorded(moves: list[Move], decisions: Iterable[Decision]) -> list[Move]:
    events = {one.move.position: one.event for one in decisions if isinstance(one, End)}
    events |= {one.move.position: MoveEvent.START for one in decisions if isinstance(one, Begin)}
    return [
        each.model_copy(update={"state": MOVES.next(each.state, events[each.position])}) if each.position in events else each
        for each in moves
    ]


def check_bounds(moves: list[Move]) -> None:
    under_way = [each for each in moves if each.state is MoveState.MOVING]
    load = Counter(name for each in under_way for name in (each.source, each.destination))
    assert all(count <= OWN.moves_per_gateway for count in load.values()), load
    assert len({each.disk_id for each in under_way}) == len(under_way), "two exports of a disk at once"


@pytest.mark.rows("W-PA-10", "W-PA-11", "W-PA-12", "W-PA-13")
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_bounds_hold_every_move_ends_and_what_is_recorded_is_what_happens(seed: int) -> None:
    random = Random(seed)
    world = World(random)
    moves = world.moves()
    under_way: dict[int, UnderWay] = {}
    cancelled_at = random.choice([1e9, random.random() * 60])
    deaths = OWN.step_attempts_max - 1
    most_s = (2 * len(moves) + 8 + deaths) * (OWN.move_deadline_s + OWN.move_settle_s)
    ended: dict[int, Epoch] = {}
    while any(each.state not in MOVES.rest for each in moves):
        assert world.now < most_s, "it does not end"
        seen = world.view(is_cancelled=world.now >= cancelled_at)
        decisions = moving.decide(moves, under_way, seen, now=world.now, own=OWN, operation_id="o")
        for one in decisions:
            if isinstance(one, End):
                has = world.exports[one.move.export]
                if one.event is MoveEvent.SUCCEED:
                    assert has.served_by == one.move.destination
                ended[one.move.position] = has.value.epoch
        moves = recorded(moves, decisions)
        check_bounds(moves)
        world.send(decisions)
        under_way = moving.after(under_way, decisions, now=world.now)
        if deaths and random.random() < 0.02:
            deaths -= 1
            under_way = {}  # another conductor goes on from what is recorded
        world.pass_time(random.choice([0.25, 1.0]))
    world.calm = True
    recorded_as = {each.position: each for each in moves}
    before = {position: world.exports[each.export] for position, each in recorded_as.items()}
    world.pass_time(80)
    for position, each in recorded_as.items():
        if each.state is MoveState.FAILED and before[position].served_by and each.disk_id in world.started:
            assert world.exports[each.export].served_by == before[position].served_by, f"{each} happened after it had failed"


def test_the_simulation_moves_what_nothing_hinders() -> None:
    succeeded = 0
    for seed in range(10):
        world = World(Random(seed), is_ideal=True)
        moves, under_way = world.moves(), dict[int, UnderWay]()
        while any(each.state not in MOVES.rest for each in moves):
            seen = world.view(is_cancelled=False)
            decisions = moving.decide(moves, under_way, seen, now=world.now, own=OWN, operation_id="o")
            moves = recorded(moves, decisions)
            world.send(decisions)
            under_way = moving.after(under_way, decisions, now=world.now)
            world.pass_time(0.25)
        assert {each.state for each in moves} == {MoveState.SUCCEEDED}
        succeeded += len(moves)
    assert succeeded > 10
