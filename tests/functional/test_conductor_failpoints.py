"""kill -9 of the conductor before and after everything durable in create, start, delete, moves and drains, on the real parts.

A run takes a sample on each database, which differs from the last one's; SANDERLING_FULL=1 takes every point.
"""

import itertools
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

import sanderling.coordination
import sanderling.images
from cli.lab.cluster import Cluster
from cli.lab.processes import Process
from conductor.failpoints import VARIABLE, forward
from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination
from sanderling.images.base import Images
from sanderling.model.disks import image_of
from sanderling.model.operations import OperationKind

pytestmark = pytest.mark.usefixtures("each_database")

Capture = pytest.CaptureFixture[str]
KINDS = (OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.DELETE_DISK)
END_WITHIN_S = 150.0
MOVING = (OperationKind.ASSIGN_PATHS, OperationKind.DRAIN_GATEWAY)
MOVES_SAMPLED_EVERY = 24  # on each database, as below
SAMPLED_EVERY = 16  # all of them take ten minutes: SANDERLING_FULL=1


@pytest.fixture
def conductor(cluster: Cluster) -> Iterator[Process]:
    """The cluster's only conductor, ended. It finds what a dead one left sooner than a site's would, or this would take hours."""
    process = cluster["conductor-1"]
    configured = process.settings
    process.terminate()
    quick = replace(configured.conductor, claim_ttl_s=1.0, sweep_interval_s=0.1)
    process.settings = replace(configured, conductor=quick)
    yield process
    process.kill()
    process.settings = configured  # the cluster heals by starting it


@pytest.fixture
def images(cluster: Cluster) -> Iterator[Images]:
    store = sanderling.images.connect(cluster.settings(), clock=SystemClock())
    yield store
    store.close()


@pytest.fixture
def coordination(cluster: Cluster) -> Iterator[Coordination]:
    store = sanderling.coordination.connect(cluster.settings(), clock=SystemClock())
    yield store
    store.close()


class Killing:
    """One disk at a time lives a life in which its creation, its start and its deletion each lose their conductor once.

    The conductor that comes after a killed one ends its operation and is killed in turn by the next operation, of another kind.
    """

    def __init__(self, cluster: Cluster, conductor: Process) -> None:
        self._cluster, self._conductor = cluster, conductor
        self.killed = 0

    def life(self, name: str, points: list[str | None], following: str | None) -> Iterator[str]:
        """The disk's id, after each of its three operations has succeeded. `following` is what the next life begins with."""
        create, start, delete = points
        http = self._cluster.http
        accepted = http.post("/v1/disks", json={"name": name, "size_bytes": 4 << 20, "paths": 2, "allow_any": True})
        self._end(accepted.headers["Location"], create, start)
        disk_id = http.get(f"/v1/disks/{name}").json()["id"]
        yield disk_id
        self._cluster.wait_operation(http.post(f"/v1/disks/{name}/stop"))
        self._end(http.post(f"/v1/disks/{name}/start").headers["Location"], start, delete)
        yield disk_id
        deleted = http.delete(f"/v1/disks/{name}", params={"force": "true", "confirm": name})
        self._end(deleted.headers["Location"], delete, following)
        yield disk_id

    def arm(self, point: str | None) -> None:
        self._conductor.start(env={VARIABLE: point} if point else None)

    def _end(self, location: str, point: str | None, following: str | None) -> None:
        if point is not None:
            self._conductor.wait_until_dead(within_s=END_WITHIN_S)
            self.killed += 1
            self.arm(following)
        elif following is not None:
            self._cluster.wait_operation(location.rpartition("/")[2], within_s=END_WITHIN_S)
            self._conductor.kill()
            self.arm(following)
        self._cluster.wait_operation(location.rpartition("/")[2], within_s=END_WITHIN_S)


