"""PostgreSQL that ends, dies or runs full while operations are under way: a clear answer meanwhile, and nothing lost after it."""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import sanderling.images
from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import run, waited
from cli.lab.parts.postgresql import PostgreSQL
from sanderling.clock import SystemClock
from sanderling.model.disks import image_of
from tests.parts import usage
from tests.parts.small_disk import full, small_disk

DISKS = 24
LOST_AFTER = 8
ROOM_MAX = 400  # creations that find room in what the server has allocated already


@pytest.fixture(scope="module")
def _server(_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    folder = tmp_path_factory.mktemp("small-postgresql")
    with small_disk(folder):
        network = _cluster.network
        server = PostgreSQL(folder, address=network.parts_address, netns=network.parts, port=5433)
        try:
            server.start()
            _cluster.use_records(server.url)
            yield server
        finally:
            if not server.alive:
                server.start()
            _cluster.use_records(_cluster.sqlite_url)
            server.stop()


@pytest.fixture
def server(cluster: Cluster, _server: PostgreSQL) -> Iterator[PostgreSQL]:
    """Holds the cluster's records, on a small disk of its own; it runs again after each test."""
    usage.used("PostgreSQL", _server.version)
    yield _server
    if not _server.alive:
        _server.start()


class Asking:
    """Asks for disks as a careful caller does: what was not answered with 202 is asked again under the same Idempotency-Key."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self._cluster, self._prefix = cluster, prefix
        self.answers: list[httpx.Response] = []

    def disk(self, number: int) -> httpx.Response:
        name = f"{self._prefix}-{number}"
        body = {"name": name, "size_bytes": 1 << 20, "paths": 1, "started": number % 8 == 0, "allow_any": True}
        answer = self._cluster.http.post("/v1/disks", json=body, headers={"Idempotency-Key": name})
        self.answers.append(answer)
        return answer

    def until_accepted(self, number: int) -> httpx.Response:
        accepted: list[httpx.Response] = []

        def asked() -> bool:
            answer = self.disk(number)
            accepted.extend([answer] if answer.status_code == 202 else [])
            return bool(accepted)

        waited(asked, within_s=60, what=f"disk {number} is accepted", every_s=0.2)
        return accepted[0]

    def refused(self) -> list[httpx.Response]:
        return [answer for answer in self.answers if answer.status_code != 202]


class Following:
    """Reads the stream of events from now on, in one piece."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._started, self._pool = cluster, threading.Event(), ThreadPoolExecutor(1)
        self._found = self._pool.submit(self._follow)
        assert self._started.wait(30)

    def ended(self, *, until: str) -> list[str]:
        """The operations whose success it has told of when it tells of a subnet of that name, which is made now."""
        subnet = {"name": until, "cidr": "10.202.0.0/24", "interface": "eth1"}
        assert self._cluster.http.post("/v1/subnets", json=subnet).status_code == 201
        found = self._found.result(60)
        self._cluster.http.delete(f"/v1/subnets/{until}")
        self._pool.shutdown()
        return found

    def _follow(self) -> list[str]:
        ended: list[str] = []
        with self._cluster.http.stream("GET", "/v1/events", headers={"Accept": "text/event-stream"}, timeout=120) as stream:
            self._started.set()
            for line in stream.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if event.get("kind") == "operation.succeeded":
                    ended.append(event["operation_id"])
                if event.get("kind") == "subnet.created":
                    return ended
        raise AssertionError("the stream ended")


@pytest.fixture
def asking(cluster: Cluster, server: PostgreSQL, unique: str) -> Iterator[Asking]:
    yield Asking(cluster, unique)
    if not server.alive:
        server.start()
    cluster.wait_until_ready()
    made = [disk["name"] for disk in cluster.http.get("/v1/disks", params={"name": unique, "limit": 1000}).json()["disks"]]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(cluster.delete_disk, made))


def assert_each_is_there_once(cluster: Cluster, prefix: str, operations: list[str]) -> None:
    """Every operation succeeded, and of every disk there is one, and one image."""
    ended = [cluster.wait_operation(operation, within_s=90) for operation in operations]
    store = sanderling.images.connect(cluster.settings(), clock=SystemClock())
    with contextlib.closing(store):
        images = store.list()
    shown = cluster.http.get("/v1/disks", params={"name": prefix, "limit": 1000}).json()["disks"]
    assert {operation["resource_id"] for operation in ended} == {disk["id"] for disk in shown}
    assert len(shown) == len(set(operations))
    assert {disk["state"] for disk in shown} <= {"started", "stopped"}
    assert {images.count(image_of(disk["id"])) for disk in shown} == {1}


def of(answers: list[httpx.Response]) -> list[str]:
    return [answer.headers["Location"].rpartition("/")[2] for answer in answers]


def tracebacks(cluster: Cluster) -> dict[str, int]:
    """How many each process beside the parts has logged."""
    files: dict[str, Path] = {name: cluster[name].log_file for name in ("api", "conductor-1")}
    return {name: file.read_text(errors="replace").count("Traceback") for name, file in files.items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.rows("W-MC-4")
def test_a_database_that_ends_in_the_midst_of_operations_costs_time_and_nothing_else(
    cluster: Cluster, server: PostgreSQL, asking: Asking, unique: str, end: str
) -> None:
    served, before = cluster.create_disk(f"{unique}-served"), tracebacks(cluster)
    following = Following(cluster)

    def ask(number: int) -> None:
        if number == LOST_AFTER:
            getattr(server, end)()
        asking.disk(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(DISKS)))
    assert {answer.status_code for answer in asking.refused()} == {503}
    for answer in (*asking.refused(), cluster.http.get("/v1/disks")):
        problem = answer.json()
        assert (problem["type"], problem["dependency"]) == ("/problems/unavailable", "records"), problem
        assert answer.headers["Retry-After"]
        assert "\n" not in problem["detail"]
    assert httpx.get(f"{cluster.url}/readyz").status_code == 503
    said = run(["iscsi-ls", "-s", f"iscsi://{served['paths'][0]['address']}"], netns=cluster.network.initiator)
    assert served["iqn"] in said, "who uses a disk does not notice"
    server.start()
    with ThreadPoolExecutor(4) as pool:
        accepted = list(pool.map(asking.until_accepted, range(DISKS)))
    assert len(set(of(accepted))) == DISKS
    cluster.delete_disk(f"{unique}-served")
    assert_each_is_there_once(cluster, unique, of(accepted))
    assert tracebacks(cluster) == before
    seen = Counter(following.ended(until=f"{unique}-last"))
    assert {seen[operation] for operation in of(accepted)} == {1}, "a reader of events missed an operation's end, or saw it twice"


@pytest.mark.timeout(300)
def test_a_full_disk_under_the_database_is_said_and_what_was_accepted_goes_on_when_there_is_room(
    cluster: Cluster, server: PostgreSQL, asking: Asking, unique: str
) -> None:
    before = tracebacks(cluster)
    accepted: list[httpx.Response] = []
    with full(server.folder):
        for number in range(ROOM_MAX):
            answer = asking.disk(number)
            if answer.status_code != 202:
                break
            accepted.append(answer)
        (refused,) = asking.refused()
        problem = refused.json()
        assert (refused.status_code, problem["type"], problem["dependency"]) == (507, "/problems/out-of-space", "records")
        assert "make room" in problem["detail"]
        assert cluster.http.get("/v1/disks").status_code == 200, "what is there can be read"
    accepted.append(asking.until_accepted(len(accepted)))
    assert_each_is_there_once(cluster, unique, of(accepted))
    assert tracebacks(cluster) == before
