"""Handing an export on from one worker to another, on simulated targets and an embedded coordination store."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cli.lab.parts.daemons import waited
from iscsi_worker.addresses.base import Addresses
from iscsi_worker.addresses.memory import Memory
from iscsi_worker.decisions import Action, Activate, Drop, Local, Take, decide, prepared_here
from iscsi_worker.targets.base import Running, Targets, TargetSpec
from iscsi_worker.targets.memory import MemoryNode, MemoryStore, MemoryTargets
from iscsi_worker.view import Held
from iscsi_worker.worker import Worker
from rpc.bus import Bus
from rpc.messages import ExportCommand, ExportReport
from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination, Entry, Op
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import AddressFailed, StaleEpoch, TargetFailed, Unavailable
from sanderling.images.base import Images
from sanderling.model import exports
from sanderling.model.disks import Disk
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import Export, ExportId, ExportPhase, Front, Gateway
from sanderling.settings import Bus as BusSettings
from sanderling.settings import Coordination as CoordinationSettings
from sanderling.settings import General, Settings
from sanderling.settings import Images as ImagesSettings
from sanderling.settings import Worker as WorkerSettings
from tests.unit.commands import commanded
from tests.unit.test_worker import Silent, Store
from tests.unit.views import view_of

CLOCK = SystemClock()
DISK = Disk(
    id="1",
    name="d",
    iqn="iqn.x:d",
    size_bytes=512,
    paths=(DiskPath(index=1, address="10.0.0.1", prefix_len=24, interface="eth0", subnet="s"),),
    started=True,
)
EXPORT = ExportId("1", 0)
INITIATOR = "iqn.initiator"
LOST = exports.Store(cut_off=True)
CALLS = 19


class Killed(BaseException):
    """The worker's process is gone, in the middle of a call."""


class Shaky(EmbeddedCoordination):
    """A store whose next transactions answer as told: not at all, or only after they were done."""

    fails: list[str]
    late: Sequence[Op] = ()
    lost_writes = 0  # of "serving"

    def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        if self.lost_writes and key == EXPORT.key and b'"serving"' in value:
            self.lost_writes -= 1
            raise Unavailable("no answer", dependency="consul")
        return super().acquire(key, value, consul_session=consul_session, expected=expected)

    def lose_all(self) -> None:
        """Every key and session, as when its data is lost."""
        with self._lock:
            self._store.sessions.clear()
            self._store.entries.clear()
            self._store.index += 1

    def arrive(self) -> bool:
        """Do at last what was asked for without an answer."""
        return super().txn(self.late)

    def txn(self, ops: Sequence[Op]) -> bool:
        how = self.fails.pop(0) if self.fails and len(ops) == 2 else ""
        if how == "lost":
            self.late = ops
            raise Unavailable("no answer", dependency="consul")
        done = super().txn(ops)
        if how == "done":
            raise Unavailable("no answer", dependency="consul")
        return done


class Mute(Shaky):
    """It reads nothing any more."""

    def get(self, key: str) -> Entry | None:
        raise Unavailable("no answer", dependency="consul")


class Moving(MemoryTargets):
    """Targets that fail where they are told to."""

    fails: set[str]

    def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
        self._maybe("start")
        return super().start(spec, epoch=epoch, revision=revision, lease_s=lease_s)

    def drain(self, export: ExportId, *, timeout_s: float) -> bool:
        return "drain" not in self.fails and super().drain(export, timeout_s=timeout_s)

    def open_portal(self, export: ExportId, address: str) -> None:
        self._maybe("open_portal")
        super().open_portal(export, address)

    def stop(self, export: ExportId) -> None:
        self._maybe("stop")
        super().stop(export)

    def _maybe(self, name: str) -> None:
        if name in self.fails:
            raise TargetFailed(f"{name} refused")


class Sticky(Memory):
    """Addresses that cannot be taken off while told so."""

    is_stuck = False

    def remove(self, address: str) -> None:
        if self.is_stuck:
            raise AddressFailed(f"{address}: Operation not permitted", address=address)
        super().remove(address)


