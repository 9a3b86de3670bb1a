"""The hazards, each run twice: as built the block checker finds nothing, and without the guard it finds what the guard prevents.

The second run is what makes the first worth anything. Guards are taken out of a copy of the guard library that the workers are
started with, and of Ceph's blocklist; the checker, the disks and the faults are the same in both runs.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rpc.oslo
import sanderling.coordination
from cli.lab.cluster import Cluster
from cli.lab.initiator import SECTOR, BlockHistory, Initiator
from cli.lab.lab import inside
from cli.lab.load import SECTORS, Load, number_in
from cli.lab.parts.daemons import run, start_time, waited
from cli.lab.registers import History, Read, Write, violations
from cli.lab.scenarios.partitions import dropping
from iscsi_worker.targets.guard import GuardLibrary
from iscsi_worker.targets.record import GUARD_STATE
from rpc import topics
from rpc.messages import ExportCommand
from rpc.signing import Signing
from sanderling.clock import SystemClock
from sanderling.errors import TargetFailed
from sanderling.model.exports import Export, ExportId
from sanderling.secrets import Keyring
from sanderling.settings import Settings, Worker
from tests.functional.test_serving import gateway_of, image, intervals, moved, target_pids

CLOCK = SystemClock()
HOST = "iqn.2026-11.io.sanderling.tests:host"
FIRST, OLD, NEW = 1, 2, 3
IOTHREADS = Worker().iothreads
OSD_PORTS = range(6800, 7301)
ESTABLISHED, FIN_WAITS = 0x01, (0x04, 0x05)
A_WRITE_BYTES = 48 + SECTOR  # a command's header and its data

Cut = tuple[str, str]
NO_END_WHEN_LAPSED: Cut = ("        end(LEASE_LAPSED);", "        return 1000000000;")
NO_END_WHEN_FENCED: Cut = ("        end(FENCED);", "        ;")
NO_DRAIN: Cut = ("{ return atomic_load(&shared->in_flight); }", "{ return shared == NULL; }")

ENDS = (NO_END_WHEN_LAPSED, NO_END_WHEN_FENCED)

pytestmark = pytest.mark.timeout(300)
Guards = Callable[[Sequence[Cut]], None]


class Socket(NamedTuple):
    """A TCP connection as the kernel sees it: bytes not acknowledged by the other side, bytes not read on this one."""

    port: int
    remote_port: int
    state: int
    to_send: int
    to_read: int


class Host:
    """Sessions with a sector each. What one is told to write it sends until it is acknowledged, as an operating system does."""

    def __init__(self, cluster: Cluster, disk: Mapping[str, Any], *, sessions: int, attempt_s: float = 1.0) -> None:
        self._cluster, self._disk = cluster, disk
        portal = f"{disk['paths'][0]['address']}:3260"
        self._initiators = [
            Initiator(disk["iqn"], portal, initiator_name=f"{HOST}-{number}", timeout_s=60.0, attempt_s=attempt_s)
            for number in range(sessions)
        ]
        self._blocks = BlockHistory(writer=7)
        self._pool = ThreadPoolExecutor(sessions)
        self.writes: list[Write] = []
        self.errors: list[str] = []

    def __enter__(self) -> "Host":
        self.write(FIRST)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for initiator in self._initiators:
            initiator.close()

    def begin(self, *numbers: int) -> list[Future[None]]:
        """In every session: these writes to its sector, each begun when the one before has been acknowledged."""
        with inside(self._cluster.network.initiator):  # a thread stays where it was begun
            return [self._pool.submit(self._write, lba, numbers) for lba in range(len(self._initiators))]

    def write(self, *numbers: int) -> None:
        for each in self.begin(*numbers):
            each.result()

    def unit_is_ready(self) -> bool:
        """What a multipath daemon asks before it takes a path out."""
        try:
            self._pool.submit(self._initiators[0].login).result()
        except TargetFailed:
            return False
        return True

    def wrong(self) -> list[str]:
        """What the block checker says of the image as it is now."""
        with image(self._cluster, self._disk["id"]) as opened:
            reads = [self._read(lba, bytes(opened.read(lba * SECTOR, SECTOR))) for lba in range(len(self._initiators))]
        return violations(History(list(self.writes), reads))

    def _read(self, lba: int, found: bytes) -> Read:
        now = CLOCK.monotonic()
        return Read(lba, number_in(self._blocks, lba, found), now, now)

    def _write(self, lba: int, numbers: Sequence[int]) -> None:
        for number in numbers:
            began = CLOCK.monotonic()
            try:
                self._initiators[lba].write(lba, self._blocks.block(lba, number))
            except TargetFailed as failed:
                if "sense" not in failed.context:
                    raise
                self.errors.append(failed.detail)
                self.writes.append(Write(lba, number, began))
            else:
                self.writes.append(Write(lba, number, began, CLOCK.monotonic()))


@pytest.fixture(scope="module", params=[True, False], ids=["as built", "guards taken out"])
def guarded(request: pytest.FixtureRequest) -> bool:
    """Of the module, so that all tests run as built first, and the workers are started again as seldom as can be."""
    return bool(request.param)


@pytest.fixture(scope="module")
def guards(_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guards]:
    """Has all workers run without these guards, whatever they lacked before; as they were at the end."""
    before = {worker.name: worker.settings for worker in _cluster.workers}
    folder, built = tmp_path_factory.mktemp("guards"), dict[tuple[Cut, ...], str]()

    def without(cuts: Sequence[Cut]) -> None:
        key = tuple(cuts)
        if key not in built:
            built[key] = _guard_without(key, folder / f"without-{len(built)}.so") if cuts else ""
        _restart(_cluster, {node: _with_guard(settings, built[key]) for node, settings in before.items()})

    yield without
    _cluster.heal()
    _restart(_cluster, before)


def test_writes_that_a_cut_off_owner_holds_do_not_land_after_it_is_back(
    cluster: Cluster, guards: Guards, unique: str, libiscsi: str, guarded: bool
) -> None:
    """H1: held in librbd's hands. H2: more of them than it has threads, so that some wait in the target's own queue."""
    guards(() if guarded else ENDS)
    with _disk(cluster, unique) as disk, Host(cluster, disk, sessions=IOTHREADS + 4) as host:
        node, pids = _owner(cluster, disk)
        with _cut_off_from_the_store(cluster, node):
            cluster[node].pause()  # so that the guard and the fence are all there is
            written = host.begin(OLD, NEW)
            moved(cluster, disk["id"], away_from=node)
            _wait_for(written)
            if not guarded:
                _lift_the_fence(cluster)
        found = _found(host.wrong, or_once=lambda: _gone(pids) and not _on_their_way(cluster, node))
        assert bool(found) is not guarded, found


def test_an_owner_that_was_stopped_past_its_lease_does_nothing_when_it_goes_on(
    cluster: Cluster, guards: Guards, unique: str, libiscsi: str, tmp_path: Path, guarded: bool
) -> None:
    """H8: worker and export process, under a continuous load. It ends before they go on, so that nothing hides a stale write."""
    guards(() if guarded else ENDS)
    with _disk(cluster, unique) as disk, _load(cluster, disk, tmp_path) as load:
        node, pids = _owner(cluster, disk)
        _stop_with_a_write_in_its_socket(pids)
        cluster[node].pause()
        moved(cluster, disk["id"], away_from=node)
        load.wait_for_writes(2 * SECTORS, within_s=30)
        load.stop()
        if not guarded:
            _lift_the_fence(cluster)
        _signal(pids, signal.SIGCONT)
        found = _found(lambda: _wrong(cluster, disk, load), or_once=lambda: _gone(pids))
        cluster[node].resume()
        assert bool(found) is not guarded, found


def test_a_write_in_the_socket_of_a_frozen_owner_does_not_come_back(
    cluster: Cluster, guards: Guards, unique: str, libiscsi: str, guarded: bool
) -> None:
    """H10: the whole node, its Consul agent included."""
    guards(() if guarded else ENDS)
    with _disk(cluster, unique) as disk, Host(cluster, disk, sessions=1) as host:
        node, pids = _owner(cluster, disk)
        cluster.freeze(node)
        written = host.begin(OLD, NEW)
        moved(cluster, disk["id"], away_from=node)
        _wait_for(written)
        if not guarded:
            _lift_the_fence(cluster)
        _signal(pids, signal.SIGCONT)  # the target first, so that nobody stops it before it has read its socket
        found = _found(host.wrong, or_once=lambda: _gone(pids))
        assert bool(found) is not guarded, found


def test_a_move_leaves_no_write_behind_that_lands_later(
    cluster: Cluster, guards: Guards, unique: str, libiscsi: str, guarded: bool
) -> None:
    """More writes than threads, a store that does not answer the source, and a planned move: it drains or it does not happen.

    Without the drain the source's kernel goes on sending what the dead process had written to its socket.
    """
    guards(() if guarded else (NO_DRAIN,))
    with (
        _disk(cluster, unique) as disk,
        Host(cluster, disk, sessions=IOTHREADS + 4, attempt_s=30.0) as host,
        _a_store_that_serves_who_has_left(cluster),
    ):
        source, _ = _owner(cluster, disk)
        destination = next(node for node in cluster.network.nodes if node != source)
        with _cut_off_from_the_store(cluster, source):
            written = host.begin(OLD, NEW)
            waited(lambda: _in_flight(cluster, source, disk) == IOTHREADS, within_s=60, what="every thread writes")
            _command_a_move(cluster, disk, source, destination)
            waited(lambda: _is_kept(cluster, disk, source) or _has(written), within_s=40, what="the move is over", every_s=0.1)
            assert _is_kept(cluster, disk, source) is guarded
            owner = source if guarded else destination
            waited(lambda: gateway_of(cluster, disk["id"]) == owner, within_s=60, what=f"{owner} is known to serve")
        _wait_for(written)
        found = _found(host.wrong, or_once=lambda: not _in_flight(cluster, source, disk) and not _on_their_way(cluster, source))
        assert bool(found) is not guarded, found


def test_an_export_that_was_fenced_answers_nothing_rather_than_errors(
    cluster: Cluster, guards: Guards, unique: str, libiscsi: str, guarded: bool
) -> None:
    """H11: an error that the application gets, over a path that says it is ready."""
    guards(() if guarded else (NO_END_WHEN_FENCED,))
    with _disk(cluster, unique) as disk, Host(cluster, disk, sessions=1) as host:
        cluster.ceph.ceph("osd", "blocklist", "add", intervals(cluster, disk["id"])[-1][2])

        def told() -> bool:
            host.write(OLD)
            return bool(host.errors) or len(intervals(cluster, disk["id"])) > 1

        waited(told, within_s=60, what="the fence is felt")
        assert host.unit_is_ready()
        assert bool(host.errors) is not guarded, host.errors
        host.errors.clear()
        if guarded:
            host.write(NEW)
            assert (host.errors, host.wrong()) == ([], [])


@contextlib.contextmanager
def _disk(cluster: Cluster, name: str) -> Iterator[dict[str, Any]]:
    """A disk with one path, served from the start to the end."""
    made = cluster.create_disk(name, paths=1)
    try:
        yield made
    finally:
        cluster.heal()
        for _, _, client in intervals(cluster, made["id"])[:-1]:  # else their watches, which a deletion waits for, stay for 30 s
            cluster.ceph.ceph("osd", "blocklist", "add", client)
        cluster.delete_disk(name)


def _restart(cluster: Cluster, settings: Mapping[str, Settings]) -> None:
    """Every worker whose settings are not these, in order and with them."""

    def again(node: str) -> None:
        worker = cluster[node]
        if worker.settings != settings[node]:
            serving = len(worker.log(event="serving"))
            worker.terminate()
            worker.settings = settings[node]
            worker.start()
            worker.wait_for_log("serving", after=serving)

    with ThreadPoolExecutor(len(settings)) as pool:
        list(pool.map(again, settings))
    cluster.wait_until_ready()


def _with_guard(settings: Settings, guard: str) -> Settings:
    return replace(settings, iscsi_worker=replace(settings.iscsi_worker, guard=guard))


def _guard_without(cuts: Sequence[Cut], library: Path) -> str:
    """The guard library, compiled with these lines replaced."""
    source = Path("iscsi_worker/targets/tgt_guard.c").read_text()
    for line, instead in cuts:
        assert source.count(line) == 1, line
        source = source.replace(line, instead)
    library.with_suffix(".c").write_text(source)
    gcc = ["gcc", "-std=gnu11", "-O2", "-w", "-fPIC", "-shared", "-o", str(library), str(library.with_suffix(".c"))]
    run([*gcc, "-ldl", "-lpthread"])
    return str(library)


def _owner(cluster: Cluster, disk: Mapping[str, Any]) -> tuple[str, list[int]]:
    """The node that serves the disk, and its export process."""
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    pids = target_pids(cluster, node)
    assert len(pids) == 1, "nothing else is served meanwhile"
    return node, pids


def _found(wrong: Callable[[], list[str]], *, or_once: Callable[[], bool]) -> list[str]:
    """What the checker finds: as soon as it finds something, or once nothing can happen any more."""
    found: list[str] = []

    def settled() -> bool:
        nothing_more = or_once()  # asked first: what lands after the check would go unseen
        found[:] = wrong()
        return bool(found) or nothing_more

    waited(settled, within_s=40, what="what was held has landed, or cannot any more", every_s=0.2)
    return found


def _wait_for(written: Sequence[Future[None]]) -> None:
    for each in written:
        each.result(60)


def _gone(pids: Sequence[int]) -> bool:
    return not any(start_time(pid) for pid in pids)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _lift_the_fence(cluster: Cluster) -> None:
    cluster.ceph.ceph("osd", "blocklist", "clear")


def _has(written: Sequence[Future[None]]) -> bool:
    return all(each.done() for each in written)


def _command_a_move(cluster: Cluster, disk: Mapping[str, Any], source: str, destination: str) -> None:
    """What a conductor commands, but no operation, which would wait for what might still come of a move that was refused."""
    settings, export = cluster.settings(name="mover"), ExportId(disk["id"], 0)
    with (
        contextlib.closing(sanderling.coordination.connect(settings, clock=CLOCK)) as coordination,
        contextlib.closing(rpc.oslo.connect(settings)) as bus,
    ):
        entry = coordination.get(export.key)
        assert entry is not None
        now = Export.model_validate_json(entry.value).epoch
        command = ExportCommand(
            operation_id="hazard", disk_id=export.disk_id, index=0, generation=now.generation, counter=now.counter
        )
        signing = Signing(settings.secrets, Keyring(settings.secrets), clock=CLOCK)
        handing = command.model_copy(update={"destination": destination})
        for server, method, each in ((destination, "export.path_host", command), (source, "export.clean", handing)):
            bus.cast(topics.ISCSI_WORKER, method, signing.signed(method, each, server=server), server=server)


def _is_kept(cluster: Cluster, disk: Mapping[str, Any], source: str) -> bool:
    """Whether the source has said that it did not hand the disk on."""
    failed = cluster.log(source, event="action failed")
    return any(entry["action"] == "HandOver" and entry["export"].startswith(disk["id"]) for entry in failed)


@contextlib.contextmanager
def _load(cluster: Cluster, disk: Mapping[str, Any], folder: Path) -> Iterator[Load]:
    load = Load("h8", folder, netns=cluster.network.initiator, pace_s=0.01, patience_s=1.0)
    try:
        load.start(disk["iqn"], [f"{path['address']}:3260" for path in disk["paths"]])
        yield load
    finally:
        load.stop()


def _wrong(cluster: Cluster, disk: Mapping[str, Any], load: Load) -> list[str]:
    history = load.everything()
    with image(cluster, disk["id"]) as opened:
        history.reads += load.direct(lambda lba: bytes(opened.read(lba * SECTOR, SECTOR)))
    return violations(history)


def _stop_with_a_write_in_its_socket(pids: Sequence[int]) -> None:
    """SIGSTOP at a moment when the initiator's next write cannot but stay unread."""

    def caught() -> bool:
        _signal(pids, signal.SIGSTOP)
        try:
            waited(lambda: _unread(pids[0]) >= A_WRITE_BYTES, within_s=0.5, what="a write comes")
        except AssertionError:  # the one before had not been answered yet
            _signal(pids, signal.SIGCONT)
            return False
        return True

    waited(caught, within_s=90, what="a write is in the socket of the stopped process")


