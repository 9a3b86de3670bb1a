"""The API as processes on real RabbitMQ, Consul and Ceph: parts that go away, processes that die, streams that go on."""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import rpc.oslo
from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import waited
from cli.lab.parts.rabbitmq import RabbitMQ
from cli.lab.processes import Process, write_ini
from rpc import topics
from rpc.bus import Endpoint
from rpc.messages import Ping, Wake
from sanderling.clock import SystemClock
from sanderling.model.subnets import Subnet
from sanderling.records import operations, subnets, tokens
from sanderling.records.database import Records
from sanderling.records.tokens import Role
from sanderling.settings import Api, Bus, Coordination, Images, Settings
from sanderling.settings import Records as RecordsOptions
from tests.parts import usage

CLOCK = SystemClock()
GIB = 1 << 30
PIDFD_GETFD = 438  # the system call's number, the same on every architecture


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Site:
    """Records shared by the API processes of a test, and settings that name the real parts."""

    folder: Path
    settings: Settings
    records: Records
    token: str
    processes: list[Process]

    def api(self, name: str = "api", **changes: Any) -> httpx.Client:
        """Start an API process and wait until it answers; its client."""
        port = free_port()
        settings = replace(self.settings, api=replace(self.settings.api, port=port, **changes))
        process = Process(name, "sanderling-api", settings, self.folder, "")
        self.processes.append(process)
        process.start()
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {self.token}"}, timeout=30.0
        )

        def answers() -> bool:
            assert process.alive, process.tail()
            try:
                return client.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        waited(answers, within_s=120, what="the API answers")
        return client

    def waiting(self) -> list[str]:
        with self.records.read() as session:
            return [outgoing.id for outgoing in operations.outbox(session, limit=1000)]


Make = Callable[..., Site]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    sites: list[Site] = []

    def site(*, bus: str, consul: str, ceph: Any) -> Site:
        settings = Settings(
            records=RecordsOptions(url=f"sqlite:///{tmp_path}/records.sqlite"),
            coordination=Coordination(url=consul, prefix=f"{secrets.token_hex(4)}/"),
            images=Images(ceph_conf=ceph.conf, ceph_user="admin", pool=ceph.pool),
            bus=Bus(url=bus),
            api=Api(dependency_timeout_s=1.0, outbox_retry_most_s=1.0, capacity_age_s=0.0),
        )
        records = Records(settings.records, clock=CLOCK)
        records.migrate()
        with records.begin() as session:
            _, token = tokens.create(session, name="root", role=Role.ADMIN, now=CLOCK.wall(), actor="test")
            subnet = Subnet(name="s", cidr="10.1.0.0/24", interface="eth1", pool_first="10.1.0.1", pool_last="10.1.0.254")
            subnets.insert(session, subnet, now=CLOCK.wall(), actor="test")
        sites.append(Site(tmp_path, settings, records, token, []))
        return sites[-1]

    yield site
    for made in sites:
        for process in made.processes:
            process.kill()
        made.records.close()


def create(client: httpx.Client, name: str, **wanted: Any) -> httpx.Response:
    return client.post("/v1/disks", json={"name": name, "size_bytes": GIB, **wanted})


def test_a_process_is_ready_on_the_real_parts_and_ends_cleanly_when_asked(
    make: Make, rabbitmq: Any, consul: Any, ceph: Any
) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    client = site.api()
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True), ready.text
    assert create(client, "db").status_code == 202
    assert client.get("/v1/gateways").json()["gateways"] == []
    assert [p["status"] for p in client.get("/v1/paths").json()["paths"]] == ["stopped"]
    site.processes[0].terminate()
    assert site.processes[0].log(event="stopping")
    assert "Traceback" not in site.processes[0].tail()


def test_no_part_of_an_answer_waits_until_the_peer_has_acknowledged_another(
    make: Make, rabbitmq: Any, consul: Any, ceph: Any
) -> None:
    """With Nagle's algorithm the second of an answer's two writes waits 40 ms for Linux's delayed ACK (tcp(7), TCP_NODELAY)."""
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    client = site.api()
    stream = client.get("/healthz").extensions["network_stream"]
    connection = of_process(site.processes[0].pid, peer=stream.get_extra_info("client_addr"))
    with connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def of_process(pid: int, *, peer: tuple[str, int]) -> socket.socket:
    """Our own handle on another process's end of a connection (pidfd_getfd(2))."""
    libc, pidfd = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError, ValueError):  # it is closed by now, or has no peer
                if os.readlink(entry).startswith("socket:"):
                    with socket.socket(fileno=libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)) as there:
                        if there.getpeername() == peer:
                            return there.dup()
    finally:
        os.close(pidfd)
    raise AssertionError(f"process {pid} has no connection with {peer}")


