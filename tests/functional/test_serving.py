"""The main job under faults: separate processes on real RabbitMQ, Consul and Ceph, a real initiator, every block checked.

What is written is checked on the image itself, so nothing that a target says about it is believed.
"""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rados
import rbd
from pyroute2 import netns

from cli.lab.cluster import Cluster
from cli.lab.initiator import SECTOR, BlockHistory, Initiator, Writer
from cli.lab.parts.daemons import run, start_time, waited
from sanderling.clock import SystemClock
from sanderling.model.disks import image_of

CLOCK = SystemClock()
SUITE_WITHIN_S = 300.0
PATIENT_S = 30.0
SESSION_HOST = "iqn.2026-11.io.sanderling.tests:host"
# iscsi-test-cu 1.19 on a bare tgt 1.0.85: all four families, and the two that have each test once. The rest fails there too.
ALL_RUN, ALL_PASSED = 615, 598
ONCE_RUN, ONCE_PASSED = 210, 202  # without WRITE SAME, which writes sector by sector for minutes
FULL = bool(os.environ.get("SANDERLING_FULL"))


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and those it starts meanwhile, live in the namespace."""
    netns.pushns(namespace)
    try:
        yield
    finally:
        netns.popns()


@contextmanager
def image(cluster: Cluster, disk_id: str) -> Iterator[rbd.Image]:
    """The disk's image, opened past every target."""
    ceph = rados.Rados(conffile=cluster.ceph.conf, rados_id=cluster.ceph.user)
    ceph.connect(timeout=10)
    try:
        with ceph.open_ioctx(cluster.ceph.pool) as pool, rbd.Image(pool, image_of(disk_id), read_only=True) as opened:
            yield opened
    finally:
        ceph.shutdown()


def wrong_blocks(cluster: Cluster, disk_id: str, history: BlockHistory) -> list[str]:
    assert history.acknowledged, "nothing was written: the check would prove nothing"
    with image(cluster, disk_id) as opened:
        return history.check(lambda lba: opened.read(lba * SECTOR, SECTOR))


@contextmanager
def writing(cluster: Cluster, disk: dict[str, Any], *, attempt_s: float = 1.0) -> Iterator[Writer]:
    """Continuous writes from the initiator's machine over all of the disk's paths.

    An attempt that waits for longer gives its session up itself; where no session may be lost it must not be the first to.
    """
    portals = [f"{path['address']}:3260" for path in disk["paths"]]
    with inside(cluster.network.initiator):
        initiator = Initiator(disk["iqn"], portals, initiator_name=SESSION_HOST, timeout_s=60.0, attempt_s=attempt_s)
        writer = Writer(initiator)
        writer.start()
    try:
        writer.wrote(20)
        yield writer
    finally:
        writer.stop(within_s=90.0)


def gateway_of(cluster: Cluster, disk_id: str) -> str | None:
    """The node that serves the disk, None while nobody does."""
    paths = cluster.http.get(f"/v1/disks/{disk_id}").json()["paths"]
    return str(paths[0]["gateway"]) if all(path["status"] == "serving" for path in paths) else None


def moved(cluster: Cluster, disk_id: str, *, away_from: str) -> str:
    """Wait until another node serves the disk; which."""
    seen: list[str | None] = []

    def elsewhere() -> bool:
        seen.append(gateway_of(cluster, disk_id))
        return seen[-1] not in {None, away_from}

    waited(elsewhere, within_s=60, what=f"another node than {away_from} serves {disk_id}", every_s=0.1)
    return str(seen[-1])


def intervals(cluster: Cluster, disk_id: str) -> list[tuple[float, float, str]]:
    """When which client could write (C2): from its gate's opening to its closing or to the acknowledgement of its fence."""
    logs = [entry for worker in cluster.workers for entry in worker.log() if str(entry.get("export", "")).startswith(disk_id)]
    ends: dict[str, float] = {}
    for entry in logs:
        if entry["event"] in {"gate closed", "fenced"}:
            ends[entry["client"]] = min(entry["at"], ends.get(entry["client"], entry["at"]))
    opened = [entry for entry in logs if entry["event"] == "gate opened"]
    return sorted((entry["at"], ends.get(entry["client"], float("inf")), entry["client"]) for entry in opened)


