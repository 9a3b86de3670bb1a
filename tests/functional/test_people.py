"""Several people at once, who ask for all there is to ask for, also for what cannot be: everything ends, and all parts agree.

A run lets them ask for 15 s; SANDERLING_FULL=1 for five minutes on each database, and kills and pauses processes meanwhile.
"""

import contextlib
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import httpx
import pytest

from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import run, waited
from conductor.steps.descriptions import read
from sanderling import coordination, images
from sanderling.clock import SystemClock
from sanderling.model.disks import image_of

pytestmark = pytest.mark.usefixtures("each_database")

CLOCK = SystemClock()
FULL = bool(os.environ.get("SANDERLING_FULL"))
LASTS_S = 300.0 if FULL else 15.0
PEOPLE = 5
DISKS_MAX = 14
HOST = "iqn.2026-11.io.sanderling.tests:host"
CHAP = {"user": "host", "secret": "one-way-s3cret"}
MIB = 1 << 20
TOLD = ("name", "iqn", "size_bytes", "initiators", "allow_any", "started")  # by the image's description as by the API
PAUSE_S = 0.15  # at most, between two requests of a person


class Person:
    """Asks for one thing after the other; `accepted` are the operations."""

    def __init__(self, cluster: Cluster, prefix: str, rng: random.Random) -> None:
        self._cluster, self._prefix, self._rng = cluster, prefix, rng
        self._http = httpx.Client(base_url=cluster.url, headers=cluster.http.headers, timeout=30.0)
        self.accepted: list[str] = []

    def work(self, over: threading.Event) -> None:
        with self._http:
            while not CLOCK.wait(over, self._rng.uniform(0.0, PAUSE_S)):
                with contextlib.suppress(httpx.TransportError):  # the API was killed
                    self._ask()

    def _ask(self) -> None:
        answer = self._http.get("/v1/disks", params={"limit": 1000})
        disks = [each for each in answer.json().get("disks", []) if each["name"].startswith(self._prefix)]
        method, url, body = self._wish(self._rng.choice(disks), len(disks)) if disks else self._new()
        headers = {"Idempotency-Key": secrets.token_hex(8)} if self._rng.random() < 0.5 else {}
        answer = self._http.request(method, url, json=body, headers=headers)
        assert answer.status_code < 500 or answer.status_code == 503, (method, url, body, answer.text)
        if answer.status_code == 202:
            self.accepted.append(answer.json()["id"])

    def _new(self, **wanted: Any) -> tuple[str, str, Any]:
        rng = self._rng
        size = {} if "source" in wanted else {"size_bytes": rng.choice([4, 8, 16]) * MIB}
        access = {"access": "shared"} if rng.random() < 0.2 else {}
        admitted: dict[str, Any] = {"initiators": [HOST], "chap": CHAP} if rng.random() < 0.3 else {"allow_any": True}
        body = {"name": self._name(), "paths": rng.randint(1, 3), "started": rng.random() < 0.8, **size, **access, **admitted}
        return "POST", "/v1/disks", body | wanted

    def _name(self) -> str:
        return f"{self._prefix}-{self._rng.randint(0, 60)}"

    def _wish(self, disk: dict[str, Any], disks: int) -> tuple[str, str, Any]:
        rng, name, url = self._rng, disk["name"], f"/v1/disks/{disk['name']}"
        snapshot, gateway = f"s{rng.randint(0, 2)}", rng.choice(self._cluster.network.nodes)
        if disks < DISKS_MAX and rng.random() < 0.2:
            source = {"disk": name, "snapshot": snapshot}
            return self._new() if rng.random() < 0.4 else self._new(source=source)
        more = disk["size_bytes"] + rng.choice([4, 4, -4]) * MIB
        wishes: list[tuple[str, str, Any]] = [
            *[("POST", f"{url}/start", None)] * 3,
            *[("POST", f"{url}/stop", None)] * 3,
            ("PATCH", url, {"name": self._name(), "size_bytes": more}),
            ("PATCH", url, {"size_bytes": more}),
            ("PATCH", url, {"chap": rng.choice([CHAP, None])}),
            ("PATCH", url, rng.choice([{"initiators": [HOST], "allow_any": False}, {"initiators": [], "allow_any": True}])),
            *[("POST", f"{url}/snapshots", {"name": snapshot})] * 3,
            ("DELETE", f"{url}/snapshots/{snapshot}", None),
            *[("POST", f"{url}/snapshots/{snapshot}/rollback?confirm={name}", None)] * 2,
            *[("DELETE", f"{url}?force=true&confirm={name}", None)] * 2,
            ("PUT", f"{url}/marks", {"pin": rng.choice([gateway, None]), "avoid": []}),
            ("POST", "/v1/assignments", {"planner": "manual", "paths": [disk["paths"][0]["address"]], "gateway": gateway}),
            ("POST", "/v1/assignments", {"planner": "average"}),
            ("POST", f"/v1/gateways/{gateway}/drain", {"confirm": gateway}),
            ("POST", f"/v1/gateways/{gateway}/undrain", None),
            *[("POST", f"/v1/operations/{rng.choice(self.accepted or ['none'])}/cancel", None)] * 2,
        ]
        return rng.choice(wishes)