class Killing:
    """Passes calls on, and kills its worker before or after the n-th call that its lanes make to any of its parts."""

    def __init__(self, part: object, side: "Side") -> None:
        self._part, self._side = part, side

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if not callable(found) or not threading.current_thread().name.startswith("lane"):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._side.is_dead:
                raise Killed
            self._side.calls += 1
            is_last = self._side.calls == self._side.kill_at
            self._side.is_dead = is_last
            if is_last and not self._side.after:
                raise Killed
            answer = found(*args, **kwargs)
            if is_last:
                raise Killed
            return answer

        return call


class Side:
    """One node of the pair. Its worker dies at its lanes' call number `kill_at`, and `revive` starts it again."""

    def __init__(self, name: str, folder: Path, store: Coordination, memory: MemoryStore) -> None:
        self.name, self.addresses = name, Sticky(CLOCK)
        self.calls, self.kill_at, self.after, self.is_dead = 0, 0, False, False
        self.is_following = False  # what it sees is what the journals name, as in a worker's process
        self._store, self._memory, self.is_proving = store, memory, True
        self._settings = Settings(
            sanderling=General(node=name, runtime_dir=str(folder / name)),
            coordination=CoordinationSettings(backend="embedded"),
            images=ImagesSettings(backend="files"),
            bus=BusSettings(stop_timeout_s=0.1),
            iscsi_worker=WorkerSettings(
                grace_s=3600, stand_back_s=3600, announce_interval_s=0, take_retry_s=0.01, move_intent_s=11.5
            ),
        )
        self.node = MemoryNode(name)
        self.targets = Moving(clock=CLOCK, node=self.node, store=memory)
        self.targets.fails = set()
        self.workers: list[Worker] = []
        self.revive()

    def revive(self) -> None:
        """A worker as it is after its process was started again."""
        self.kill_at, self.is_dead = 0, False
        self.worker = Worker(
            self._settings,
            coordination=cast(Coordination, Killing(self._store, self)),
            images=cast(Images, Killing(Store(self._memory), self)),
            bus=cast(Bus, Silent()),
            targets=cast(Targets, Killing(self.targets, self)),
            addresses=cast(Addresses, Killing(self.addresses, self)),
            clock=CLOCK,
        )
        self.workers.append(self.worker)

    def turn(self) -> None:
        if self.is_dead:
            return
        if not self.is_following:
            self.worker._watch.fresh()
        self.worker._membership.feed()
        if self.is_proving:
            self.worker._membership.prove()
        (self.worker.step if self.is_following else self.worker.turn)()
        self.worker._leases.extend()

    def serves(self) -> bool:
        """Whether anything here could still write."""
        return any(one.gate_open and one.client not in self._memory.fenced for one in self.targets.actual())


class Pair:
    def __init__(self, folder: Path) -> None:
        self.store = Shaky(clock=CLOCK)
        self.store.fails = []
        self.memory = MemoryStore()
        self.store.put("disks/1", DISK.model_dump_json().encode())
        self.store.put(EXPORT.key, Export(generation=1).model_dump_json().encode())
        self.a = Side("a", folder, self.store, self.memory)
        self.a.turn()
        self.until(lambda: self.value.phase is ExportPhase.SERVING, "a serves", self.a)
        self.b = Side("b", folder, self.store, self.memory)
        self.until(lambda: "b" in self.gateways, "b is live", self.b)

    @property
    def value(self) -> Export:
        entry = self.store.get(EXPORT.key)
        assert entry is not None
        return Export.model_validate_json(entry.value)

    @property
    def gateways(self) -> dict[str, Gateway]:
        found = (Gateway.model_validate_json(entry.value) for entry in self.store.list("nodes/").entries)
        return {gateway.name: gateway for gateway in found}

    def until(self, condition: Callable[[], bool], what: str, *turned: Side) -> None:
        def after_a_turn() -> bool:
            for gateway in turned or (self.a, self.b):
                gateway.turn()
                assert not (self.a.serves() and self.b.serves()) if hasattr(self, "b") else True, "two open gates"
            return condition()

        waited(after_a_turn, within_s=10, what=what, every_s=0.002)

    def command(self, gateway: Side, method: str, *, destination: str = "") -> None:
        value = self.value
        command = ExportCommand(
            operation_id="o", disk_id="1", index=0, generation=value.generation, counter=value.counter, destination=destination
        )
        commanded(gateway.worker).methods[method][1](command)

    def ask_to_move(self) -> None:
        self.command(self.b, "path_host")
        self.command(self.a, "clean", destination="b")

    def stop(self) -> None:
        for worker in (*self.a.workers, *self.b.workers):
            worker._watch.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.stop()


