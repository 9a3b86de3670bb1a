"""A whole installation in one thread: gateways, conductors, candidates for leadership and the API's part of a request."""

import hashlib
import itertools
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from fastapi import Request
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.auth import Caller
from api.changes import Change
from api.context import Context
from api.limits import BODY_DIGEST
from api.metrics import TRACEPARENT
from api.outbox import Outbox
from api.policy import Policy
from conductor.server import Conductor
from iscsi_worker.addresses.memory import Memory
from iscsi_worker.targets.memory import MemoryNode, MemoryProcess
from iscsi_worker.worker import Worker
from leader.duties import Tenure
from leader.service import Candidate
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import Problem, TargetFailed
from sanderling.images.base import Images
from sanderling.model.disks import Disk
from sanderling.records.database import Records
from sanderling.records.disks import describe
from sanderling.records.tables import DiskRow
from sanderling.records.tokens import Role
from sanderling.secrets import Keyring
from sanderling.settings import Api, Coordination, General, Secrets, Settings
from sanderling.settings import Conductor as ConductorSettings
from sanderling.settings import Images as ImagesSettings
from sanderling.settings import Worker as WorkerSettings
from tests.simulation.ceph import Ceph, FlyingTargets, MemoryImages
from tests.simulation.invariants import Watch, number_of
from tests.simulation.seams import CEPH, COORDINATION, Broker, Calls, Part, Place, SharedRecords, Weather, Wire
from tests.simulation.threads import Clock, Process, Scheduler

POLICY: Final = Policy("")
OPERATOR: Final = Caller("operator", Role.ADMIN)
WORKER: Final = WorkerSettings(targets="memory", addresses="memory", announcements=2, front_probe_interval_s=5.0)
CONDUCTOR: Final = ConductorSettings(
    workers=3, sweep_interval_s=3.0, balance_cool_down_s=15.0, balance_interval_s=8.0, schedule_interval_s=60.0
)
CHANGING: Final = {"create", "remove", "grow", "snapshot", "roll_back", "remove_snapshot", "clone"}


@dataclass(slots=True)
class Node:
    """A storage node: what stays when its worker dies."""

    name: str
    place: Place
    memory: MemoryNode
    addresses: Memory
    targets: FlyingTargets
    worker: Worker | None = None