@pytest.fixture
def conductors(cluster: Cluster) -> Iterator[None]:
    """There are two."""
    cluster.add_conductor("conductor-2").start()
    yield
    cluster.discard("conductor-2")


@pytest.fixture
def prefix(cluster: Cluster, unique: str, conductors: None) -> Iterator[str]:
    """How the names of these people's disks begin; none is there afterwards."""
    yield unique
    cluster.heal()
    for node in cluster.network.nodes:
        answer = cluster.http.post(f"/v1/gateways/{node}/undrain")
        if answer.status_code == 202:
            cluster.wait_operation(answer)

    def gone() -> bool:
        """A snapshot that is a clone's source goes after the clone."""
        names = [disk["name"] for disk in shown(cluster, unique)]
        for name in names:
            answer = cluster.http.delete(f"/v1/disks/{name}", params={"force": "true", "confirm": name})
            if answer.status_code == 202:
                cluster.wait_operation(answer, state=None)
        return not names

    waited(gone, within_s=120, what="the disks are gone")


def shown(cluster: Cluster, prefix: str) -> list[dict[str, Any]]:
    disks = cluster.http.get("/v1/disks", params={"limit": 1000}).json()["disks"]
    return [cluster.http.get(f"/v1/disks/{disk['id']}").json() for disk in disks if disk["name"].startswith(prefix)]


def all_ended(cluster: Cluster) -> bool:
    return all(each["ended_at"] for each in cluster.http.get("/v1/operations", params={"limit": 1000}).json()["operations"])


def kill_and_pause(cluster: Cluster, rng: random.Random, over: threading.Event) -> None:
    while not CLOCK.wait(over, rng.uniform(2.0, 7.0)):
        process = cluster[rng.choice(["api", "conductor-1", "conductor-2", "conductor-2", *cluster.network.nodes])]
        if process.name != "api" and rng.random() < 0.3:
            process.pause()
            CLOCK.wait(over, rng.uniform(0.5, 9.0))
            process.resume()
        else:
            process.kill()
            CLOCK.wait(over, rng.uniform(0.0, 4.0))
            process.start()


@pytest.mark.timeout(900)
def test_whatever_people_ask_for_at_once_ends_and_leaves_all_parts_in_agreement(
    cluster: Cluster, prefix: str, libiscsi: str
) -> None:
    seed = secrets.randbits(32)
    with contextlib.closing(images.connect(cluster.settings(), clock=CLOCK)) as store:
        before = set(store.list())
        people = [Person(cluster, prefix, random.Random(f"{seed} {number}")) for number in range(PEOPLE)]
        over = threading.Event()
        with futures.ThreadPoolExecutor(PEOPLE + 1) as pool:
            working = [pool.submit(person.work, over) for person in people]
            if FULL:
                working.append(pool.submit(kill_and_pause, cluster, random.Random(seed), over))
            try:
                futures.wait(working, timeout=LASTS_S, return_when=futures.FIRST_EXCEPTION)
            finally:
                over.set()
            for each in working:
                each.result()
        cluster.heal()
        ended = [cluster.wait_operation(accepted, state=None) for person in people for accepted in person.accepted]
        waited(lambda: all_ended(cluster), within_s=150, what="what was accepted without an answer has ended, too")
        outcomes = Counter((operation["kind"], operation["state"]) for operation in ended)
        figures = f"seed {seed}: {len(ended)} operations; {dict(sorted(outcomes.items()))}"
        problems = [f"{each['kind']} {each['resource_name']}: {each['problem']['detail']}" for each in ended if each["problem"]]
        print("", figures, *problems, sep="\n")  # noqa: T201
        assert len(ended) > PEOPLE
        disks = shown(cluster, prefix)
        assert set(store.list()) - before == {image_of(disk["id"]) for disk in disks}
        for disk in disks:
            agree(cluster, store, disk)


def agree(cluster: Cluster, store: Any, disk: dict[str, Any]) -> None:
    """The records, the image, coordination and the gateways say the same of a disk that nobody works on."""
    image, started = image_of(disk["id"]), disk["state"] == "started"
    assert disk["state"] in {"started", "stopped"}, (disk["name"], disk["state"])
    described = read(store, image)
    assert described is not None
    assert store.stat(image).size_bytes == disk["size_bytes"]
    told = described[1].model_dump(mode="json")
    assert {field: told[field] for field in TOLD} == {field: disk[field] for field in TOLD}
    assert disk["started"] is started
    if started:
        for path in disk["paths"]:
            served(cluster, disk["id"], path["address"])
            portal = f"iscsi://{path['address']}"
            assert disk["iqn"] in run(["iscsi-ls", "-i", HOST, portal], netns=cluster.network.initiator, within_s=30)
    else:
        waited(lambda: store.clients(image) == (), within_s=60, what=f"nobody has {image} open")  # a dead one is listed for 30 s
        with contextlib.closing(coordination.connect(cluster.settings(), clock=CLOCK)) as keys:
            assert keys.list(f"exports/{disk['id']}/").entries == ()


def served(cluster: Cluster, disk_id: str, address: str) -> None:
    def serving() -> bool:
        paths = cluster.http.get(f"/v1/disks/{disk_id}").json()["paths"]
        return any(path["address"] == address and path["status"] == "serving" for path in paths)

    waited(serving, within_s=60, what=f"{address} is served")