def test_an_export_is_handed_on_and_its_source_ends(pair: Pair) -> None:
    before = pair.value.epoch
    pair.ask_to_move()
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.node == "b", "b serves")
    pair.until(lambda: not pair.a.targets.actual() and not pair.a.addresses.lent(), "a has ended")
    assert pair.b.serves()
    assert (pair.value.epoch, pair.value.next) == (before.following, "")
    assert pair.b.addresses.lent() == {"10.0.0.1"}
    assert not pair.memory.fenced, "a move needs no fence"


def test_a_source_that_nobody_is_ready_to_follow_goes_on_serving(pair: Pair) -> None:
    pair.command(pair.a, "clean", destination="b")
    for _ in range(3):
        pair.a.turn()
        pair.b.turn()
    assert pair.a.serves()
    assert pair.value.node == "a"
    assert pair.b.targets.actual() == ()


@pytest.mark.rows("PA-14")
def test_who_stands_ready_serves_nothing_until_the_lock_is_handed_on(pair: Pair) -> None:
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready")
    for _ in range(3):
        pair.b.turn()
    assert not pair.b.serves()
    assert pair.b.addresses.lent() == frozenset()
    assert pair.gateways["b"].running == {}


def test_who_was_handed_an_export_publishes_nothing_before_it_serves_but_is_not_silent_for_long(pair: Pair) -> None:
    """Initiators wait for it: what else it has to say would take the processor and the store's time from them."""

    def handed() -> bool:
        return pair.value.node == "b"

    def says_that_it_stands_ready() -> bool:
        return bool(pair.gateways["b"].prepared)

    pair.ask_to_move()
    pair.until(says_that_it_stands_ready, "b stands ready", pair.b)
    pair.until(handed, "the lock goes over", pair.a)
    membership = pair.b.worker._membership
    membership._announced_at = CLOCK.monotonic() + 60  # however long this turn takes
    pair.b.turn()
    assert says_that_it_stands_ready()
    pair.until(lambda: not says_that_it_stands_ready(), "b says what has changed")
    assert not membership.is_overdue(membership._announced_at + 0.009)
    assert membership.is_overdue(membership._announced_at + 0.011)


def test_who_is_still_starting_does_not_stand_ready(pair: Pair) -> None:
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready")
    view = pair.b.worker._watch.fresh()
    running = {one.export: one for one in pair.b.targets.actual()}
    local = Local("b", "mine", running=running, wanted={EXPORT: pair.value.epoch})
    assert prepared_here(view, local)
    assert not prepared_here(view, replace(local, busy={EXPORT}))


def test_a_process_that_stood_ready_for_an_epoch_that_is_over_ends(pair: Pair) -> None:
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready")
    pair.command(pair.a, "clean")
    pair.until(lambda: not pair.a.serves() and pair.value.epoch.counter == 1, "a has given up", pair.a)
    pair.until(pair.b.serves, "b has taken it in the ordinary way")
    assert pair.value.epoch.counter == 2


def test_operations_that_do_not_end_keep_the_export_where_it_is_and_the_reason_is_said(pair: Pair) -> None:
    pair.a.targets.fails.add("drain")
    pair.ask_to_move()
    pair.until(lambda: bool(pair.gateways["a"].kept), "a says why")
    assert pair.gateways["a"].kept["1/0"].operation_id == "o"
    assert "did not end" in pair.gateways["a"].kept["1/0"].reason
    (report,) = (one for one in pair.a.worker._reports._queue.queue if one is not None and one.seen == "kept")
    assert (report.detail["to"], report.detail["gap_s"] > 0) == ("b", True)
    assert pair.a.serves()
    assert pair.value.node == "a"