class World:
    """Everything that one schedule runs. Whatever is random comes from `rng`."""

    def __init__(self, seed: int, folder: Path, records: Records, *, gateways: int = 3) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.scheduler = Scheduler(self.rng)
        self.outside = Process("outside")
        self.clock = Clock(self.scheduler, self.outside)
        self.weather = Weather()
        self.accepted: set[str] = set()
        self.asked = Counter[str]()
        self._raw = sqlite3.connect(folder.parent / "records.sqlite")
        self._disks: tuple[int | None, list[Disk]] = -1, []
        self._stops: dict[Process, Callable[[], None]] = {}
        self._contexts: dict[Process, Context] = {}
        self.candidates: dict[str, Candidate] = {}
        self.places: dict[str, Place] = {}
        self._wall_skew_s = 0.0
        self._incarnation = itertools.count(1)
        self._records_behind = records
        self._gateways = gateways

    def build(self) -> None:
        """Once the scheduler's threads are installed."""
        self.coordination = EmbeddedCoordination(clock=self.clock)
        self.ceph = Ceph(self.clock)
        self.watch = Watch(self)
        self.ceph.on_rolled_back, self.ceph.on_cloned = self.watch.rolled_back, self.watch.cloned
        self.scheduler.on_step, self.scheduler.on_error = self.watch.step, self.watch.died
        self.broker = Broker(self.scheduler, self.rng, self.weather, self._park)
        self.broker.delivered = self.watch.delivered
        self.flights = Counter[tuple[str, str]]()
        self.nodes = {name: self._node(name) for name in (f"n{n + 1}" for n in range(self._gateways))}
        self.starts: dict[str, Callable[[Place], None]] = {
            **dict.fromkeys(self.nodes, self._start_worker),
            "c1": self._start_conductor,
            "api": self._start_api,
        }
        if self.rng.random() < 0.5:
            self.starts["c2"] = self._start_conductor
        if self.rng.random() < 0.3:
            self.starts |= {"l1": self._start_candidate, "l2": self._start_candidate}
        for name in self.starts:
            self.start(name)

    def close(self) -> None:
        self.scheduler.task = None
        for place in self.places.values():
            self.scheduler.kill(place.process)
        self.scheduler.kill(self.outside)
        self._raw.close()

    # processes

    def start(self, name: str) -> None:
        """Begin a process, as after a crash: from what is durable."""
        process = Process(name)
        process.skew_s = self.nodes[name].place.process.skew_s if name in self.nodes else self._wall_skew_s
        if name in self.nodes:
            place = self.nodes[name].place
            place.process = process
        else:
            place = Place(process)
        self.places[name] = place
        self.scheduler.spawn(process, "main", lambda: self.starts[name](place))

    def kill(self, name: str) -> None:
        self.scheduler.kill(self.places[name].process)
        self.candidates.pop(name, None)

    def end(self, name: str, *, away_s: float) -> None:
        """As by SIGTERM: the process stops in order, is gone once it has, and begins again after that time."""
        process = self.places[name].process
        stop = self._stops.pop(process, None)

        def begin() -> None:
            if self.places[name].process is process:
                self.start(name)

        def stopped() -> None:
            assert stop is not None
            stop()
            self.scheduler.after(away_s, begin)
            self.kill(name)

        if stop is not None:
            self.scheduler.spawn(process, "stop", stopped)

    def jump(self, seconds: float) -> None:
        """The wall clocks of conductors and API go that far ahead, or back; they share a host."""
        self._wall_skew_s += seconds
        for name, place in self.places.items():
            if name not in self.nodes:
                place.process.skew_s = self._wall_skew_s

    def calls(self, place: Place, *, timeout_s: float) -> Calls:
        return Calls(self.scheduler, self.rng, self.weather, place, timeout_s=timeout_s)

    def _parts(self, place: Place) -> tuple[Any, Any, Wire]:
        calls = self.calls(place, timeout_s=5.0)
        coordination = Part(COORDINATION, lambda: self.coordination, self._seen(calls))
        images = Part(CEPH, lambda: MemoryImages(self.ceph), calls.remote)
        return coordination, _Authorised(images, self.watch), Wire(self.broker, place, calls)

    def _seen(self, calls: Calls) -> Callable[[str, str, Callable[[], Any]], Any]:
        """Calls of coordination; what they leave under exports/ is noted at the very moment."""

        def call(kind: str, name: str, act: Callable[[], Any]) -> Any:
            def acted() -> Any:
                before = self.coordination._store.index
                answer = act()
                if name in {"acquire", "release", "txn", "put"} and self.coordination._store.index != before:
                    self._note_epochs()
                return answer

            return calls.remote(kind, name, acted)

        return call

    def _note_epochs(self) -> None:
        for key, entry in self.coordination._store.entries.items():
            if key.startswith("exports/") and entry.modify_index == self.coordination._store.index:
                self.watch.wrote(key, entry.value)

    def _settings(self, name: str) -> Settings:
        return replace(SETTINGS, sanderling=General(node=name, runtime_dir=str(self.folder / name)))

    def _records(self, place: Place) -> Records:
        calls = self.calls(place, timeout_s=2.0)
        return cast(Records, SharedRecords(self._records_behind, calls, Clock(self.scheduler, place.process)))

    def _node(self, name: str) -> Node:
        place, addresses = Place(Process(name)), Memory(self.clock)
        memory = MemoryNode(f"client.{name}")
        targets = FlyingTargets(self.ceph, self, memory, present=addresses.present, end_poll_s=1.0)
        return Node(name, place, memory, addresses, targets)

    def _start_worker(self, place: Place) -> None:
        node = self.nodes[place.process.name]
        calls = self.calls(place, timeout_s=1.0)
        coordination, images, wire = self._parts(place)
        worker = node.worker = Worker(
            self._settings(node.name),
            coordination=coordination,
            images=images,
            bus=cast(Any, wire),
            targets=cast(Any, Part("targets", lambda: node.targets, self._starting(calls, place))),
            addresses=cast(Any, Part("addresses", lambda: node.addresses, calls.local)),
            clock=Clock(self.scheduler, place.process),
        )
        self._stops[place.process] = worker.stop
        worker.start()

    def _starting(self, calls: Calls, place: Place) -> Callable[[str, str, Callable[[], Any]], Any]:
        """Calls of targets: starting one takes a while, and does not work without Ceph."""

        def call(kind: str, name: str, act: Callable[[], Any]) -> Any:
            if name == "start":
                calls.give_way(self.rng.uniform(0.0, 0.3))
                return calls.remote(CEPH, name, act) if CEPH not in place.cuts else _cannot_start()
            return calls.local(kind, name, act)

        return call

    def _start_conductor(self, place: Place) -> None:
        coordination, images, wire = self._parts(place)
        conductor = Conductor(
            self._settings(place.process.name),
            records=self._records(place),
            coordination=coordination,
            images=images,
            bus=cast(Any, wire),
            news=cast(Any, SimpleNamespace(tell=lambda: None)),
            clock=Clock(self.scheduler, place.process),
        )
        self._stops[place.process] = conductor.stop
        conductor.start()

    def _start_candidate(self, place: Place) -> None:
        coordination, _, _ = self._parts(place)
        clock, name = Clock(self.scheduler, place.process), place.process.name
        candidate = self.candidates[name] = Candidate(
            "simulated",
            [Idle()],
            self._settings(name),
            coordination=coordination,
            clock=clock,
            end_process=lambda: self.kill(name),
        )
        self._stops[place.process] = candidate.stop
        candidate.start()

    # the API

    def _start_api(self, place: Place) -> None:
        coordination, images, wire = self._parts(place)
        records, clock, settings = self._records(place), Clock(self.scheduler, place.process), self._settings("api")
        outbox = Outbox(settings.api, records=records, bus=cast(Any, wire), clock=clock)
        self._contexts[place.process] = Context(
            settings,
            records,
            cast(Any, SimpleNamespace(ask=lambda question: question(coordination))),
            cast(Any, SimpleNamespace(ask=lambda question: question(images), lately=lambda question, within_s: question(images))),
            POLICY,
            cast(Any, SimpleNamespace(count=lambda _kind, _caller: None)),
            outbox,
            cast(Any, SimpleNamespace(tell=lambda: None)),
            cast(Any, SimpleNamespace(look=lambda: None)),
            cast(Any, None),
            Keyring(Secrets()),
            clock,
        )
        self._stops[place.process] = outbox.stop
        outbox.start()

    def ask(self, path: str, body: str, key: str, route: Callable[[Context, Caller, Change], Any]) -> Any:
        """One request with its Idempotency-Key, in a thread of the API's process; None when there was no answer."""
        answer: list[Any] = []
        process = self.places["api"].process
        context = self._contexts.get(process)
        if context is None or process.is_dead or process.is_paused:
            return None

        def handle() -> None:
            scope = {TRACEPARENT: None, BODY_DIGEST: hashlib.sha256(body.encode()).hexdigest()}
            url = SimpleNamespace(path=path, query="")
            request = cast(
                Request, SimpleNamespace(scope=scope, method="POST", url=url, headers={"authorization": "Bearer simulated"})
            )
            change = Change(request, context, dry_run=False, idempotency_key=key, if_match=None)
            answer.append(route(context, OPERATOR, change))

        task = self.scheduler.spawn(process, f"POST {path}", lambda: _answered(handle, answer))
        self.scheduler.wait(task.ended, 20.0)
        if not answer:
            return None
        if isinstance(answer[0], JSONResponse) and answer[0].status_code == 202:
            operation_id = answer[0].headers["location"].rpartition("/")[2]
            self.accepted.add(operation_id)
            return operation_id
        return answer[0]

    @contextmanager
    def looking(self) -> Iterator[Session]:
        """The records as they are, without anybody's process."""
        with self._records_behind.read() as session:
            yield session

    def disks(self) -> list[Disk]:
        """All there are, by name; read again when the history has grown."""
        version = self._raw.execute("SELECT max(id) FROM events").fetchone()[0]
        if version != self._disks[0]:
            with self.looking() as session:
                self._disks = version, [describe(row) for row in session.scalars(select(DiskRow).order_by(DiskRow.name))]
        return self._disks[1]

    def operations(self, *, of: str = "", going: bool = False) -> list[tuple[str, str]]:
        """The id and the kind of each, of this disk or of all."""
        found = self._raw.execute(
            "SELECT id, kind FROM operations WHERE (resource_id = ? OR ? = '') AND (ended_at IS NULL OR NOT ?) ORDER BY id",
            (of, of, going),
        )
        return [(str(row[0]), str(row[1])) for row in found]

    def ends(self, table: str) -> Counter[str]:
        """How many operations, or moves, are in which state."""
        return Counter(dict(self._raw.execute(f"SELECT state, count(*) FROM {table} GROUP BY state").fetchall()))

    # the network of the data path (`ceph.Network`)

    def flight_s(self, node: str) -> float | None:
        place = self.nodes[node.removeprefix("client.")].place
        if CEPH in place.cuts:
            return None
        return self.rng.uniform(0.2, 4.0) if self.rng.random() < 0.05 else self.rng.expovariate(1 / 0.01)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.scheduler.after(seconds, act)

    def landed(self, client: str, image: str, lba: int, data: bytes) -> None:
        self.watch.landed(client, image, lba, number_of(data))

    def opened(self, process: MemoryProcess) -> None:
        flights = [pair for node in self.nodes.values() for pair in node.targets.on_their_way()]
        self.watch.opened(process, flights)

    def _park(self, *what: Any) -> None:
        self.watch.violated(f"parked: {what}")


class Idle:
    """A duty that does nothing: what is looked at is who leads."""

    name = "idle"
    hangs = False

    def start(self, tenure: Tenure) -> None:
        pass

    def stop(self) -> None:
        pass


class _Authorised:
    """Images, and an onlooker who asks at each change of one whether anybody wanted it."""

    def __init__(self, images: Images, watch: Watch) -> None:
        self._images, self._watch = images, watch

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._images, name)
        if name not in CHANGING:
            return method

        def changing(image: str, *args: Any, **kwargs: Any) -> Any:
            self._watch.authorised(name, image if name != "clone" else args[1])
            return method(image, *args, **kwargs)

        return changing


def _answered(handle: Callable[[], None], answer: list[Any]) -> None:
    try:
        handle()
    except Problem as problem:
        answer.append(problem)


def _cannot_start() -> Any:
    raise TargetFailed("the image cannot be opened: Ceph does not answer")


SETTINGS: Final = Settings(
    coordination=Coordination(backend="embedded"),
    images=ImagesSettings(backend="files"),
    iscsi_worker=WORKER,
    conductor=CONDUCTOR,
    api=Api(outbox_interval_s=3.0),
)
