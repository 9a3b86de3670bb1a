"""Replacing a worker without moving anything: what `systemctl reload` does (etc/systemd/sanderling-iscsi-worker.service)."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cli.lab.cluster import Cluster


@pytest.fixture
def disk(cluster: Cluster, unique: str) -> Iterator[dict[str, Any]]:
    yield cluster.create_disk(unique)
    cluster.delete_disk(unique)


@pytest.mark.rows("IS-4", "W-IS-1")
def test_a_worker_that_makes_room_for_the_next_leaves_it_the_exports_as_they_are(cluster: Cluster, disk: dict[str, Any]) -> None:
    worker = cluster[disk["paths"][0]["gateway"]]
    for _ in range(3):  # an export that was lost would have been taken anew by the next round
        serving = len(worker.log(event="serving"))
        worker.terminate(number=signal.SIGHUP)
        worker.start()
        worker.wait_for_log("serving", after=serving)
    opened = [entry for each in cluster.workers for entry in each.log(event="gate opened")]
    assert len([entry for entry in opened if disk["id"] in entry["export"]]) == 1
    assert {path["status"] for path in cluster.http.get(f"/v1/disks/{disk['id']}").json()["paths"]} == {"serving"}
