"""The main job as it runs at a site: API, conductor and a worker per node as processes, on real RabbitMQ, Consul and Ceph.

The parts, the API and the conductor stand in one network namespace; each node has one of its own with its Consul agent and its
worker. Whoever breaks something mends it with `heal`.
"""

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import httpx

from cli.lab.network import Network
from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.consul import ConsulAgent, ConsulPorts
from cli.lab.parts.daemons import run, start_time, waited
from cli.lab.parts.postgresql import PostgreSQL
from cli.lab.parts.rabbitmq import RabbitMQ
from cli.lab.processes import Process
from sanderling import secrets as keys
from sanderling.clock import SystemClock
from sanderling.model.operations import OPERATIONS
from sanderling.records import tokens
from sanderling.records.database import Records
from sanderling.records.tokens import Role
from sanderling.settings import Api, Bus, Conductor, Coordination, General, Images, Secrets, Settings
from sanderling.settings import Records as RecordsOptions

SUBNET = "front"
READY_WITHIN_S = 120.0
CLOCK = SystemClock()


class Part(Protocol):
    """A real part: what all of them can do."""

    @property
    def alive(self) -> bool: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def resume(self) -> None: ...


class Cluster:
    """One worker per node of the network, called as the node; `api`, `conductor-1` and more by `add_conductor`.

    The records are a file of SQLite, or what `use_records` says; `postgresql` does not run until somebody starts it.
    `changes` replaces single settings of every process: `{"iscsi_worker": {"grace_s": 0.5}}`. With several `consul_servers` each
    has an address of its own beside the parts, and `consul` is the agent through which the API and the conductors reach them.
    """

    def __init__(
        self,
        folder: Path,
        network: Network,
        *,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        objectstore: str = "memstore",
        consul_servers: int = 1,
        cephx: bool = False,
    ) -> None:
        self.folder, self.network, self._changes = folder, network, changes or {}
        self.records_folder = _folder(folder / "records")
        self.key_file = folder / "secrets.key"
        keys.add(self.key_file)
        self.sqlite_url = self._records_url = f"sqlite:///{self.records_folder}/records.sqlite"
        inside: dict[str, Any] = {"address": network.parts_address, "netns": network.parts}
        self.rabbitmq = RabbitMQ(folder / "rabbitmq", **inside)
        self.postgresql = PostgreSQL(folder / "postgresql", port=5432, **inside)
        self.servers = servers(folder, network, consul_servers) if consul_servers > 1 else []
        join = [server.lan for server in self.servers]
        self.consul = ConsulAgent(folder / "consul", node_name="parts", server=not join, join=join, **inside)
        self.ceph = CephCluster(_folder(folder / "ceph"), objectstore=objectstore, cephx=cephx, **inside)
        self.agents = {node: self._agent(node) for node in network.nodes}
        self.processes: dict[str, Process] = {}
        self._add("api", "sanderling-api", self.settings())
        self.add_conductor("conductor-1")
        for node in network.nodes:
            self._add(node, "sanderling-iscsi-worker", self.settings(node=node))
        self._http: httpx.Client | None = None

    def settings(self, *, node: str | None = None, name: str | None = None) -> Settings:
        """What a process of that node reads; without a node, of one beside the parts."""
        url = self.agents[node].url if node else self.consul.url
        runtime = _folder(self.folder / f"run-{name or node or 'api'}")
        settings = Settings(
            sanderling=General(node=node or name or "parts", runtime_dir=str(runtime)),
            records=RecordsOptions(url=self._records_url),
            secrets=Secrets(key_file=str(self.key_file)),
            coordination=Coordination(url=url),
            images=Images(ceph_conf=self.ceph.client_conf, ceph_user=self.ceph.client_user, pool=self.ceph.pool),
            bus=Bus(url=self.rabbitmq.url),
            api=Api(host=self.network.parts_address, port=8080),
            conductor=Conductor(balance="off"),  # paths move when a test or a scenario says so
        )
        changed = {group: replace(getattr(settings, group), **values) for group, values in self._changes.items()}
        return replace(settings, **changed)

    def add_conductor(self, name: str) -> Process:
        """One more conductor, not started yet."""
        return self._add(name, "sanderling-conductor", self.settings(name=name))

    def add_leader(self, name: str) -> Process:
        """A candidate for leadership, not started yet."""
        return self._add(name, "sanderling-leader", self.settings(name=name))

    def discard(self, name: str) -> None:
        """End a process that a test added, for good."""
        self.processes.pop(name).terminate()

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def log(self, name: str, *, event: str | None = None) -> list[dict[str, Any]]:
        """The log of a process as dictionaries; `cluster.log("worker-1", event="serving")`."""
        return self.processes[name].log(event=event)

    @property
    def workers(self) -> list[Process]:
        return [self.processes[node] for node in self.network.nodes]

    @property
    def http(self) -> httpx.Client:
        """The API with an administrator's token."""
        assert self._http is not None, "the cluster was not started"
        return self._http

    @property
    def url(self) -> str:
        return f"http://{self.network.parts_address}:8080"

    def start(self) -> None:
        """Start everything and return once the API is ready, every worker is live and the subnet `front` exists."""
        try:
            for server in self.servers:
                server.start(wait=False)  # none is usable before all are there
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda part: part.start(), self._parts))
                list(pool.map(lambda agent: agent.start(), self.agents.values()))
            for process in self.processes.values():
                process.start()
            self._enter()
        except BaseException:
            self.stop()
            raise

    def use_records(self, url: str) -> None:
        """Go on with other records, new or of before: API and conductors start again on them.

        Every disk of those before is deleted first: the next would know nothing of it, and give its addresses to others.
        """
        if url == self._records_url:
            return
        for disk in self.http.get("/v1/disks", params={"limit": 1000}).json()["disks"]:
            self.delete_disk(disk["name"])
        self._records_url = url
        for process in self.processes.values():
            if process not in self.workers:
                process.terminate()
                process.settings = replace(process.settings, records=replace(process.settings.records, url=url))
                process.start()
        self._enter()

    def stop(self) -> None:
        """End everything that was started and whatever it left."""
        if self._http is not None:
            self._http.close()
        for node in self.network.nodes:
            self.thaw(node)
        daemons = [process.daemon for process in self.processes.values() if process.daemon is not None]
        for number in (signal.SIGCONT, signal.SIGTERM):  # all at once: one after another would take half a minute
            for daemon in daemons:
                daemon.signal(number)
        for daemon in daemons:
            daemon.terminate()
        for node in self.network.nodes:
            self.kill_node(node)
        for part in (*self.agents.values(), *self._parts, *self.servers, self.postgresql):
            part.kill()

    def heal(self) -> None:
        """Mend the network, resume what is paused, start what is dead, and wait until all are ready."""
        for node in self.network.nodes:
            self.network.mend(node)
            self.thaw(node)
        for part in (*self._parts, *self.servers, *self.agents.values(), self.postgresql):
            if part.alive:
                part.resume()
        for server in self.servers:
            if not server.alive:
                server.start(wait=False)
        restartable: tuple[Part, ...] = (self.rabbitmq, self.consul, *self.agents.values())
        if self._records_url.startswith(self.postgresql.server_url):
            restartable += (self.postgresql,)
        for part in restartable:
            if not part.alive:
                part.start()
        for process in self.processes.values():
            if process.paused:
                process.resume()
            if process.daemon is not None and not process.alive:
                process.start()
        self.wait_until_ready()

    def wait_until_ready(self, *, within_s: float = READY_WITHIN_S) -> None:
        """Until the API reaches all it needs and every worker that should run is live; the failing part's words if not."""
        self._wait(lambda: self.answers("/readyz"), within_s=within_s, what="the API is ready")
        self._wait(self._all_live, within_s=within_s, what="every worker is live")

    def live(self) -> set[str]:
        """The gateways that the API calls live."""
        answer = self.http.get("/v1/gateways")
        return {gateway["name"] for gateway in answer.json()["gateways"]} if answer.status_code == 200 else set()

    def freeze(self, node: str) -> None:
        """Stop every process of the node at once, its Consul agent included, as a machine that hangs."""
        for pid in self._pids(node):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        for pid in self._pids(node):
            os.kill(pid, signal.SIGCONT)

    def wait_operation(
        self, operation: str | httpx.Response, *, within_s: float = 150.0, state: str | None = "succeeded"
    ) -> dict[str, Any]:
        """The operation, given by id or by the 202 that accepted it, once it has ended in that state; in any, if that is None."""
        if isinstance(operation, httpx.Response):
            assert operation.status_code == 202, operation.text
            operation = operation.headers["Location"].rpartition("/")[2]
        seen: dict[str, Any] = {}

        def ended() -> bool:
            with contextlib.suppress(httpx.TransportError):
                answer = self.http.get(f"/v1/operations/{operation}")
                assert answer.status_code == 200, answer.text
                seen.update(answer.json())
            return seen.get("state") in {str(rest) for rest in OPERATIONS.rest}

        self._wait(ended, within_s=within_s, what=f"operation {operation} ends")
        assert state in {None, seen["state"]}, f"{seen}\n{self._tails()}"
        return seen

    def create_disk(self, name: str, *, within_s: float = 150.0, **body: Any) -> dict[str, Any]:
        """A disk that any initiator may use, created and (unless told otherwise) started; what the API shows of it."""
        wanted: dict[str, Any] = {"size_bytes": 64 << 20, "paths": 2, "allow_any": True} | body
        if wanted.get("initiators") is not None:
            del wanted["allow_any"]
        self.wait_operation(self.http.post("/v1/disks", json={"name": name, **wanted}), within_s=within_s)
        shown: dict[str, Any] = self.http.get(f"/v1/disks/{name}").json()
        return shown

    def delete_disk(self, name: str, *, within_s: float = 150.0) -> None:
        """Gone, whatever its state."""
        asked = self.http.delete(f"/v1/disks/{name}", params={"force": "true", "confirm": name})
        self.wait_operation(asked, within_s=within_s)

    def _add(self, name: str, program: str, settings: Settings) -> Process:
        node = settings.sanderling.node
        netns = self.network.netns(node) if node in self.network.nodes else self.network.parts
        self.processes[name] = Process(name, program, settings, self.folder, netns)
        return self.processes[name]

    def _agent(self, node: str) -> ConsulAgent:
        return ConsulAgent(
            self.folder / f"consul-{node}",
            address=self.network.address(node, "back"),
            netns=self.network.netns(node),
            node_name=node,
            server=False,
            join=[server.lan for server in self.servers or [self.consul]],
        )

    def _enter(self) -> None:
        """Wait for the API and become its administrator."""
        self._wait(self.answers, within_s=READY_WITHIN_S, what="the API answers")
        if self._http is not None:
            self._http.close()
        self._http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self._token()}"}, timeout=30.0)
        self.wait_until_ready()
        self._make_subnet()

    def _token(self) -> str:
        records = Records(self.settings().records, clock=CLOCK)
        try:
            with records.begin() as session:
                name = f"harness-{secrets.token_hex(4)}"
                return tokens.create(session, name=name, role=Role.ADMIN, now=CLOCK.wall(), actor="harness")[1]
        finally:
            records.close()

    def _make_subnet(self) -> None:
        first, last = self.network.front_pool
        body = {"name": SUBNET, "cidr": self.network.front_cidr, "interface": "eth1", "pool_first": first, "pool_last": last}
        if self.http.get(f"/v1/subnets/{SUBNET}").status_code == 404:
            answer = self.http.post("/v1/subnets", json=body)
            assert answer.status_code == 201, answer.text

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self.rabbitmq, self.consul, self.ceph

    def _all_live(self) -> bool:
        for worker in self.workers:
            assert worker.alive or worker.daemon is None, f"{worker.name} ended:\n{worker.tail()}"
        return self.live() >= {worker.name for worker in self.workers}

    def answers(self, path: str = "/healthz") -> bool:
        """Whether the API answers there."""
        assert self["api"].alive, f"the API ended:\n{self['api'].tail()}"
        try:
            return httpx.get(f"{self.url}{path}", timeout=10.0).status_code == 200
        except httpx.TransportError:
            return False

    def _pids(self, node: str) -> list[int]:
        found = map(int, run(["ip", "netns", "pids", self.network.netns(node)]).split())
        return [pid for pid in found if start_time(pid) is not None]

    def kill_node(self, node: str) -> None:
        """Every process of the node dies at once, its target processes and its Consul agent included."""
        for pid in self._pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _wait(self, until: Callable[[], bool], *, within_s: float, what: str) -> None:
        try:
            waited(until, within_s=within_s, what=what, every_s=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._tails()}") from error

    def _tails(self) -> str:
        return "\n".join(f"--- {name}\n{process.tail()}" for name, process in self.processes.items())


def servers(folder: Path, network: Network, count: int) -> list[ConsulAgent]:
    """Consul servers that elect a leader among themselves, each on an address of its own."""
    addresses = network.extra_parts_addresses[:count]
    lans = [f"{address}:{ConsulPorts().serf_lan}" for address in addresses]
    return [
        ConsulAgent(
            folder / f"consul-server-{number}",
            address=address,
            netns=network.parts,
            node_name=f"server-{number}",
            join=lans,
            bootstrap_expect=count,
        )
        for number, address in enumerate(addresses, start=1)
    ]


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
