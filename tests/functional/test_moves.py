"""Planned moves on the real parts, asked for over HTTP, under a writer's load: C1 and C2 after each."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cli.lab.cluster import Cluster
from cli.lab.initiator import Writer
from cli.lab.intervals import intervals, overlaps
from cli.lab.parts.daemons import waited
from tests.functional.test_serving import gateway_of, writing, wrong_blocks

MOVES = 5


@pytest.fixture
def disk(cluster: Cluster, unique: str, libiscsi: str) -> Iterator[dict[str, Any]]:
    made = cluster.create_disk(unique, paths=2)
    try:
        yield made
    finally:
        cluster.heal()
        cluster.delete_disk(unique)


@contextlib.contextmanager
def checked(cluster: Cluster, disk: dict[str, Any]) -> Iterator[Writer]:
    """A writer while the block runs; afterwards no acknowledged block is missing and no two nodes could write at once."""
    with writing(cluster, disk) as writer:
        yield writer
        writer.wrote(100)
    assert overlaps(intervals({worker.name: worker.log() for worker in cluster.workers})) == []
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


def other_than(cluster: Cluster, *nodes: str | None) -> str:
    return next(node for node in cluster.network.nodes if node not in nodes)


def moved_to(cluster: Cluster, disk: dict[str, Any], gateway: str, *, state: str = "succeeded") -> dict[str, Any]:
    """The assignment that moves the disk's paths there, once it has ended in that state."""
    body = {"planner": "manual", "paths": [disk["paths"][0]["address"]], "gateway": gateway}
    operation = cluster.wait_operation(cluster.http.post("/v1/assignments", json=body), state=state)
    shown: dict[str, Any] = cluster.http.get(f"/v1/assignments/{operation['id']}").json()
    return shown


@pytest.mark.rows("PA-2", "PA-25", "PA-45", "W-PA-23")
def test_a_disks_paths_move_under_load_and_every_move_has_its_gap(cluster: Cluster, disk: dict[str, Any]) -> None:
    with checked(cluster, disk) as writer:
        for _ in range(MOVES):
            source = gateway_of(cluster, disk["id"])
            gateway = other_than(cluster, source)
            assignment = moved_to(cluster, disk, gateway)
            assert gateway_of(cluster, disk["id"]) == gateway
            (move,) = assignment["moves"]
            assert (move["from"], move["to"], move["state"]) == (source, gateway, "succeeded")
            assert set(move["paths"]) == {path["address"] for path in disk["paths"]}
            writer.wrote(50)

    def gaps() -> list[float | None]:
        shown = cluster.http.get("/v1/assignments", params={"limit": MOVES}).json()["assignments"]
        return [cluster.http.get(f"/v1/assignments/{one['id']}").json()["moves"][0]["gap_s"] for one in shown]

    waited(lambda: None not in gaps(), within_s=60, what="each move's gap is known")


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_a_worker_killed_in_the_middle_of_moves_leaves_its_disk_served_and_the_assignment_ended(
    cluster: Cluster, disk: dict[str, Any], victim: str
) -> None:
    with checked(cluster, disk) as writer:
        source = gateway_of(cluster, disk["id"])
        assert source is not None
        destination = other_than(cluster, source)
        body = {"planner": "manual", "paths": [disk["paths"][0]["address"]], "gateway": destination}
        accepted = cluster.http.post("/v1/assignments", json=body)
        cluster[destination].wait_for_log("prepared")
        cluster[source if victim == "source" else destination].kill()
        writer.wrote(50)
        ended = cluster.wait_operation(accepted, state=None)
        assert ended["state"] in {"succeeded", "failed"}
        cluster.heal()
        waited(lambda: gateway_of(cluster, disk["id"]) is not None, within_s=90, what="the disk is served")
        writer.wrote(50)
    assert cluster.http.get("/v1/operations", params={"state": "running"}).json()["operations"] == []


@pytest.mark.rows("W-PA-13")
def test_a_destination_that_refuses_leaves_the_path_where_it_was_and_says_why(cluster: Cluster, disk: dict[str, Any]) -> None:
    source = gateway_of(cluster, disk["id"])
    destination = other_than(cluster, source)
    with checked(cluster, disk), refusing(cluster, destination):
        assignment = moved_to(cluster, disk, destination, state="failed")
        (move,) = assignment["moves"]
        assert move["state"] == "failed"
        assert move["problem"]["detail"]
        waited(lambda: gateway_of(cluster, disk["id"]) is not None, within_s=90, what="the disk is served")
        assert gateway_of(cluster, disk["id"]) != destination


@contextlib.contextmanager
def refusing(cluster: Cluster, node: str) -> Iterator[None]:
    """While it lasts, the node's target program cannot be started."""
    worker = cluster[node]
    before = worker.settings
    worker.settings = replace(before, iscsi_worker=replace(before.iscsi_worker, tgtd="/bin/false"))
    restart(cluster, node)
    try:
        yield
    finally:
        worker.settings = before
        restart(cluster, node)


def restart(cluster: Cluster, node: str) -> None:
    worker = cluster[node]
    serving = len(worker.log(event="serving"))
    worker.terminate()
    worker.start()
    worker.wait_for_log("serving", after=serving)
    waited(lambda: node in cluster.live(), within_s=90, what=f"{node} is back")
