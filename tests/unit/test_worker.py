"""The worker's loop and its commands, on simulated targets and an embedded coordination store."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from cli.lab.parts.daemons import waited
from iscsi_worker.addresses.memory import Memory
from iscsi_worker.targets.base import Running
from iscsi_worker.targets.memory import MemoryNode, MemoryStore, MemoryTargets
from iscsi_worker.worker import Worker
from rpc.bus import Bus, Serving
from rpc.messages import ExportCommand, ExportReport, Message
from sanderling.clock import SystemClock
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import ClaimLost, Problem, StaleEpoch, Unavailable
from sanderling.images.base import BackingStore, Images
from sanderling.model.disks import Disk
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from sanderling.model.placement import place
from sanderling.settings import Bus as BusSettings
from sanderling.settings import Coordination, General, Settings
from sanderling.settings import Images as ImagesSettings
from sanderling.settings import Worker as WorkerSettings
from tests.unit.commands import commanded

CLOCK = SystemClock()
ELSEWHERE = Gateway(name="elsewhere")


class Silent:
    """A bus whose broker is away."""

    def serve(self, *_: object) -> Serving:
        raise Unavailable("the broker is away", dependency="rabbitmq")

    def notify(self, event_type: str, message: Message) -> None:
        raise Unavailable("the broker is away", dependency="rabbitmq")


class Store:
    def __init__(self, memory: MemoryStore) -> None:
        self._memory = memory

    def backing_store(self, name: str) -> BackingStore:
        return BackingStore("memory", name)

    def clients(self, name: str) -> tuple[str, ...]:
        return ()

    def fence(self, client: str) -> None:
        self._memory.fenced.add(client)

    def is_fenced(self, client: str) -> bool:
        return client in self._memory.fenced

    def ping(self) -> None:
        return

    def touch(self) -> None:
        return


class Node:
    """One node with its worker, turned by the test, and a disk that should be served."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            sanderling=General(node="here", runtime_dir=str(folder)),
            coordination=Coordination(backend="embedded"),
            images=ImagesSettings(backend="files"),
            bus=BusSettings(stop_timeout_s=0.1),
            iscsi_worker=WorkerSettings(grace_s=3600, stand_back_s=3600, announce_interval_s=0),
        )
        self.store = EmbeddedCoordination(clock=CLOCK)
        self.memory, self.node = MemoryStore(), MemoryNode("here")
        self.addresses = Memory(CLOCK)
        self.worker = self.started_again()

    def started_again(self) -> Worker:
        """The worker of a process that begins now."""
        self.worker = Worker(
            self.settings,
            coordination=self.store,
            images=cast(Images, Store(self.memory)),
            bus=cast(Bus, Silent()),
            targets=MemoryTargets(clock=CLOCK, node=self.node, store=self.memory),
            addresses=self.addresses,
            clock=CLOCK,
        )
        return self.worker

    def publish(self, disk_id: str, *, started: bool = True, revision: int = 1) -> ExportId:
        path = DiskPath(index=1, address=f"10.0.0.{int(disk_id)}", prefix_len=24, interface="eth0", subnet="s")
        disk = Disk(id=disk_id, name="d", iqn="iqn.x:d", size_bytes=512, paths=(path,), started=started, revision=revision)
        self.store.put(f"disks/{disk_id}", disk.model_dump_json().encode())
        export = ExportId(disk_id, 0)
        if self.store.get(export.key) is None:
            self.store.put(export.key, Export(generation=1).model_dump_json().encode())
        return export

    def value(self, export: ExportId) -> Export:
        entry = self.store.get(export.key)
        assert entry is not None
        return Export.model_validate_json(entry.value)

    def turn(self) -> None:
        """One turn of the loop, on a fresh view, since no thread watches here."""
        self.worker._watch.fresh()
        self.worker.turn()

    def turn_until(self, condition: Callable[[], bool], what: str) -> None:
        def turned() -> bool:
            self.turn()
            return condition()

        waited(turned, within_s=10, what=what, every_s=0.005)

    def serve(self, export: ExportId) -> None:
        self.turn_until(lambda: self.value(export).phase is ExportPhase.SERVING, f"{export} is served")

    def command(self, export: ExportId, *, counter: int | None = None) -> ExportCommand:
        value = self.value(export)
        return ExportCommand(
            operation_id="o1",
            disk_id=export.disk_id,
            index=export.index,
            generation=value.generation,
            counter=value.counter if counter is None else counter,
        )

    def told(self, method: str, command: ExportCommand) -> None:
        commanded(self.worker).methods[method][1](command)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.rows("IS-7")
