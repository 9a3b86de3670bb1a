"""What the contract of targets is tested with: images, initiators and time, on real tgtd processes and in memory."""

import base64
import contextlib
import heapq
import itertools
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cli.lab.initiator import SECTOR, Initiator
from cli.lab.parts.daemons import run, start_time, waited
from iscsi_worker.targets.base import Running, Targets, TargetSpec
from iscsi_worker.targets.guard import GuardLibrary
from iscsi_worker.targets.memory import MemoryNode, MemoryOperation, MemoryProcess, MemoryStore, MemoryTargets
from iscsi_worker.targets.probe import IscsiSession
from iscsi_worker.targets.tgt import TgtTargets
from sanderling.clock import Clock, ManualClock, SystemClock
from sanderling.errors import TargetFailed
from sanderling.images.base import BackingStore, Images
from sanderling.model.exports import ExportId
from sanderling.settings import General, Settings, Worker
from tests.simulation.ceph import Ceph, FlyingTargets

NAME = "iqn.2026-11.io.sanderling.tests:initiator"
SIZE_BYTES = 16 << 20
Login = tuple[str, str]  # a CHAP name and its secret


class Sent(Protocol):
    """A write that was sent: answered (well or badly), lost with its connection, or neither yet."""

    @property
    def answered(self) -> bool: ...

    @property
    def lost(self) -> bool: ...