@pytest.mark.parametrize("answers", [True, False], ids=["it is told", "the store does not answer, and its lease is over"])
def test_a_source_that_was_taken_over_while_it_drained_does_not_open_its_gate_again(pair: Pair, answers: bool) -> None:
    """As one that was frozen in the middle of it: the heir has fenced it."""
    session = pair.a.worker._membership.consul_session
    assert session is not None

    def drain(export: ExportId, *, timeout_s: float) -> bool:
        pair.store.close_session(session)
        if not answers:
            pair.store.__class__ = Mute
            pair.a.node.processes[export].lease_until = 0.0
        return False

    pair.a.targets.drain = drain  # type: ignore[method-assign]
    opened: list[ExportId] = []
    pair.a.targets.ungate = opened.append  # type: ignore[assignment,method-assign]
    pair.ask_to_move()
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready", pair.b)
    under = pair.a.worker._lanes.look()
    with suppress(Unavailable):
        pair.a.turn()
    waited(lambda: pair.a.worker._lanes.look().ended > under.ended, within_s=10, what="a has tried")
    pair.store.__class__ = Shaky
    assert opened == []


def test_a_destination_that_cannot_start_refuses_and_the_source_serves_on(pair: Pair) -> None:
    pair.b.targets.fails.add("start")
    pair.ask_to_move()
    pair.until(lambda: "1/0" in pair.gateways["b"].refused, "b says why")
    assert pair.a.serves()
    assert pair.value.node == "a"


def test_a_destination_that_has_lost_the_image_store_says_so_at_once(pair: Pair) -> None:
    pair.b.worker._image_store._said = LOST
    pair.ask_to_move()
    pair.until(lambda: "1/0" in pair.gateways["b"].refused, "b says why")
    assert pair.b.targets.actual() == ()
    pair.a.turn()
    assert pair.a.serves()


def test_what_stood_ready_when_the_image_store_was_lost_is_ended_and_the_source_serves_on(pair: Pair) -> None:
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready", pair.b)
    pair.b.worker._image_store._said = LOST
    pair.until(lambda: not pair.b.targets.actual() and not pair.gateways["b"].prepared, "b has ended it", pair.b)
    pair.command(pair.a, "clean", destination="b")
    for _ in range(3):
        pair.a.turn()
    assert pair.a.serves()
    assert pair.value.node == "a"


def test_a_source_that_has_lost_the_image_store_gives_up_and_its_destination_takes_over(pair: Pair) -> None:
    pair.a.targets.fails.add("drain")
    pair.b.worker._image_store._said = exports.Store(answers=True)
    pair.b.turn()
    pair.ask_to_move()
    pair.a.worker._image_store._said = LOST
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.node == "b", "b serves")
    pair.until(lambda: not pair.a.targets.actual() and not pair.a.addresses.lent(), "a has ended")


def test_a_destination_that_cannot_open_its_portal_gives_the_export_back(pair: Pair) -> None:
    pair.b.targets.fails.add("open_portal")
    pair.ask_to_move()
    pair.until(lambda: pair.value.epoch.counter == 3 and pair.value.phase is ExportPhase.SERVING, "a serves again")
    assert pair.a.serves()
    assert pair.value.node == "a"
    assert pair.b.targets.actual() == ()
    assert pair.b.addresses.lent() == frozenset()


@pytest.mark.parametrize("answer", ["lost", "done"])
def test_a_step_of_unknown_outcome_leaves_exactly_one_to_serve(pair: Pair, answer: str) -> None:
    pair.store.fails.append(answer)
    pair.ask_to_move()
    winner = "a" if answer == "lost" else "b"
    pair.until(
        lambda: pair.value.phase is ExportPhase.SERVING and pair.value.node == winner and pair.value.counter > 1,
        f"{winner} serves",
    )
    pair.until(lambda: pair.a.serves() != pair.b.serves(), "one serves")
    if answer == "lost":
        assert not pair.store.arrive(), "the lock went over although its old owner serves on"