def test_a_started_disk_is_served_and_a_stopped_one_given_up(node: Node) -> None:
    export = node.publish("1")
    node.serve(export)
    assert node.addresses.lent() == {"10.0.0.1"}
    node.publish("1", started=False, revision=2)
    node.turn_until(lambda: node.value(export).phase is ExportPhase.LEFT, "it is given up")
    assert node.addresses.lent() == frozenset()
    assert not node.node.processes


def test_an_export_whose_process_dies_is_taken_again_with_a_new_client(node: Node) -> None:
    export = node.publish("1")
    node.serve(export)
    first = node.value(export)
    del node.node.processes[export]
    node.turn_until(lambda: node.value(export).counter > first.counter, "it is taken again")
    node.serve(export)
    assert node.value(export).client != first.client
    assert first.client in node.memory.fenced


@pytest.mark.rows("IS-3", "W-IS-1")
def test_a_worker_that_is_started_again_goes_on_with_what_runs(node: Node) -> None:
    export = node.publish("1")
    node.serve(export)
    before = node.value(export)
    node.started_again()
    for _ in range(5):
        node.turn()
    assert node.value(export) == before


@pytest.mark.rows("IS-3", "W-IS-1")
def test_a_worker_whose_session_ended_meanwhile_adopts_what_runs(node: Node) -> None:
    export = node.publish("1")
    node.serve(export)
    before = node.value(export)
    for entry in node.store.list("nodes/").entries:
        node.store.close_session(str(entry.consul_session))
    (Path(node.settings.sanderling.runtime_dir) / "consul_session").unlink()
    node.started_again()
    node.turn_until(lambda: node.value(export).counter > before.counter, "it is adopted")
    assert node.value(export).client == before.client
    assert not node.memory.fenced


def test_clean_gives_an_export_up_and_leaves_it_to_others(node: Node) -> None:
    export = node.publish("1")
    node.serve(export)
    node.told("clean", node.command(export))
    node.turn_until(lambda: node.value(export).phase is ExportPhase.LEFT, "it is given up")
    for _ in range(5):
        node.turn()
    assert node.value(export).phase is ExportPhase.LEFT
    entry = node.store.get("nodes/here")
    assert entry is not None
    assert str(export) in Gateway.model_validate_json(entry.value).refused


@pytest.mark.rows("PA-44")
def test_path_host_takes_an_export_that_was_placed_elsewhere(node: Node) -> None:
    session = node.store.open_session("elsewhere", check_ttl_s=3600)
    node.store.acquire(ELSEWHERE.key, ELSEWHERE.model_dump_json().encode(), consul_session=session)
    both = {"here": Gateway(name="here"), "elsewhere": ELSEWHERE}
    theirs = next(str(n) for n in range(1, 99) if place([ExportId(str(n), 0)], both, {})[ExportId(str(n), 0)] == "elsewhere")
    export = node.publish(theirs)
    for _ in range(10):
        node.turn()
    assert node.value(export).phase is ExportPhase.FREE
    node.told("path_host", node.command(export))
    node.serve(export)


@pytest.mark.rows("PA-38")
@pytest.mark.parametrize("method", ["clean", "path_host"])
def test_a_command_for_an_old_epoch_is_refused_and_changes_nothing(node: Node, method: str) -> None:
    export = node.publish("1")
    node.serve(export)
    before = node.value(export)
    with pytest.raises(StaleEpoch, match=r"1\.1"):
        node.told(method, node.command(export, counter=0))
    for _ in range(3):
        node.turn()
    assert node.value(export) == before