def overlapping(found: list[tuple[float, float, str]]) -> list[tuple[Any, Any]]:
    return [(one, other) for one, other in itertools.pairwise(found) if one[1] > other[0]]


def target_pids(cluster: Cluster, node: str) -> list[int]:
    pids = run(["ip", "netns", "pids", cluster.network.netns(node)]).split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "tgtd"]


@pytest.fixture
def disk(cluster: Cluster, unique: str, libiscsi: str) -> Iterator[dict[str, Any]]:
    made = cluster.create_disk(unique, paths=2)
    yield made
    cluster.heal()
    cluster.delete_disk(unique)


@pytest.mark.timeout(3600)
def test_a_disk_passes_the_conformance_suites_as_a_bare_target_does(cluster: Cluster, unique: str, libiscsi: str) -> None:
    """Show 3: iscsi-test-cu suite by suite, each under a bound, on a disk on Ceph that Sanderling serves.

    SANDERLING_FULL=1 runs all four families; without it the two that have every test once, less WRITE SAME.
    """
    disk = cluster.create_disk(unique, paths=2, size_bytes=8 << 20)
    url = f"iscsi://{disk['paths'][0]['address']}/{disk['iqn']}/1"
    listed = subprocess.run(["iscsi-test-cu", "--list"], capture_output=True, text=True, timeout=30, check=False).stdout
    suites = re.findall(r"^\w+\.\w+$" if FULL else r"^(?:SCSI|iSCSI)\.(?!WriteSame)\w+$", listed, re.MULTILINE)
    counts = [suite_counts(cluster.network.initiator, suite, url) for suite in suites]
    ran, passed = sum(ran for ran, _ in counts), sum(passed for _, passed in counts)
    failing = [f"{suite} {ran - passed}" for suite, (ran, passed) in zip(suites, counts, strict=True) if ran > passed]
    sys.stdout.write(f"iscsi-test-cu: {len(suites)} suites, {ran} tests run, {passed} passed; failed: {', '.join(failing)}\n")
    cluster.delete_disk(unique)
    assert ran >= (ALL_RUN if FULL else ONCE_RUN)
    assert passed >= (ALL_PASSED if FULL else ONCE_PASSED)


def suite_counts(namespace: str, suite: str, url: str) -> tuple[int, int]:
    """How many tests of the suite ran, and how many passed."""
    words = ["ip", "netns", "exec", namespace, "iscsi-test-cu", "-d", "-n", "-t", suite, url]
    said = subprocess.run(words, capture_output=True, text=True, timeout=SUITE_WITHIN_S, check=False).stdout
    found = re.search(r"^\s*tests\s+\d+\s+(\d+)\s+(\d+)", said, re.MULTILINE)
    assert found, f"{suite}: {said[-2000:]}"
    return int(found[1]), int(found[2])


@pytest.mark.timeout(600)
@pytest.mark.rows("IS-3", "W-IS-1")
def test_a_worker_killed_and_started_twenty_times_costs_no_session(cluster: Cluster, disk: dict[str, Any]) -> None:
    """Show 6: the export outlives its worker, and whoever is started next adopts it."""
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    worker, client = cluster[node], intervals(cluster, disk["id"])[-1][2]
    with writing(cluster, disk, attempt_s=PATIENT_S) as writer:
        logins = writer.logins
        for _ in range(20):
            extended = len(worker.log(event="lease extended"))
            worker.kill()
            worker.start()
            worker.wait_for_log("lease extended", after=extended)
            writer.wrote(20)
        assert writer.logins == logins
    assert gateway_of(cluster, disk["id"]) == node
    assert [each for _, _, each in intervals(cluster, disk["id"])] == [client]
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