def test_a_store_that_stays_away_at_the_step_keeps_the_gate_closed(pair: Pair) -> None:
    class Away(Shaky):
        def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
            raise Unavailable("no answer", dependency="consul")

    pair.store.fails.append("lost")
    pair.ask_to_move()
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready", pair.b)
    pair.store.__class__ = Away
    with suppress(Unavailable):
        pair.a.turn()
    waited(lambda: not pair.a.worker._lanes.look().busy, within_s=10, what="a has tried")
    assert not pair.a.serves()
    pair.store.__class__ = Shaky
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.counter > 1, "served again")
    pair.until(lambda: pair.a.serves() != pair.b.serves(), "one serves")


def said(side: Side) -> dict[str, ExportReport]:
    """What it has reported, by the word."""
    return {one.seen: one for one in side.worker._reports._queue.queue if one is not None}


def test_a_move_makes_no_more_calls_than_those_at_which_workers_are_killed(pair: Pair) -> None:
    waited(lambda: not pair.a.worker._lanes.look().busy, within_s=10, what="nothing is under way")
    pair.a.calls = pair.b.calls = 0
    pair.ask_to_move()
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and not pair.a.targets.actual(), "moved")
    waited(lambda: not pair.a.worker._lanes.look().busy, within_s=10, what="a is done")
    assert max(pair.a.calls, pair.b.calls) < CALLS


@pytest.mark.rows("W-PA-13", "W-PA-14")
@pytest.mark.parametrize("returns", [True, False], ids=["it is started again", "it stays away"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, CALLS))
@pytest.mark.parametrize("victim", ["source", "destination"])
def test_a_worker_killed_at_any_call_of_a_move_leaves_one_node_that_serves(
    pair: Pair, victim: str, at: int, after: bool, returns: bool
) -> None:
    side = pair.a if victim == "source" else pair.b
    waited(lambda: not side.worker._lanes.look().busy, within_s=10, what="nothing is under way")
    side.calls, side.kill_at, side.after = 0, at, after
    pair.ask_to_move()
    pair.until(lambda: side.is_dead or (pair.value.phase is ExportPhase.SERVING and pair.value.node == "b"), "killed, or moved")
    if side.is_dead and returns:
        side.revive()
    elif side.is_dead:
        session = next(e.consul_session for e in pair.store.list("nodes/").entries if e.key == f"nodes/{side.name}")
        pair.store.close_session(str(session))
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and {"a": pair.a, "b": pair.b}[pair.value.node].serves(), "served")
    assert pair.a.serves() != pair.b.serves()


def test_who_stands_ready_does_not_say_that_it_serves_when_coordination_is_lost(pair: Pair) -> None:
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready")
    pair.store.lose_all()
    pair.store.put("disks/1", DISK.model_dump_json().encode())
    pair.until(lambda: "b" in pair.gateways, "b is back, and a is not", pair.b)
    assert pair.b.targets.actual() != ()
    assert pair.gateways["b"].running == {}


def test_a_destination_that_serves_and_cannot_say_so_goes_on_serving(pair: Pair) -> None:
    pair.store.lost_writes = 3
    pair.ask_to_move()
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.node == "b", "b says that it serves")
    assert (pair.value.counter, pair.store.lost_writes) == (2, 0)
    assert pair.b.worker._intents.told().refused == {}
    assert not pair.memory.fenced


def test_a_destination_whose_lock_was_not_proved_a_moment_ago_does_not_open_its_gate(pair: Pair) -> None:
    pair.b.is_proving = False
    pair.b.worker._membership._proof = (None, 0.0)
    pair.ask_to_move()
    pair.until(lambda: pair.value.node == "b", "b has the lock")
    for _ in range(5):
        pair.b.turn()
    assert not pair.b.serves()
    seen_for_s = CLOCK.monotonic() - pair.b.worker._unserved[EXPORT]
    pair.b.is_proving = True
    pair.until(lambda: pair.b.serves() and "served" in said(pair.b), "b serves")
    told = said(pair.b)["served"].detail
    assert (told["kind"], told["was_on"]) == ("move", "a")
    assert told["gap_s"] > seen_for_s, "the source may have given up waiting"


