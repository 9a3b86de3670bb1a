"""The API over SQLite and peers in memory, for tests: what it would cast is kept, and each part can be taken away."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.app import create_app
from cli import access
from cli.lab.parts.daemons import waited
from rpc.bus import Bus
from rpc.messages import Message, Wake
from rpc.news import News
from sanderling import secrets as keys
from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.coordination.base import Entry, Listing
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import Unavailable
from sanderling.images.base import Capacity, Images, Snapshot
from sanderling.model.subnets import Subnet
from sanderling.records import subnets, tokens
from sanderling.records.database import Records
from sanderling.records.tables import Base
from sanderling.records.tokens import Role

GIB = 1 << 30


@dataclass
class KeptBus:
    """Keeps what is cast, or raises the `fault` that it is given."""

    fault: Exception | None = None
    cast_ids: list[str] = field(default_factory=list)
    tried: threading.Event = field(default_factory=threading.Event)

    def cast(self, topic: str, method: str, message: Message, *, server: str | None = None) -> None:
        self.tried.set()
        if self.fault is not None:
            raise self.fault
        assert (topic, method, server) == ("conductor", "operation.wake", None)
        assert isinstance(message, Wake)
        self.cast_ids.append(message.operation_id)


class KeptNews:
    """Counts what is told and remembers who listens."""

    def __init__(self) -> None:
        self.told = 0
        self.listeners: list[Callable[[], None]] = []

    def tell(self) -> None:
        self.told += 1

    def listen(self, on_news: Callable[[], None]) -> "KeptNews":
        self.listeners.append(on_news)
        return self

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Pool:
    """Images as far as the API asks: how much the pool holds, and the snapshots that a test has put there."""

    def __init__(self) -> None:
        self.capacity_bytes = 100 * GIB
        self.down = False
        self.kept: dict[str, tuple[Snapshot, ...]] = {}
        self.openers: dict[str, tuple[str, ...]] = {}
        self.looked: Callable[[], None] = lambda: None  # what happens right after a look at the snapshots

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        self.ping()
        kept = self.kept.get(name, ())
        self.looked()
        return kept

    def used_bytes(self, name: str) -> int:
        self.ping()
        return 4096

    def clients(self, name: str) -> tuple[str, ...]:
        self.ping()
        return self.openers.get(name, ())

    def capacity(self) -> Capacity:
        self.ping()
        return Capacity(self.capacity_bytes, self.capacity_bytes)

    def ping(self) -> None:
        if self.down:
            raise Unavailable("no monitor answers", dependency="images")


class Consul(EmbeddedCoordination):
    """Embedded coordination that can be away (`down`), or silent until `answers` is set."""

    down = False

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self.answers = threading.Event()
        self.answers.set()

    def get(self, key: str) -> Entry | None:
        self._reach()
        return super().get(key)

    def list(self, prefix: str) -> Listing:
        self._reach()
        return super().list(prefix)

    def _reach(self) -> None:
        if self.down:
            raise Unavailable("no Consul server answers", dependency="coordination")
        self.answers.wait(30)


@dataclass
class Api:
    """A running app, the parts behind it, and a client that speaks as an administrator."""

    app: FastAPI
    client: TestClient
    records: Records
    coordination: Consul
    images: Pool
    bus: KeptBus
    news: KeptNews
    clock: SystemClock
    secrets: dict[Role, str]

    def disk(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Ask for a disk; the operation."""
        answer = self.client.post("/v1/disks", json={"name": name, "size_bytes": GIB, **wanted})
        assert answer.status_code == 202, answer.text
        operation: dict[str, Any] = answer.json()
        return operation

    def tables(self) -> dict[str, list[Any]]:
        """All that requests store; not when a token was last used, nor when a wake-up was cast."""
        stored = {}
        with self.records.read() as session:
            for table in Base.metadata.sorted_tables:
                columns = [column for column in table.columns if column.name not in {"last_used_at", "cast_at"}]
                stored[table.name] = [tuple(row) for row in session.execute(select(*columns))]
        return stored


@contextlib.contextmanager
def running(
    folder: Path, *, key_file: Path | None = None, conductor: settings.Conductor | None = None, **options: Any
) -> Iterator[Api]:
    """The API with two subnets, "left" (10.1.0.0/28) and "right" (10.2.0.0/28), and a token of each role."""
    clock = SystemClock()
    if key_file is None:
        keys.add(key_file := folder / "keys")
    chosen = settings.Settings(
        secrets=settings.Secrets(key_file=str(key_file)),
        records=settings.Records(url=f"sqlite:///{folder}/records.sqlite"),
        conductor=conductor or settings.Conductor(),
        api=replace(
            settings.Api(outbox_interval_s=0.05, outbox_retry_most_s=0.1, events_interval_s=0.05, capacity_age_s=0.0), **options
        ),
    )
    records = Records(chosen.records, clock=clock)
    records.migrate()
    secrets = {}
    with records.begin() as session:
        for role in Role:
            _, secrets[role] = tokens.create(session, name=f"a-{role}", role=role, now=clock.wall(), actor="test")
        for name, number in (("left", 1), ("right", 2)):
            network = f"10.{number}.0"
            subnet = Subnet(
                name=name, cidr=f"{network}.0/28", interface="eth1", pool_first=f"{network}.1", pool_last=f"{network}.14"
            )
            subnets.insert(session, subnet, now=clock.wall(), actor="test")
    coordination, images, bus, news = Consul(), Pool(), KeptBus(), KeptNews()
    app = create_app(
        chosen,
        records=records,
        coordination=coordination,
        images=cast("Images", images),
        bus=cast("Bus", bus),
        news=cast("News", news),
        clock=clock,
    )
    headers = {"Authorization": f"Bearer {secrets[Role.ADMIN]}"}
    try:
        with TestClient(app, raise_server_exceptions=False, headers=headers) as client:
            yield Api(app, client, records, coordination, images, bus, news, clock, secrets)
    finally:
        coordination.answers.set()
        records.close()


@contextlib.contextmanager
def listening(api: Api, file: Path, *, role: Role = Role.ADMIN) -> Iterator[Path]:
    """The app on a loopback port of its own, and the client file with which commands find it."""
    server = uvicorn.Server(uvicorn.Config(api.app, host="127.0.0.1", port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, name="listening", daemon=True)
    thread.start()
    try:
        waited(lambda: server.started, within_s=30, what="the app listens")
        port = server.servers[0].sockets[0].getsockname()[1]
        access.write(file, access.Access(f"http://127.0.0.1:{port}", api.secrets[role]))
        with structlog.testing.capture_logs():  # a process of its own would not log to where the command prints
            yield file
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