@contextlib.contextmanager
def _cut_off_from_the_store(cluster: Cluster, node: str) -> Iterator[None]:
    """What the node sends to the OSD is lost, as on a bad cable: it is sent again until it arrives."""
    ports = f"{OSD_PORTS.start}-{OSD_PORTS.stop - 1}"
    rule = f"ip saddr {cluster.network.address(node, 'back')} tcp dport {ports}"
    with dropping(cluster.network.parts, [rule], hooks=("input",)):
        yield


@contextlib.contextmanager
def _a_store_that_serves_who_has_left(cluster: Cluster) -> Iterator[None]:
    """An OSD may see that a client has gone before it looks at what that had sent, and leave it; or not. Here it never does."""

    option = ("osd", "osd_discard_disconnected_ops")
    cluster.ceph.ceph("config", "set", *option, "false")
    try:
        yield
    finally:
        cluster.ceph.ceph("config", "rm", *option)


def _in_flight(cluster: Cluster, node: str, disk: Mapping[str, Any]) -> int:
    """Operations of the node's export that the image has not answered, by the guard as it is built; 0 when there is no export."""
    folder = Path(cluster[node].settings.sanderling.runtime_dir) / "targets" / f"{disk['id']}.0"
    try:
        with GuardLibrary("").open(folder / GUARD_STATE) as guard:
            return guard.in_flight
    except TargetFailed:
        return 0


def _unread(pid: int) -> int:
    """The most bytes that one of the process's initiators has sent and it has not read."""
    return max((one.to_read for one in _sockets(pid) if one.port == 3260 and one.state == ESTABLISHED), default=0)


def _on_their_way(cluster: Cluster, node: str) -> bool:
    """Whether the node's kernel has still something to send to the OSD, or does not know whether all of it was read."""
    to_osd = [one for one in _sockets(cluster[node].pid) if one.remote_port in OSD_PORTS]
    return any(one.to_send or one.state in FIN_WAITS for one in to_osd)


def _sockets(pid: int) -> list[Socket]:
    """Every TCP connection in the network namespace of the process."""
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        to_send, _, to_read = queues.partition(":")
        numbers = [local.rpartition(":")[2], remote.rpartition(":")[2], state, to_send, to_read]
        found.append(Socket(*(int(number, 16) for number in numbers)))
    return found