class Bench(Protocol):
    """One node, its targets, and everything around them."""

    targets: Targets
    clock: Clock

    def spec(self, *, initiators: Sequence[str] = (), allow_any: bool = True) -> TargetSpec: ...
    def address(self) -> str: ...
    def send(self, spec: TargetSpec, address: str, lba: int, data: bytes) -> Sent: ...
    def lets_in(
        self, spec: TargetSpec, address: str, name: str, *, login: Login | None = None, target_login: Login | None = None
    ) -> bool: ...
    def on_image(self, spec: TargetSpec, lba: int) -> bytes: ...
    def fence(self, client: str) -> None: ...
    def kill(self, export: ExportId) -> None: ...
    def until(self, happened: Callable[[], bool], what: str) -> None: ...
    def stuck_image(self, spec: TargetSpec, address: str) -> AbstractContextManager[Sent]: ...
    def start_in_a_worker_that_dies(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> None: ...


class SentByMemory:
    def __init__(self, operation: MemoryOperation) -> None:
        self._operation = operation

    @property
    def answered(self) -> bool:
        return self._operation.answer is not None

    @property
    def lost(self) -> bool:
        return self._operation.lost


class MemoryBench:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.time = ManualClock()
        self.clock: Clock = self.time
        self.store, self._node = MemoryStore(), MemoryNode()
        self._present: set[str] = set()
        self._made = 0
        self.targets: Targets = self._connected()

    def _connected(self) -> MemoryTargets:
        return MemoryTargets(clock=self.clock, node=self._node, store=self.store, present=lambda: self._present)

    def spec(self, *, initiators: Sequence[str] = (), allow_any: bool = True) -> TargetSpec:
        self._made += 1
        return _spec(f"disk-{self._made}", BackingStore("memory", f"image-{self._made}"), initiators, allow_any)

    def address(self) -> str:
        self._present.add(address := f"192.0.2.{len(self._present) + 1}")
        return address

    def _memory(self) -> MemoryTargets:
        assert isinstance(self.targets, MemoryTargets)
        return self.targets

    def send(self, spec: TargetSpec, address: str, lba: int, data: bytes) -> Sent:
        name = spec.initiators[0] if spec.initiators else NAME
        return SentByMemory(self._memory().login(address, name).write(lba, data))

    def lets_in(
        self, spec: TargetSpec, address: str, name: str, *, login: Login | None = None, target_login: Login | None = None
    ) -> bool:
        try:
            self._memory().login(address, name, login, target_login)
        except TargetFailed:
            return False
        return True

    def on_image(self, spec: TargetSpec, lba: int) -> bytes:
        return self.store.blocks.get((spec.backing_store.location, lba), bytes(SECTOR))

    def fence(self, client: str) -> None:
        self.store.fenced.add(client)

    def kill(self, export: ExportId) -> None:
        self._node.processes.pop(export).lose_everything()

    def until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = self.clock.monotonic() + 30
        while not happened():
            assert self.clock.monotonic() < deadline, f"not in 30 s: {what}"
            self.time.advance(0.01)
            self.targets.actual()

    def start_in_a_worker_that_dies(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> None:
        self._connected().start(spec, epoch=epoch, revision=revision, lease_s=lease_s)

    @contextlib.contextmanager
    def stuck_image(self, spec: TargetSpec, address: str) -> Iterator[Sent]:
        self.store.stuck = True
        yield self.send(spec, address, 9, b"s" * SECTOR)
        self.store.stuck = False


class Flights(ManualClock):
    """A network on which every operation takes a while (`tests.simulation.ceph.Network`); passing time lets them arrive."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def flight_s(self, node: str) -> float | None:
        return None if self._store.stuck else 0.005

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.monotonic() + seconds, next(self._number), act))

    def landed(self, client: str, image: str, lba: int, data: bytes) -> None: ...

    def opened(self, process: MemoryProcess) -> None: ...

    def advance(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while self._due and self._due[0][0] <= until:
            at, _, act = heapq.heappop(self._due)
            super().advance(max(0.0, at - self.monotonic()))
            act()
        super().advance(max(0.0, until - self.monotonic()))


class FlightBench(MemoryBench):
    """The targets of simulated schedules."""

    def _connected(self) -> MemoryTargets:
        if not isinstance(self.time, Flights):
            self.time = self.clock = Flights(self.store)
            self._node.name = "client.memory"
            self._flying = FlyingTargets(Ceph(self.time, self.store), self.time, self._node, present=lambda: self._present)
        return self._flying


class SentByIscsi:
    """One write on a session of its own, logged in now and sent by `start`; a thread waits for its answer. Never sent again."""

    def __init__(self, spec: TargetSpec, address: str, lba: int, data: bytes) -> None:
        self.answered = self.lost = False
        name = spec.initiators[0] if spec.initiators else NAME
        cdb = bytes([0x2A, 0, *lba.to_bytes(4, "big"), 0, 0, 1, 0])
        self._session = IscsiSession(f"{address}:3260", spec.iqn, lun=1, initiator=name, timeout_s=5, clock=SystemClock())
        self._thread = threading.Thread(target=self._send, args=(cdb, data), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _send(self, cdb: bytes, data: bytes) -> None:
        try:
            self._session.command(cdb, write=data, timeout_s=60)
            self.answered = True
        except TargetFailed as failed:
            self.answered = "sense" in failed.context
            self.lost = not self.answered
        finally:
            self._session.close()

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive(), "an initiator still waits for an answer"


class TgtBench:
    """A node of real tgtd processes in one folder, over images that another part stores."""

    def __init__(self, folder: Path, settings: Settings, images: Images) -> None:
        self.clock: Clock = SystemClock()
        self.settings = replace(settings, sanderling=General(runtime_dir=str(folder / "run")), iscsi_worker=Worker())
        self.targets: Targets = TgtTargets(self.settings, clock=self.clock)
        self.images = images
        self._names: list[str] = []
        self._sent: list[SentByIscsi] = []

    def close(self) -> None:
        """End every process and every thread, and remove the images."""
        for folder in self.run_folder.iterdir():
            with GuardLibrary("").open(folder / "guard") as guard:
                if start_time(guard.pid) == str(guard.start_time):
                    os.kill(guard.pid, signal.SIGCONT)
        for running in self.targets.actual():
            self.targets.stop(running.export)
        for sent in self._sent:
            sent.join()
        for name in self._names:
            for client in self.images.clients(name):
                self.images.fence(client)
            self.images.remove(name)

    @property
    def run_folder(self) -> Path:
        return Path(self.settings.sanderling.runtime_dir) / "targets"

    def other_node(self, folder: Path) -> "TgtBench":
        return TgtBench(folder, self.settings, self.images)

    def spec(self, *, initiators: Sequence[str] = (), allow_any: bool = True) -> TargetSpec:
        name = f"t{random.getrandbits(64):016x}"
        self.images.create(name, SIZE_BYTES, metadata={})
        self._names.append(name)
        return _spec(name, self.images.backing_store(name), initiators, allow_any)

    def address(self) -> str:
        """One of 127.0.0.0/8 that nobody listens on."""
        while True:
            address = f"127.{random.randint(64, 250)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
            with socket.socket() as free:
                if free.connect_ex((address, 3260)) != 0:
                    return address

    def send(self, spec: TargetSpec, address: str, lba: int, data: bytes) -> SentByIscsi:
        sent = self.prepare(spec, address, lba, data)
        sent.start()
        return sent

    def prepare(self, spec: TargetSpec, address: str, lba: int, data: bytes) -> SentByIscsi:
        """As `send`, but only logged in: the write goes out when it is started."""
        self._sent.append(SentByIscsi(spec, address, lba, data))
        return self._sent[-1]

    def lets_in(
        self, spec: TargetSpec, address: str, name: str, *, login: Login | None = None, target_login: Login | None = None
    ) -> bool:
        portal = f"{address}:3260"
        with Initiator(spec.iqn, portal, initiator_name=name, timeout_s=0.5, login=login, target_login=target_login) as initiator:
            try:
                initiator.login()
            except TargetFailed:
                return False
        return True

    def on_image(self, spec: TargetSpec, lba: int) -> bytes:
        store = spec.backing_store
        if store.kind == "file":
            with Path(store.location).open("rb") as image:
                return os.pread(image.fileno(), SECTOR, lba * SECTOR)
        return _read_rbd(store, lba)

    def fence(self, client: str) -> None:
        self.images.fence(client)

    def pid(self, export: ExportId) -> int:
        with GuardLibrary("").open(self.run_folder / f"{export.disk_id}.{export.index}" / "guard") as guard:
            return guard.pid

    def held(self, export: ExportId) -> int:
        """Operations that wait at the gate."""
        with GuardLibrary("").open(self.run_folder / f"{export.disk_id}.{export.index}" / "guard") as guard:
            return guard.held

    def kill(self, export: ExportId) -> None:
        os.kill(self.pid(export), signal.SIGKILL)

    def freeze(self, export: ExportId) -> None:
        os.kill(self.pid(export), signal.SIGSTOP)

    def thaw(self, export: ExportId) -> None:
        os.kill(self.pid(export), signal.SIGCONT)

    @contextlib.contextmanager
    def stuck_image(self, spec: TargetSpec, address: str) -> Iterator[Sent]:
        """Within this, Ceph answers nobody, and the export has a write under way (RBD only)."""
        options = dict(option.split("=", 1) for option in spec.backing_store.options.split(";"))
        run(["ceph", "--conf", options["conf"], "osd", "set", "pause"])
        try:
            yield self._first_unanswered(spec, address)
        finally:
            run(["ceph", "--conf", options["conf"], "osd", "unset", "pause"])

    def _first_unanswered(self, spec: TargetSpec, address: str) -> Sent:
        """A client learns of the pause from the answer to an operation, so the first ones may still be answered."""
        for _ in range(20):
            sent = self.send(spec, address, 9, b"s" * SECTOR)
            with contextlib.suppress(AssertionError):
                waited(lambda now=sent: now.answered, within_s=1.0, what="the pause is not known yet")  # type: ignore[misc]
                continue
            return sent
        raise AssertionError("Ceph is paused and answers still")

    def until(self, happened: Callable[[], bool], what: str) -> None:
        waited(happened, within_s=30, what=what, every_s=0.005)

    def start_in_a_worker_that_dies(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> None:
        asked = base64.b64encode(pickle.dumps((self.settings, spec, epoch, revision, lease_s))).decode()
        died = subprocess.run(
            [sys.executable, "-m", "tests.parts.exports", asked], timeout=60, check=False, start_new_session=True
        )
        assert died.returncode == -signal.SIGKILL, "the worker was to kill itself once the export runs"


def running(bench: Bench, export: ExportId) -> Running | None:
    """The export's process as its node sees it, None when it is gone."""
    return next((one for one in bench.targets.actual() if one.export == export), None)


def _spec(name: str, store: BackingStore, initiators: Sequence[str], allow_any: bool) -> TargetSpec:
    serial = f"{random.getrandbits(128):032x}"
    tid = random.randint(2, 0x7FFFFF)
    return TargetSpec(ExportId(name, 0), f"iqn.2026-11.io.sanderling:{name}", tid, serial, store, tuple(initiators), allow_any)


def _read_rbd(store: BackingStore, lba: int) -> bytes:
    import rados  # noqa: PLC0415
    import rbd  # noqa: PLC0415

    options: dict[str, Any] = dict(option.split("=", 1) for option in store.options.split(";"))
    pool, name = store.location.split("/")
    with (
        rados.Rados(conffile=options["conf"], rados_id=options["id"]) as cluster,
        cluster.open_ioctx(pool) as ioctx,
        rbd.Image(ioctx, name, read_only=True) as image,
    ):
        return bytes(image.read(lba * SECTOR, SECTOR))


def _start_and_die(asked: str) -> None:
    settings, spec, epoch, revision, lease_s = pickle.loads(base64.b64decode(asked))
    TgtTargets(settings, clock=SystemClock()).start(spec, epoch=epoch, revision=revision, lease_s=lease_s)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _start_and_die(sys.argv[1])