@pytest.mark.timeout(600)
@pytest.mark.rows("W-IS-9")
def test_a_worker_that_stays_dead_is_replaced_and_its_client_fenced(cluster: Cluster, disk: dict[str, Any]) -> None:
    """Show 6: a restart that takes longer than the liveness bound."""
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    with writing(cluster, disk) as writer:
        cluster[node].kill()
        heir = moved(cluster, disk["id"], away_from=node)
        writer.wrote(50)
        cluster[node].start()
        waited(lambda: node in cluster.live(), within_s=90, what=f"{node} is back")
        writer.wrote(50)
    found = intervals(cluster, disk["id"])
    assert len(found) == 2
    assert overlapping(found) == []
    assert any(entry["client"] == found[0][2] for entry in cluster.log(heir, event="fenced"))
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


@pytest.mark.timeout(600)
@pytest.mark.rows("IS-14", "W-IS-9")
@pytest.mark.parametrize("fault", ["cut off behind", "cut off on both sides", "frozen"])
def test_the_exports_of_a_lost_node_are_served_by_another_and_only_by_that(
    cluster: Cluster, disk: dict[str, Any], fault: str
) -> None:
    """Show 7: the intervals in which two nodes could write are disjoint, and no acknowledged write is lost."""
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    old = target_pids(cluster, node)
    assert old
    with writing(cluster, disk) as writer:
        match fault:
            case "cut off behind":
                cluster.network.cut(node, sides=["back"])
            case "cut off on both sides":
                cluster.network.cut(node)
            case "frozen":
                cluster.freeze(node)
        heir = moved(cluster, disk["id"], away_from=node)
        writer.wrote(50)
        cluster.heal()
        writer.wrote(50)
    found = intervals(cluster, disk["id"])
    assert len(found) == 2, found
    assert overlapping(found) == []
    assert any(entry["client"] == found[0][2] for entry in cluster.log(heir, event="fenced"))
    assert wrong_blocks(cluster, disk["id"], writer.history) == []
    waited(lambda: not any(start_time(pid) for pid in old), within_s=60, what="the lost node's old process is gone")


@pytest.mark.timeout(600)
def test_a_shared_disks_paths_are_spread_and_it_starts_again_after_a_stop(cluster: Cluster, unique: str, libiscsi: str) -> None:
    disk = cluster.create_disk(unique, paths=3, access="shared")
    for turn in range(2):
        paths = cluster.http.get(f"/v1/disks/{unique}").json()["paths"]
        assert {path["gateway"] for path in paths} == set(cluster.network.nodes)
        for path in paths:
            lba = 8 * path["index"] + turn
            with (
                inside(cluster.network.initiator),
                Initiator(disk["iqn"], f"{path['address']}:3260", initiator_name=SESSION_HOST, timeout_s=30.0) as initiator,
            ):
                initiator.write(lba, _block(b"through this path"))
            assert _stored(cluster, disk["id"], lba) == _block(b"through this path")
        cluster.wait_operation(cluster.http.post(f"/v1/disks/{unique}/stop"))
        cluster.wait_operation(cluster.http.post(f"/v1/disks/{unique}/start"))
    cluster.delete_disk(unique)


@pytest.mark.timeout(600)
def test_an_outage_of_consul_that_outlasts_every_lease_costs_no_session(cluster: Cluster, disk: dict[str, Any]) -> None:
    """Nobody takes over without a fence, so an owner whose reads still succeed goes on, and holds its lock again afterwards."""
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    lease_s = cluster[node].settings.iscsi_worker.lease_s
    with writing(cluster, disk, attempt_s=PATIENT_S) as writer:
        logins, began = writer.logins, CLOCK.monotonic()
        cluster.consul.kill()
        while CLOCK.monotonic() - began < 3 * lease_s:
            writer.wrote(50)
        cluster.consul.start()
        cluster.wait_until_ready()
        waited(lambda: gateway_of(cluster, disk["id"]) == node, within_s=60, what=f"{node} is known to serve")
        writer.wrote(50)
        assert writer.logins == logins
    assert len(intervals(cluster, disk["id"])) == 1
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


def _block(word: bytes) -> bytes:
    return word.ljust(SECTOR, b".")


def _stored(cluster: Cluster, disk_id: str, lba: int) -> bytes:
    with image(cluster, disk_id) as opened:
        return bytes(opened.read(lba * SECTOR, SECTOR))