@pytest.mark.rows("MC-7", "MC-8")
def test_wake_ups_of_what_was_accepted_while_the_broker_was_dead_arrive_once_it_lives(
    make: Make, tmp_path: Path, consul: Any, ceph: Any
) -> None:
    broker = RabbitMQ(tmp_path / "own-rabbitmq")
    try:
        broker.start()
        usage.used("RabbitMQ", broker.version)
        site = make(bus=broker.url, consul=consul.url, ceph=ceph)
        client = site.api()
        woken: set[str] = set()
        bus = rpc.oslo.connect(site.settings)
        wake = (Wake, lambda message: woken.add(message.operation_id))
        serving = bus.serve(topics.CONDUCTOR, "test", [Endpoint("operation", {"wake": wake})])
        try:
            bus.call(topics.CONDUCTOR, "bus.ping", Ping(), server="test", timeout_s=60)  # there is a queue from now on
            first = create(client, "before").json()["id"]
            waited(lambda: first in woken and not site.waiting(), within_s=90, what="the first wake-up arrives, and is noted")
            broker.settle()
            broker.kill()
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda n: create(client, f"d{n}"), range(40)))
            assert [answer.status_code for answer in answers] == [202] * 40
            accepted = {answer.json()["id"] for answer in answers}
            assert set(site.waiting()) == accepted
            broker.start()
            waited(lambda: woken >= accepted, within_s=200, what="every wake-up arrives")
            waited(lambda: not site.waiting(), within_s=90, what="the outbox is empty")
        finally:
            serving.stop()
            bus.close()
    finally:
        broker.stop()


@pytest.mark.rows("W-PA-5")
def test_a_wake_up_that_a_killed_process_left_is_cast_by_another(
    make: Make, tmp_path: Path, rabbitmq: Any, consul: Any, ceph: Any
) -> None:
    site = make(bus=f"rabbit://guest:guest@127.0.0.1:{free_port()}/", consul=consul.url, ceph=ceph)
    client = site.api("cut-off")
    accepted = create(client, "db").json()["id"]
    site.processes[0].kill()
    assert site.waiting() == [accepted]
    replace_site = Site(tmp_path, replace(site.settings, bus=Bus(url=rabbitmq.url)), site.records, site.token, site.processes)
    replace_site.api("another")
    waited(lambda: not site.waiting(), within_s=90, what="another process casts it")


def test_requests_that_need_a_part_that_is_silent_say_so_and_the_others_are_answered(
    make: Make, tmp_path: Path, rabbitmq: Any
) -> None:
    consul, ceph = ConsulAgent(tmp_path / "own-consul"), CephCluster(_folder(tmp_path / "own-ceph"))
    try:
        consul.start()
        ceph.start()
        usage.used("Consul", consul.version)
        usage.used("Ceph", ceph.version)
        site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
        client = site.api()
        assert create(client, "db").status_code == 202
        consul.pause()
        for path in ("/v1/gateways", "/v1/leaders", "/v1/paths?gateway=n"):
            answer = client.get(path)
            assert (answer.status_code, answer.json().get("dependency")) == (503, "coordination"), answer.text
        shown = client.get("/v1/disks/db")
        assert (shown.status_code, shown.json()["paths"][0]["status"]) == (200, "unknown")
        assert create(client, "while-consul-is-silent").status_code == 202
        consul.resume()
        waited(lambda: client.get("/v1/gateways").status_code == 200, within_s=60, what="Consul is asked again")
        ceph.pause()
        answer = create(client, "d2")
        assert (answer.status_code, answer.json().get("dependency")) == (503, "images"), answer.text
        assert client.get("/v1/disks/d2").status_code == 404
        parts = client.get("/readyz").json()["parts"]
        assert {name: part["ready"] for name, part in parts.items()} == {"records": True, "coordination": True, "images": False}
        ceph.resume()
        waited(lambda: create(client, "d2").status_code == 202, within_s=60, what="Ceph is asked again")
    finally:
        consul.stop()
        ceph.stop()


