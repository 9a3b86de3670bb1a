"""Handing an export on from one worker to another, on simulated targets and an embedded coordination store."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from cli.lab.parts.daemons import waited
from iscsi_worker.addresses.memory import Memory
from iscsi_worker.decisions import Local, prepared_here
from iscsi_worker.endpoints.exports import endpoint
from iscsi_worker.targets.base import Running, TargetSpec
from iscsi_worker.targets.memory import MemoryNode, MemoryStore, MemoryTargets
from iscsi_worker.worker import Worker
from rpc.bus import Bus
from rpc.messages import ExportCommand
from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination, Op
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import StaleEpoch, TargetFailed, Unavailable
from sanderling.images.base import Images
from sanderling.model.disks import Disk
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from sanderling.settings import Bus as BusSettings
from sanderling.settings import Coordination as CoordinationSettings
from sanderling.settings import General, Settings
from sanderling.settings import Images as ImagesSettings
from sanderling.settings import Worker as WorkerSettings
from tests.unit.test_worker import Silent, Store

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


class Shaky(EmbeddedCoordination):
    """A store whose next transactions answer as told: not at all, or only after they were done."""

    fails: list[str]

    def txn(self, ops: Sequence[Op]) -> bool:
        how = self.fails.pop(0) if self.fails and len(ops) == 2 else ""
        if how == "lost":
            raise Unavailable("no answer", dependency="consul")
        done = super().txn(ops)
        if how == "done":
            raise Unavailable("no answer", dependency="consul")
        return done


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

    def _maybe(self, name: str) -> None:
        if name in self.fails:
            raise TargetFailed(f"{name} refused")


class Side:
    """One node of the pair."""

    def __init__(self, name: str, folder: Path, store: Coordination, memory: MemoryStore) -> None:
        self.name, self.addresses = name, Memory(CLOCK)
        settings = Settings(
            sanderling=General(node=name, runtime_dir=str(folder / name)),
            coordination=CoordinationSettings(backend="embedded"),
            images=ImagesSettings(backend="files"),
            bus=BusSettings(stop_timeout_s=0.1),
            iscsi_worker=WorkerSettings(grace_s=3600, stand_back_s=3600, announce_interval_s=0, take_retry_s=0.01),
        )
        self.node = MemoryNode(name)
        self.targets = Moving(clock=CLOCK, node=self.node, store=memory)
        self.targets.fails = set()
        self.worker = Worker(
            settings,
            coordination=store,
            images=cast(Images, Store(memory)),
            bus=cast(Bus, Silent()),
            targets=self.targets,
            addresses=self.addresses,
            clock=CLOCK,
        )

    def turn(self) -> None:
        self.worker._stale.set()
        self.worker._membership.feed()
        self.worker._membership.prove()
        self.worker.turn()
        self.worker._leases.extend()

    def serves(self) -> bool:
        return any(one.gate_open for one in self.targets.actual() if one.export == EXPORT)


class Pair:
    def __init__(self, folder: Path) -> None:
        self.store = Shaky(CoordinationSettings(backend="embedded"), clock=CLOCK)
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

    def command(self, gateway: Side, method: str, **more: str) -> None:
        value = self.value
        command = ExportCommand(
            operation_id="o", disk_id="1", index=0, generation=value.generation, counter=value.counter, **more
        )
        endpoint(gateway.worker._intents).methods[method][1](command)

    def ask_to_move(self) -> None:
        self.command(self.b, "path_host")
        self.command(self.a, "clean", destination="b")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


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


def test_who_stands_ready_serves_nothing_until_the_lock_is_handed_on(pair: Pair) -> None:
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready")
    for _ in range(3):
        pair.b.turn()
    assert not pair.b.serves()
    assert pair.b.addresses.lent() == frozenset()
    assert pair.gateways["b"].running == {}


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
    assert pair.a.serves()
    assert pair.value.node == "a"


def test_a_destination_that_cannot_start_refuses_and_the_source_serves_on(pair: Pair) -> None:
    pair.b.targets.fails.add("start")
    pair.ask_to_move()
    pair.until(lambda: "1/0" in pair.gateways["b"].refused, "b says why")
    assert pair.a.serves()
    assert pair.value.node == "a"


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


def test_a_store_that_stays_away_at_the_step_keeps_the_gate_closed(pair: Pair) -> None:
    class Away(Shaky):
        def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
            raise Unavailable("no answer", dependency="consul")

    pair.store.fails.append("lost")
    pair.ask_to_move()
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready", pair.b)
    pair.store.__class__ = Away
    pair.a.turn()
    waited(lambda: not pair.a.worker._busy, within_s=10, what="a has tried")
    assert not pair.a.serves()
    pair.store.__class__ = Shaky
    pair.until(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.counter > 1, "served again")
    pair.until(lambda: pair.a.serves() != pair.b.serves(), "one serves")


def test_a_command_for_an_old_epoch_is_refused(pair: Pair) -> None:
    old = ExportCommand(operation_id="o", disk_id="1", index=0, generation=1, counter=0, destination="b")
    for gateway, method in ((pair.b, "path_host"), (pair.a, "clean")):
        with pytest.raises(StaleEpoch):
            endpoint(gateway.worker._intents).methods[method][1](old)
