"""One host with everything real on loopback, for figures of whole processes: RabbitMQ, Consul, Ceph, and Sanderling's own."""

import contextlib
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import update

from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import waited
from cli.lab.parts.rabbitmq import RabbitMQ
from cli.lab.processes import Process
from sanderling.clock import SystemClock
from sanderling.model.subnets import Subnet
from sanderling.records import subnets, tokens
from sanderling.records.database import Records
from sanderling.records.tables import Base, SubnetRow
from sanderling.records.tokens import Role
from sanderling.settings import Api, Bus, Conductor, Coordination, General, Images, Settings, Worker
from sanderling.settings import Records as RecordsOptions

CLOCK = SystemClock()
WITHIN_S = 60.0
NODE = "bench"


class Host:
    """Its parts run; its processes are started and ended by whoever measures them."""

    def __init__(self, folder: Path, rabbitmq: RabbitMQ, consul: ConsulAgent, ceph: CephCluster) -> None:
        self.folder, self.rabbitmq, self.consul, self.ceph = folder, rabbitmq, consul, ceph
        (folder / "run").mkdir()
        self.settings = Settings(
            sanderling=General(node=NODE, runtime_dir=str(folder / "run"), log_level="WARNING"),
            records=RecordsOptions(url=f"sqlite:///{folder}/records.sqlite"),
            coordination=Coordination(url=consul.url),
            images=Images(ceph_conf=ceph.conf, ceph_user=ceph.user, pool=ceph.pool),
            bus=Bus(url=rabbitmq.url),
            api=Api(port=free_port(), rate_limits="*: 10000000/minute", open_operations_max=10_000_000),
            conductor=Conductor(balance="off"),
            iscsi_worker=Worker(addresses="loopback"),
        )
        self.records = Records(self.settings.records, clock=CLOCK)
        self.records.migrate()
        with self.records.begin() as session:
            _, self.token = tokens.create(session, name="bench", role=Role.ADMIN, now=CLOCK.wall(), actor="bench")
            pool = {"pool_first": "127.9.0.1", "pool_last": "127.9.255.254"}
            subnets.insert(
                session, Subnet(name="lo", cidr="127.9.0.0/16", interface="lo", **pool), now=CLOCK.wall(), actor="bench"
            )

    def forget(self) -> None:
        """Every operation and disk, so that no conductor has anything left to do of what was only to be accepted."""
        with self.records.begin() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name not in {"tokens", "subnets"}:
                    session.execute(table.delete())
            session.execute(update(SubnetRow).values(free_from=None))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.api.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def process(self, program: str) -> Process:
        return Process(program, program, self.settings, self.folder, "")

    def answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        return False

    @contextlib.contextmanager
    def running(self, *programs: str) -> Iterator[list[Process]]:
        """These processes, the API ready if it is among them."""
        started = [self.process(program) for program in programs]
        try:
            for process in started:
                process.start()
            if "sanderling-api" in programs:
                waited(self.answers, within_s=WITHIN_S, what="the API answers", every_s=0.02)
            yield started
        finally:
            for process in started:
                process.terminate()


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Ended with all it started."""
    with tempfile.TemporaryDirectory(prefix="bench-host-", dir="/var/tmp") as name, contextlib.ExitStack() as started:
        folder = Path(name)
        parts: list[Any] = [RabbitMQ(folder / "rabbitmq"), ConsulAgent(folder / "consul", node_name=NODE)]
        (folder / "ceph").mkdir()
        parts.append(CephCluster(folder / "ceph"))
        for part in parts:
            started.callback(part.stop)
            part.start()
        made = Host(folder, *parts)
        started.callback(made.records.close)
        yield made


def named(prefix: str) -> str:
    """A disk's name that was not used before."""
    return f"{prefix}-{secrets.token_hex(6)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