def test_two_processes_on_one_database_never_give_one_address_twice(make: Make, rabbitmq: Any, consul: Any, ceph: Any) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    clients = [site.api("one"), site.api("two")]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: create(clients[n % 2], f"d{n}", paths=2), range(60)))
    assert [answer.status_code for answer in answers] == [202] * 60
    addresses = [path["address"] for path in clients[0].get("/v1/paths?limit=1000").json()["paths"]]
    assert len(addresses) == len(set(addresses)) == 120


def test_one_key_sent_to_two_processes_at_once_is_one_operation(make: Make, rabbitmq: Any, consul: Any, ceph: Any) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    clients = [site.api("one"), site.api("two")]

    def ask(number: int) -> tuple[int, str]:
        key = {"Idempotency-Key": "k"}
        answer = clients[number % 2].post("/v1/disks", json={"name": "db", "size_bytes": GIB}, headers=key)
        return answer.status_code, answer.json().get("id", answer.text)

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(ask, range(16)))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 202


def read(client: httpx.Client, count: int, **headers: str) -> list[tuple[int, str]]:
    """The next events of a stream: ids and kinds."""
    found: list[tuple[int, str]] = []
    with client.stream("GET", "/v1/events", headers={"Accept": "text/event-stream", **headers}) as stream:
        assert stream.status_code == 200
        for line in stream.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                found.append((event["id"], event["kind"]))
            if len(found) == count:
                return found
    raise AssertionError(f"the stream ended after {found}")


def test_a_stream_shows_what_another_process_does_and_goes_on_where_its_reader_left_off(
    make: Make, rabbitmq: Any, consul: Any, ceph: Any
) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    one, two = site.api("one"), site.api("two", events_interval_s=600.0)  # so that only news can tell it
    last = one.get("/v1/events?after=0&limit=1000").json()["last"]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, two, 2, **{"Last-Event-ID": str(last)})
        create(one, "db")
        found = reading.result(timeout=60)
    assert [kind for _, kind in found] == ["disk.creating", "operation.pending"]
    create(one, "d2")
    again = read(two, 3, **{"Last-Event-ID": str(found[0][0])})
    assert again[0] == found[1]
    assert [kind for _, kind in again] == ["operation.pending", "disk.creating", "operation.pending"]
    history = one.get(f"/v1/events?after={last}").json()["events"]
    assert [event["id"] for event in history] == [found[0][0], *(identifier for identifier, _ in again)]


def test_a_head_without_end_is_refused_before_it_is_kept(make: Make, rabbitmq: Any, consul: Any, ceph: Any) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    client = site.api()
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
        connection.sendall(b"GET /v1/disks HTTP/1.1\r\nHost: x\r\nX-Long: ")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                connection.sendall(b"x" * (16 << 10))
            while part := connection.recv(4096):  # to the end: it is not listened to any more
                answer += part
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert client.get("/healthz").status_code == 200


def test_an_open_stream_does_not_keep_a_process_from_ending(make: Make, rabbitmq: Any, consul: Any, ceph: Any) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    client = site.api()
    with client.stream("GET", "/v1/events?after=0", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert next(lines)
        site.processes[0].daemon.signal(signal.SIGTERM)  # type: ignore[union-attr]
        for _ in lines:
            pass
    site.processes[0].daemon.wait(within_s=20)  # type: ignore[union-attr]
    assert "Traceback" not in site.processes[0].tail()


@pytest.mark.parametrize("fault", ["port in use", "no certificate", "no policy file", "no records"])
def test_a_process_that_cannot_serve_says_why_in_one_line(
    make: Make, tmp_path: Path, rabbitmq: Any, consul: Any, ceph: Any, fault: str
) -> None:
    site = make(bus=rabbitmq.url, consul=consul.url, ceph=ceph)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        api, records = site.settings.api, site.settings.records
        settings, said = {
            "port in use": (replace(site.settings, api=replace(api, port=taken.getsockname()[1])), "cannot listen"),
            "no certificate": (
                replace(site.settings, api=replace(api, port=free_port(), tls_cert="/none", tls_key="/none")),
                "tls_cert",
            ),
            "no policy file": (replace(site.settings, api=replace(api, port=0, policy_file="/none")), "policy_file"),
            "no records": (replace(site.settings, records=replace(records, url="sqlite:////none/r.sqlite")), "records"),
        }[fault]
        write_ini(settings, tmp_path / "refused.ini")
        done = subprocess.run(
            [str(Path(sys.executable).with_name("sanderling-api"))],
            env={"SANDERLING_CONFIG": str(tmp_path / "refused.ini")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sanderling-api: ")
    assert said in lines[0]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
