"""A node that Ceph answers no more, while it answers others, loses its paths and is used later; without Ceph nothing moves."""

import contextlib
from typing import Any

import pytest

import sanderling.coordination
from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import waited
from cli.lab.scenarios.partitions import dropping, to_ceph
from sanderling.clock import SystemClock
from sanderling.model.exports import Gateway, Store
from tests.functional.test_front_side import add
from tests.functional.test_serving import (
    PATIENT_S,
    gateway_of,
    intervals,
    moved,
    overlapping,
    target_pids,
    writing,
    wrong_blocks,
)

CLOCK = SystemClock()
SILENT_FOR = 8  # asks in a row without an answer: twice as long as it takes to find oneself cut off


def said(cluster: Cluster, node: str) -> Store:
    """What the gateway publishes of the image store."""
    with contextlib.closing(sanderling.coordination.connect(cluster.settings(), clock=CLOCK)) as store:
        entry = store.get(f"nodes/{node}")
    assert entry is not None
    return Gateway.model_validate_json(entry.value).store


@pytest.mark.timeout(600)
def test_a_node_that_ceph_does_not_answer_leaves_its_paths_to_those_that_it_answers_and_is_offered_exports_again_later(
    cluster: Cluster, disks: list[dict[str, Any]]
) -> None:
    disk = disks[0]
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    worker = cluster[node]
    back = len(worker.log(event="answered again by the image store"))
    with writing(cluster, disk) as writer:
        with dropping(cluster.network.netns(node), to_ceph(cluster.ceph)):
            heir = moved(cluster, disk["id"], away_from=node)
            writer.wrote(50)
            assert node in cluster.live(), "only Ceph was cut off"
            assert said(cluster, node).is_lost
            assert target_pids(cluster, node) == []
            assert node not in add(cluster, disks, 2), "nothing is placed where nothing can be served"
        stands_back_s = worker.log(event="cut off from the image store")[-1]["stands_back_s"]
        worker.wait_for_log("answered again by the image store", after=back, within_s=stands_back_s + 60)
        writer.wrote(50)
        assert node in add(cluster, disks, 1), "the emptiest gateway is used again"
    left = next(entry for entry in worker.log(event="given up") if entry["export"].startswith(disk["id"]))
    assert not left["drained"], "what was in flight could not end"
    assert left["client_left"] in {entry["client"] for entry in cluster.log(heir, event="fenced")}
    found = intervals(cluster, disk["id"])
    assert len(found) == 2, found
    assert overlapping(found) == []
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


@pytest.mark.timeout(600)
def test_while_ceph_answers_nobody_no_path_moves_and_nobody_stands_back(cluster: Cluster, disks: list[dict[str, Any]]) -> None:
    disk = disks[0]
    node = gateway_of(cluster, disk["id"])
    with writing(cluster, disk, attempt_s=PATIENT_S) as writer:
        before = {worker.name: len(worker.log(event="the image store does not answer")) for worker in cluster.workers}
        cluster.ceph.pause()
        try:
            for worker in cluster.workers:
                worker.wait_for_log(
                    "the image store does not answer", after=before[worker.name] + SILENT_FOR - 1, within_s=PATIENT_S + 30
                )
        finally:
            cluster.ceph.resume()
        waited(
            lambda: all(said(cluster, worker.name) == Store(answers=True) for worker in cluster.workers),
            within_s=60,
            what="Ceph answers every gateway",
        )
        writer.wrote(50)
    assert gateway_of(cluster, disk["id"]) == node
    assert len(intervals(cluster, disk["id"])) == 1
    assert wrong_blocks(cluster, disk["id"], writer.history) == []