def test_a_repetition_that_crossed_with_the_answer_drains_nothing_again(pair: Pair) -> None:
    pair.a.targets.fails.add("drain")
    pair.ask_to_move()
    pair.until(lambda: bool(pair.gateways["a"].kept), "a says why")
    pair.command(pair.a, "clean", destination="b")
    assert pair.a.worker._intents.told().handing == {}
    assert pair.a.worker._intents.told().kept


def test_keys_are_attended_only_while_a_move_waits_for_them(pair: Pair) -> None:
    pair.ask_to_move()
    assert set(pair.b.worker._watch._attended) == {EXPORT.key}
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.node == "b", "b serves")
    pair.until(lambda: not pair.b.worker._watch._attended and not pair.a.worker._watch._attended, "nothing is attended")


def test_a_command_for_an_old_epoch_is_refused(pair: Pair) -> None:
    old = ExportCommand(operation_id="o", disk_id="1", index=0, generation=1, counter=0, destination="b")
    for gateway, method in ((pair.b, "path_host"), (pair.a, "clean")):
        with pytest.raises(StaleEpoch):
            commanded(gateway.worker).methods[method][1](old)


READY = Running(EXPORT, (1, 2), 1, "b:1", (), False, 10.0, DISK.paths)


def seen_by_b(export: Export, *, owner: str, running: Running = READY, disk: Disk = DISK, wanted: bool = True) -> list[Action]:
    """What b does about the export, which gateway `owner` holds."""
    view = view_of({"1": disk}, {EXPORT: Held(export, owner, 7)}, {"b": Gateway(name="b")})
    epochs = {EXPORT: export.epoch} if wanted else {}
    return decide(view, Local("b", "b", running={EXPORT: running}, wanted=epochs), {})


HANDED = Export(generation=1, counter=2, node="b", client="b:1", phase=ExportPhase.TAKING, revision=1)
SERVED = Export(generation=1, counter=1, node="a", client="a:1", phase=ExportPhase.SERVING, revision=1)


def test_the_process_that_stands_ready_serves_once_the_lock_is_its_own() -> None:
    assert seen_by_b(HANDED, owner="b") == [Activate(EXPORT, Held(HANDED, "b", 7), READY)]


@pytest.mark.parametrize(
    "change",
    [{"client": "b:0"}, {"counter": 3}, {"phase": ExportPhase.GIVING_UP}],
    ids=["another client is named", "another epoch", "it was being given up"],
)
def test_any_other_process_behind_a_closed_gate_is_replaced(change: dict[str, Any]) -> None:
    (action,) = seen_by_b(HANDED.model_copy(update=change), owner="b")
    assert isinstance(action, Take)


def test_a_process_that_stands_ready_is_kept_while_it_is_wanted_and_fits() -> None:
    assert seen_by_b(SERVED, owner="a") == []
    assert seen_by_b(SERVED, owner="a", wanted=False) == [Drop(EXPORT)]
    assert seen_by_b(SERVED, owner="a", running=replace(READY, epoch=(1, 1))) == [Drop(EXPORT)]
    assert seen_by_b(SERVED, owner="a", disk=DISK.model_copy(update={"revision": 2})) == [Drop(EXPORT)]
    assert seen_by_b(SERVED, owner="a", disk=DISK.model_copy(update={"started": False})) == [Drop(EXPORT)]
    assert seen_by_b(SERVED, owner="a", running=replace(READY, gate_open=True)) == [Drop(EXPORT)]


def test_who_is_cut_off_in_front_does_not_stand_ready_any_more() -> None:
    away = Gateway(name="b", front=Front(cut_off=("eth0",)))
    beside = Gateway(name="a", interfaces=("eth0",))
    seen = view_of({"1": DISK}, {EXPORT: Held(SERVED, "a", 7)}, {"a": beside, "b": away})
    local = Local("b", "b", running={EXPORT: READY}, wanted={EXPORT: SERVED.epoch}, cut_off=("eth0",))
    assert decide(seen, local, {}) == [Drop(EXPORT)]
