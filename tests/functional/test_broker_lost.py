"""The broker killed while operations are under way: it costs time, never an answer and never an intent."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import sanderling.images
from cli.lab.cluster import Cluster
from sanderling.clock import SystemClock
from sanderling.model.disks import image_of
from sanderling.records.database import Records
from sanderling.records.tables import EventRow

DISKS = {"sqlite": 200, "postgresql": 200 if os.environ.get("SANDERLING_FULL") else 60}
KILLED_AFTER = 20


@pytest.mark.timeout(600)
@pytest.mark.rows("W-OM-2", "W-OM-4", "W-MC-1", "W-MC-2", "W-MC-4")
def test_hundreds_of_creations_survive_the_brokers_death_each_once(cluster: Cluster, each_database: str, unique: str) -> None:
    count = DISKS[each_database]
    subnet = {"name": unique, "cidr": "10.201.0.0/16", "interface": "eth1"}
    made = cluster.http.post("/v1/subnets", json={**subnet, "pool_first": "10.201.0.1", "pool_last": "10.201.9.250"})
    assert made.status_code == 201, made.text

    def create(number: int) -> httpx.Response:
        if number == KILLED_AFTER:
            cluster.rabbitmq.kill()
        body = {"name": f"{unique}-{number}", "size_bytes": 1 << 20, "paths": 1, "subnets": [unique], "started": False}
        return cluster.http.post("/v1/disks", json={**body, "allow_any": True})

    cluster.rabbitmq.settle()
    cluster["conductor-1"].kill()  # so that all of them are in flight when the broker dies
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(create, range(count)))
    assert Counter(answer.status_code for answer in answers) == {202: count}
    assert {cluster.http.get(answer.headers["Location"]).json()["state"] for answer in answers} == {"pending"}
    cluster["conductor-1"].start()
    cluster.wait_operation(answers[0], within_s=120)  # found by the sweep, while the broker is still dead
    cluster.heal()
    ended = [cluster.wait_operation(answer, within_s=120) for answer in answers]
    done = finished_steps(cluster, [operation["id"] for operation in ended])
    assert set(done.values()) == {("create_image", "describe", "settle")}
    store = sanderling.images.connect(cluster.settings(), clock=SystemClock())
    try:
        images = store.list()
    finally:
        store.close()
    assert {images.count(image_of(operation["resource_id"])) for operation in ended} == {1}
    assert len({operation["resource_id"] for operation in ended}) == count
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(cluster.delete_disk, (f"{unique}-{number}" for number in range(count))))
    cluster.http.delete(f"/v1/subnets/{unique}")


def finished_steps(cluster: Cluster, operation_ids: list[str]) -> dict[str, tuple[str, ...]]:
    """The steps that each operation finished, in order, one entry for each time."""
    records = Records(cluster.settings().records, clock=SystemClock())
    done: dict[str, tuple[str, ...]] = dict.fromkeys(operation_ids, ())
    try:
        with records.read() as session:
            for row in session.query(EventRow).filter_by(kind="step.done").order_by(EventRow.id):
                if row.operation_id in done:
                    done[row.operation_id] += (row.data["step"],)
    finally:
        records.close()
    return done
