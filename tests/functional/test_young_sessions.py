"""An initiator that has only just logged in when its node dies is told by the heir, too: it does not find out by a timeout."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import sanderling.coordination
from cli.lab.cluster import Cluster
from cli.lab.initiator import Initiator
from cli.lab.parts.daemons import run, waited
from sanderling.clock import SystemClock
from sanderling.model.exports import Connection, Export, ExportId
from tests.functional.test_serving import gateway_of, inside, moved

CLOCK = SystemClock()
HOST = "iqn.2026-11.io.sanderling.tests:young"
NEVER_S = 3600.0
KEEPALIVE_S = 30.0  # of libiscsi: when an idle session asks by itself whether the other end is there


@pytest.fixture
def disk(cluster: Cluster, unique: str, libiscsi: str) -> Iterator[dict[str, Any]]:
    made = cluster.create_disk(unique, paths=1)
    yield made
    cluster.heal()
    cluster.delete_disk(unique)


@contextlib.contextmanager
def without_probes(cluster: Cluster, node: str) -> Iterator[None]:
    """The node's worker adopts what it serves and from then on asks no target process by itself."""
    worker = cluster[node]
    before = worker.settings
    worker.settings = replace(before, iscsi_worker=replace(before.iscsi_worker, probe_interval_s=NEVER_S))
    began = len(worker.log(event="serving"))
    try:
        worker.restart()
        worker.wait_for_log("serving", after=began)
        yield
    finally:
        worker.settings = before
        worker.kill()  # started again by whoever heals the cluster


def ports(cluster: Cluster, address: str) -> set[int]:
    """The initiator's ends of its connections to this address."""
    said = run(["ss", "-Htn", "state", "established", "dst", f"{address}:3260"], netns=cluster.network.initiator)
    return {int(line.split()[2].rpartition(":")[2]) for line in said.splitlines()}


def published(cluster: Cluster, disk_id: str) -> tuple[Connection, ...]:
    with contextlib.closing(sanderling.coordination.connect(cluster.settings(), clock=CLOCK)) as store:
        entry = store.get(ExportId(disk_id, 0).key)
    assert entry is not None
    return Export.model_validate_json(entry.value).connections


@pytest.mark.timeout(300)
def test_a_session_made_since_the_last_probe_is_reset_by_the_heir_of_a_node_that_lost_its_power(
    cluster: Cluster, disk: dict[str, Any]
) -> None:
    node, address = gateway_of(cluster, disk["id"]), disk["paths"][0]["address"]
    assert node is not None
    sessions = [Initiator(disk["iqn"], f"{address}:3260", initiator_name=HOST, timeout_s=30.0) for _ in range(2)]
    with without_probes(cluster, node), sessions[0], sessions[1]:
        for session in sessions:
            with inside(cluster.network.initiator):
                session.login()
            made = ports(cluster, address)
            waited(
                lambda: {one.initiator_port for one in published(cluster, disk["id"])} == made,  # noqa: B023  called in this turn
                within_s=30,
                what="the session is published",
            )
        cluster.network.cut(node)  # so that nobody but the heir can tell them
        cluster.kill_node(node)
        moved(cluster, disk["id"], away_from=node)
        reset_s = KEEPALIVE_S / 3  # by then a connection that nobody had told would still be thought to be good
        waited(lambda: ports(cluster, address) == set(), within_s=reset_s, what="the heir has reset what it never saw")