@pytest.mark.rows("IS-4")
def test_stopping_gives_everything_up_and_the_gateway_is_gone_at_once(node: Node) -> None:
    export = node.publish("1")
    node.worker.start()
    waited(lambda: node.value(export).phase is ExportPhase.SERVING, within_s=10, what="it is served")
    node.worker.stop()
    assert (node.value(export).phase, node.value(export).client) == (ExportPhase.LEFT, "")
    entry = node.store.get("nodes/here")
    assert entry is not None
    assert entry.consul_session is None


def test_an_export_that_cannot_be_taken_is_refused_by_name_and_reason(node: Node) -> None:
    node.addresses = Memory(CLOCK, interfaces=("eth9",))
    node.started_again()
    export = node.publish("1")

    def refused() -> dict[str, str]:
        entry = node.store.get("nodes/here")
        return Gateway.model_validate_json(entry.value).refused if entry else {}

    node.turn_until(lambda: str(export) in refused(), "it is refused")
    assert "eth0" in refused()[str(export)]
    assert not node.node.processes


@pytest.mark.parametrize(
    "problem", [Unavailable("no answer", dependency="consul"), ClaimLost("held by another")], ids=["no answer", "lost lock"]
)
def test_a_taking_that_fails_because_of_coordination_is_no_reason_to_stand_back(node: Node, problem: Problem) -> None:
    """What fails for all while Consul is away would be taken by nobody for `stand_back_s` after it is back."""
    export, plain, failed = node.publish("1"), node.store.acquire, threading.Event()

    def acquire(key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        if key == export.key and not failed.is_set():
            failed.set()
            raise problem
        return plain(key, value, consul_session=consul_session, expected=expected)

    node.store.acquire = acquire  # type: ignore[method-assign]
    node.serve(export)
    assert failed.is_set()


@pytest.mark.parametrize(
    ("was", "kind"),
    [
        (Export(generation=1, counter=4, node="elsewhere", client="c:1", phase=ExportPhase.SERVING), "failover"),
        (Export(generation=1, counter=4, node="here", client="c:1", phase=ExportPhase.SERVING), "restart"),
        (Export(generation=1), None),
    ],
    ids=["its gateway died", "its process died here", "it was never served"],
)
def test_a_report_says_how_long_nobody_served_what_was_served_before(node: Node, was: Export, kind: str | None) -> None:
    export = node.publish("7")
    node.store.put(export.key, was.model_dump_json().encode())
    served: list[ExportReport] = []

    def is_said() -> bool:
        queued = list(node.worker._reports._queue.queue)
        served[:] = [one for one in queued if one is not None and one.seen == "served"]
        return bool(served)

    node.turn_until(is_said, "it is reported")
    (report,) = served
    assert report.detail.get("kind") == kind
    assert (report.detail.get("gap_s", 0) > 0) == (kind is not None)


def settled(node: Node, *exports: ExportId) -> list[None]:
    """All of them are served and nothing is under way; what is returned has an entry for each whole turn from here on."""
    for export in exports:
        node.serve(export)
    node.turn_until(lambda: node.worker._lanes.is_idle, "nothing is under way")
    node.worker.step()
    turns: list[None] = []
    plain = node.worker._targets.actual

    def actual() -> tuple[Running, ...]:
        turns.append(None)
        return plain()

    node.worker._targets.actual = actual  # type: ignore[method-assign]
    return turns


def heard(node: Node, *keys: str) -> None:
    """What a watch does that has seen these change, and the loop after it."""
    node.worker._watch.look(*keys)
    node.worker._changed(keys)
    node.worker.step()


def test_a_change_of_one_disk_is_acted_on_without_looking_at_what_else_runs(node: Node) -> None:
    one, two = node.publish("1"), node.publish("2")
    turns = settled(node, one, two)
    node.publish("1", started=False, revision=2)
    due = node.worker._turn_due
    heard(node, "disks/1")
    waited(lambda: node.value(one).phase is ExportPhase.LEFT, within_s=10, what="it is given up")
    assert not turns
    assert node.worker._turn_due == due, "a glance puts no turn off"
    assert node.value(two).phase is ExportPhase.SERVING
    node.worker.step()
    assert turns, "an action has ended: what runs may be different"


@pytest.mark.parametrize(
    "why",
    ["an action has ended", "somebody else woke the loop", "the last turn is long ago", "it failed", "one is to be tried again"],
)
def test_the_loop_looks_at_everything_again_when_more_than_some_keys_may_be_different(node: Node, why: str) -> None:
    one, two = node.publish("1"), node.publish("2")
    turns = settled(node, one, two)
    match why:
        case "an action has ended":
            under = node.worker._lanes.look()
            node.worker._lanes.look = lambda: under._replace(ended=under.ended + 1)  # type: ignore[method-assign]
        case "somebody else woke the loop":
            node.worker.wake()
        case "one is to be tried again":
            assert node.worker._turned is not None
            node.worker._turned = replace(node.worker._turned, held_back=frozenset({two}))
        case "the last turn is long ago":
            node.worker._turn_due -= node.settings.iscsi_worker.renew_interval_s
        case _:
            node.worker._targets.actual = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
            with pytest.raises(ZeroDivisionError):
                node.worker.step()
            node.worker._targets.actual = lambda: turns.append(None) or ()  # type: ignore[func-returns-value,method-assign]
    heard(node, "disks/1")
    assert turns


def test_a_lock_that_a_glance_finds_gone_is_no_proof_of_a_lease_any_more(node: Node) -> None:
    one, two = node.publish("1"), node.publish("2")
    turns = settled(node, one, two)
    session = node.worker._membership.consul_session
    other = node.store.open_session("other", check_ttl_s=3600)
    assert session is not None
    value = node.value(one).model_copy(update={"node": "other", "counter": 2}).model_dump_json().encode()
    with node.store._lock:
        entry = node.store._store.entries[one.key]
        node.store._store.entries[one.key] = replace(entry, value=value, consul_session=other, modify_index=10**6)
    heard(node, one.key)
    assert not turns
    assert {lease.export: lease.consul_session for lease in node.worker._leases._leases} == {one: None, two: session}
    waited(lambda: one not in node.node.processes, within_s=10, what="it is dropped")


@pytest.mark.rows("W-IS-8")
def test_an_export_whose_taking_hangs_keeps_no_other_from_being_taken_given_up_and_counted_in(node: Node) -> None:
    hangs, others, let, asked = node.publish("1"), [node.publish("2"), node.publish("3")], threading.Event(), threading.Event()
    plain = node.store.acquire

    def acquire(key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        if key == hangs.key:
            asked.set()
            assert let.wait(20)
        return plain(key, value, consul_session=consul_session, expected=expected)

    node.store.acquire = acquire  # type: ignore[method-assign]
    for export in others:
        node.serve(export)
    assert asked.wait(10)
    node.publish("2", started=False, revision=2)
    node.turn_until(lambda: node.value(others[0]).phase is ExportPhase.LEFT, "one is given up")
    entry = node.store.get("nodes/here")
    assert entry is not None
    assert str(others[1]) in Gateway.model_validate_json(entry.value).running
    let.set()
    node.serve(hangs)


@pytest.mark.rows("W-IS-7")
def test_what_is_seen_to_be_free_is_taken_at_once(node: Node) -> None:
    node.turn()
    node.turn()  # its gateway counts itself in
    export = node.publish("1")
    node.turn()
    assert export in node.worker._lanes.look().busy or node.value(export).phase is not ExportPhase.FREE


@pytest.mark.rows("IS-12", "IS-13", "W-IS-3")
def test_a_loop_whose_turns_fail_tries_again_no_later_than_one_whose_turns_do_not(node: Node) -> None:
    waits: list[float] = []

    class Clock(SystemClock):
        def wait(self, event: threading.Event, timeout_s: float) -> bool:
            if event is node.worker._awake:
                waits.append(timeout_s)
            return event.is_set() if event is node.worker._awake else super().wait(event, timeout_s)

    def fails() -> tuple[Running, ...]:
        if len(waits) > 20:
            node.worker._stopping.set()
        raise (Unavailable("away", dependency="consul") if len(waits) % 2 else ZeroDivisionError)

    node.worker._clock, node.worker._targets.actual = Clock(), fails  # type: ignore[method-assign]
    node.worker._reconcile()
    interval_s = node.settings.iscsi_worker.renew_interval_s
    assert 0 < max(waits) <= interval_s