@pytest.mark.timeout(3600)
@pytest.mark.rows("IS-1")
def test_a_killed_conductor_costs_time_and_nothing_else(
    cluster: Cluster,
    conductor: Process,
    images: Images,
    coordination: Coordination,
    unique: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = 1 if os.environ.get("SANDERLING_FULL") else SAMPLED_EVERY
    first = secrets.randbelow(every)
    total, lists = sum(len(forward(kind)) for kind in KINDS), [forward(kind)[first::every] for kind in KINDS]
    lives = list(itertools.zip_longest(*lists))
    killing, known = Killing(cluster, conductor), set(images.list())
    killing.arm(lives[0][0])
    for number, points in enumerate(lives):
        following = lives[number + 1][0] if number + 1 < len(lives) else None
        name = f"{unique}-{number}"
        after = killing.life(name, list(points), following)
        for _ in ("created", "started"):
            disk_id = next(after)
            assert image_of(disk_id) in images.list(), points
            assert [entry.key for entry in coordination.list(f"exports/{disk_id}/").entries] == [f"exports/{disk_id}/0"], points
            shown = cluster.http.get(f"/v1/disks/{name}").json()
            assert shown["state"] == "started", points
        disk_id = next(after)
        assert image_of(disk_id) not in images.list(), points
        assert not coordination.list(f"exports/{disk_id}/").entries, points
        assert coordination.get(f"disks/{disk_id}") is None, points
        assert cluster.http.get(f"/v1/disks/{name}").status_code == 404, points
    assert killing.killed == sum(map(len, lists))
    assert set(images.list()) == known
    with capsys.disabled():
        which = f"{killing.killed} of {total} points of {', '.join(KINDS)} (one in {every}, from number {first})"
        sys.stdout.write(f"\nconductor killed at {which}; every operation succeeded\n")


def gateway_of(cluster: Cluster, disk: str) -> str:
    """Who serves the disk now, as the API shows it; empty for nobody."""
    (gateway,) = {path["gateway"] for path in cluster.http.get("/v1/paths", params={"disk": disk}).json()["paths"]}
    return gateway or ""


def ask_to_move(cluster: Cluster, kind: OperationKind, disk: str) -> tuple[httpx.Response, str]:
    """A request that moves the disk, and the gateway that is to lose it."""
    source = gateway_of(cluster, disk)
    if kind is OperationKind.DRAIN_GATEWAY:
        return cluster.http.post(f"/v1/gateways/{source}/drain", json={"confirm": source}), source
    paths = [path["address"] for path in cluster.http.get("/v1/paths", params={"disk": disk}).json()["paths"]]
    other = next(node for node in cluster.network.nodes if node != source)
    return cluster.http.post("/v1/assignments", json={"planner": "manual", "paths": paths, "gateway": other}), source


@pytest.mark.timeout(3600)
@pytest.mark.rows("PA-55", "W-PA-5")
def test_a_conductor_killed_while_paths_are_moved_costs_time_and_nothing_else(
    cluster: Cluster, conductor: Process, unique: str, capsys: pytest.CaptureFixture[str]
) -> None:
    every = 1 if os.environ.get("SANDERLING_FULL") else MOVES_SAMPLED_EVERY
    first = secrets.randbelow(every)
    points = [(kind, point) for kind in MOVING for point in forward(kind)]
    conductor.start()
    body = {"name": unique, "size_bytes": 4 << 20, "paths": 2, "allow_any": True}
    cluster.wait_operation(cluster.http.post("/v1/disks", json=body))
    for kind, point in points[first::every]:
        conductor.kill()
        conductor.start(env={VARIABLE: point})
        accepted, source = ask_to_move(cluster, kind, unique)
        operation_id = accepted.headers["Location"].rpartition("/")[2]
        conductor.wait_until_dead(within_s=END_WITHIN_S)
        conductor.start()
        cluster.wait_operation(operation_id, within_s=END_WITHIN_S)
        moves = cluster.http.get(f"/v1/assignments/{operation_id}").json()["moves"]
        assert {move["state"] for move in moves} == {"succeeded"}, point
        assert gateway_of(cluster, unique) not in {"", source}, point
        if kind is OperationKind.DRAIN_GATEWAY:
            cluster.wait_operation(cluster.http.post(f"/v1/gateways/{source}/undrain"))
    cluster.wait_operation(cluster.http.delete(f"/v1/disks/{unique}", params={"force": "true", "confirm": unique}))
    with capsys.disabled():
        which = (
            f"{len(points[first::every])} of {len(points)} points of {', '.join(MOVING)} (one in {every}, from number {first})"
        )
        sys.stdout.write(f"\nconductor killed at {which}; every operation succeeded\n")
