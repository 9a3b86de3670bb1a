"""Every command that speaks to the service, as its own process, on each database; its effect is seen where it is to show.

What can be done with disks and snapshots is in test_disks.py; `up` and `lab`, which bring a service of their own, in
test_up.py and test_lab.py.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import waited
from sanderling import coordination
from sanderling.clock import SystemClock
from sanderling.coordination.leaders import leader_of
from sanderling.images import connect
from sanderling.images.base import Images
from sanderling.model.disks import DiskState, image_of
from sanderling.model.leaders import CLUSTER
from sanderling.model.operations import OperationState
from sanderling.records.tables import DiskRow, MarkRow, OperationRow, RuleRow, SampleRow, SubnetRow, TokenRow
from tests.functional.command_line import CommandLine, records
from tests.functional.test_disks import HOST, connected, lets_in
from tests.functional.test_serving import gateway_of, inside
from tests.receiver import Receiver

pytestmark = pytest.mark.usefixtures("each_database")

CLOCK = SystemClock()


def recorded(cluster: Cluster, table: Any, **wanted: str) -> list[Any]:
    """The rows of the records that are so."""
    with records(cluster) as session:
        return list(session.scalars(select(table).filter_by(**wanted)))


@pytest.fixture
def leader(cluster: Cluster) -> Iterator[str]:
    """A leader that measures each second."""
    process = cluster.add_leader("leader-1")
    often = replace(process.settings.statistics, interval_s=1.0, export_interval_s=1.0)
    process.settings = replace(process.settings, statistics=often)
    process.start()
    yield "leader-1"
    cluster.discard("leader-1")


@contextlib.contextmanager
def receiving(cluster: Cluster) -> Iterator[tuple[Receiver, str]]:
    """What a rule can name, beside the leader; and as which URL."""
    with inside(cluster.network.parts):
        receiver = Receiver(cluster.network.parts_address)
    with receiver:
        yield receiver, receiver.url.replace("127.0.0.1", cluster.network.parts_address)


@contextlib.contextmanager
def images(cluster: Cluster) -> Iterator[Images]:
    store = connect(cluster.settings(), clock=CLOCK)
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def no_conductor(cluster: Cluster) -> Iterator[None]:
    """What is asked for meanwhile stays where it is."""
    cluster["conductor-1"].terminate()
    try:
        yield
    finally:
        cluster["conductor-1"].start()


def test_a_subnet_is_there_until_it_is_deleted(cluster: Cluster, sanderling: CommandLine, unique: str) -> None:
    at = ("--cidr", "10.209.0.0/24", "--interface", "eth1", "--first", "10.209.0.10", "--last", "10.209.0.20")
    sanderling("subnet", "create", unique, *at)
    (row,) = recorded(cluster, SubnetRow, name=unique)
    assert (row.cidr, row.pool_last) == ("10.209.0.0/24", "10.209.0.20")
    assert sanderling("subnet", "show", unique)["interface"] == "eth1"
    assert unique in {one["name"] for one in sanderling("subnet", "list")}
    sanderling("subnet", "delete", unique)
    assert recorded(cluster, SubnetRow, name=unique) == []
    assert unique in sanderling.refused("subnet", "show", unique)


def test_a_token_may_what_its_role_may_until_it_is_revoked(
    cluster: Cluster, sanderling: CommandLine, unique: str, tmp_path: Path
) -> None:
    file = tmp_path / "reader.json"
    sanderling("token", "create", f"{unique}-r", "--role", "reader", "--client-file", str(file))
    (row,) = recorded(cluster, TokenRow, name=f"{unique}-r")
    assert row.role == "reader"
    assert json.loads(file.read_text())["token"] not in str(vars(row)), "the digest alone is kept"
    reader = CommandLine(file)
    assert isinstance(reader("disk", "list"), list)
    assert "reader" in reader.refused("disk", "create", unique, "--size", "1G", "--allow-any")
    assert f"{unique}-r" in {one["name"] for one in sanderling("token", "list")}
    sanderling("token", "delete", f"{unique}-r")
    reader.refused("disk", "list")


def test_the_first_token_is_made_where_the_records_are(
    cluster: Cluster, sanderling: CommandLine, unique: str, tmp_path: Path
) -> None:
    file = tmp_path / "first.json"
    here = CommandLine(file, SANDERLING_CONFIG=str(cluster.folder / "api.ini"))
    here("token", "init", "--url", cluster.url, "--name", f"{unique}-1", "--client-file", str(file))
    assert [row.role for row in recorded(cluster, TokenRow, name=f"{unique}-1")] == ["admin"]
    assert isinstance(here("disk", "list"), list)
    sanderling("token", "delete", f"{unique}-1")
    here.refused("disk", "list")


def test_a_disk_is_made_served_stopped_and_gone(cluster: Cluster, sanderling: CommandLine, unique: str, libiscsi: str) -> None:
    sanderling("disk", "create", unique, "--size", "64M", "--paths", "2", "--initiator", HOST, "--no-start", "--wait")
    (row,) = recorded(cluster, DiskRow, name=unique)
    with images(cluster) as store:
        assert image_of(row.id) in store.list()
    assert {path["status"] for path in sanderling("path", "list", "--disk", unique)} == {"stopped"}
    sanderling("disk", "start", unique, "--wait")
    shown = sanderling("disk", "show", unique)
    connected(cluster, shown).close()
    serving = sanderling("path", "list", "--contains", unique.upper())
    assert {path["gateway"] for path in serving} == {gateway_of(cluster, row.id)}
    assert [one["state"] for one in sanderling("disk", "list", "--name", unique)] == ["started"]
    sanderling("disk", "stop", unique, "--wait")
    assert not lets_in(cluster, shown)
    sanderling("disk", "delete", unique, "--wait")
    assert recorded(cluster, DiskRow, name=unique) == []
    with images(cluster) as store:
        assert image_of(row.id) not in store.list()


def test_a_mark_says_where_a_disk_is_to_be(cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any]) -> None:
    gateway = gateway_of(cluster, disk["id"])
    sanderling("disk", "mark", disk["id"], "--pin", str(gateway), "--wait")
    assert {row.gateway for row in recorded(cluster, MarkRow, disk_id=disk["id"])} == {gateway}
    sanderling("disk", "mark", disk["id"], "--clear", "--wait")
    assert recorded(cluster, MarkRow, disk_id=disk["id"]) == []


def test_paths_are_moved_as_planned_and_moved_back(cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any]) -> None:
    source, path = str(gateway_of(cluster, disk["id"])), disk["paths"][0]["address"]
    elsewhere = next(node for node in cluster.network.nodes if node != source)
    plan = sanderling("assignment", "plan", "--path", path, "--to", elsewhere)
    assert gateway_of(cluster, disk["id"]) == source, "a plan moves nothing"
    applied = sanderling("assignment", "apply", plan["plan_id"], "--wait")
    assert gateway_of(cluster, disk["id"]) == elsewhere
    assert sanderling("assignment", "show", applied["id"])["moves"][0]["state"] == "succeeded"
    assert applied["id"] in {one["id"] for one in sanderling("assignment", "list")}
    sanderling("assignment", "undo", applied["id"], "--wait")
    assert gateway_of(cluster, disk["id"]) == source


def test_an_assignment_that_is_cancelled_moves_nothing_more(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any]
) -> None:
    source, path = str(gateway_of(cluster, disk["id"])), disk["paths"][0]["address"]
    elsewhere = next(node for node in cluster.network.nodes if node != source)
    with no_conductor(cluster):
        asked = sanderling("assignment", "apply", "--path", path, "--to", elsewhere)
        sanderling("assignment", "cancel", asked["id"])
    sanderling.run("operation", "watch", asked["id"])
    (row,) = recorded(cluster, OperationRow, id=asked["id"])
    assert (row.state, gateway_of(cluster, disk["id"])) == (OperationState.CANCELLED, source)


def test_a_drained_gateway_serves_nothing_until_it_may_again(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any]
) -> None:
    source = str(gateway_of(cluster, disk["id"]))
    sanderling("gateway", "drain", source, "--confirm", source, "--wait")
    assert gateway_of(cluster, disk["id"]) not in {source, None}
    assert {one["name"]: one["drained"] for one in sanderling("gateway", "list")}[source]
    assert sanderling("gateway", "show", source)["exports"] == []
    sanderling("gateway", "undrain", source, "--wait")
    assert not sanderling("gateway", "show", source)["drained"]


def test_what_a_loss_would_leave_unserved_is_told(cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any]) -> None:
    source = str(gateway_of(cluster, disk["id"]))
    assert sanderling("gateway", "score")["ok"]
    lost = sanderling("whatif", "--lose", source)
    assert lost["moves"]["count"] >= 1
    assert lost["unserved"]["count"] == 0
    assert gateway_of(cluster, disk["id"]) == source, "it only asks"


def explained(sanderling: CommandLine, operation: dict[str, Any]) -> str:
    """What it waits for above all."""
    return str(sanderling("operation", "explain", operation["id"])["waits_for"][0]["cause"])


def test_an_operation_is_explained_cancelled_and_followed(cluster: Cluster, sanderling: CommandLine, unique: str) -> None:
    with no_conductor(cluster):
        asked = sanderling("disk", "create", unique, "--size", "64M", "--allow-any")
        behind = sanderling("disk", "stop", unique)
        waited(lambda: explained(sanderling, asked) == "no_conductor", within_s=90, what="no conductor is heard of")
        assert explained(sanderling, behind) == "queued"
        assert asked["id"] in {one["id"] for one in sanderling("operation", "list", "--state", "pending")}
        sanderling("operation", "cancel", behind["id"])
        sanderling("operation", "cancel", asked["id"])
    assert sanderling.run("operation", "watch", asked["id"]).returncode == 3
    assert sanderling("operation", "show", asked["id"])["state"] == "cancelled"
    assert {row.state for row in recorded(cluster, OperationRow, resource_name=unique)} == {OperationState.CANCELLED}
    assert recorded(cluster, DiskRow, name=unique) == []


def test_the_history_has_what_happened(sanderling: CommandLine, disk: dict[str, Any]) -> None:
    done = sanderling.run("event", "tail", "--after", "0", "--no-follow", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["kind"] for event in told if event["resource_id"] == disk["id"]]
    assert kinds[0] == "disk.creating", kinds
    assert "disk.started" in kinds


def test_the_leader_measures_and_tells(
    cluster: Cluster, sanderling: CommandLine, leader: str, disk: dict[str, Any], unique: str
) -> None:
    store = coordination.connect(cluster[leader].settings, clock=CLOCK)
    try:
        waited(lambda: leader_of(store, CLUSTER) is not None, within_s=90, what="somebody leads")
        leads = leader_of(store, CLUSTER)
    finally:
        store.close()
    assert leads is not None
    assert leads.node in {one["leader"]["node"] for one in sanderling("leader", "show") if one["leader"]}
    waited(lambda: bool(recorded(cluster, SampleRow, resource="cluster")), within_s=60, what="the cluster is measured")
    assert {"cluster", *(f"gateway/{node}" for node in cluster.network.nodes)} <= {
        row["resource"] for row in sanderling("statistics")
    }
    waited(lambda: bool(sanderling("statistics", "--disk", disk["id"])), within_s=60, what="the disk's exports are measured")
    with receiving(cluster) as (receiver, url):
        sanderling("notification", "create", unique, "--kind", "disk.stopped", typed=url)
        (row,) = recorded(cluster, RuleRow, name=unique)
        assert "canary-secret" not in str(vars(row)), "it is sealed"
        assert unique in {one["name"] for one in sanderling("notification", "list")}
        sanderling("notification", "test", unique)
        waited(lambda: len(receiver.keys) == 1, within_s=60, what="the test message arrives")
        sanderling("disk", "stop", disk["id"], "--wait")
        waited(lambda: len(receiver.keys) == 2, within_s=60, what="the event arrives")
        waited(lambda: sanderling("notification", "show", unique)["behind"] == 0, within_s=90, what="nothing waits")
        sanderling("notification", "delete", unique)
        assert recorded(cluster, RuleRow, name=unique) == []
    assert [row.state for row in recorded(cluster, DiskRow, id=disk["id"])] == [DiskState.STOPPED]


def test_the_doctor_looks_at_the_records_that_there_are(cluster: Cluster, tmp_path: Path, each_database: str) -> None:
    (cluster.folder / "api.ini").chmod(0o640)
    here = CommandLine(tmp_path / "none", SANDERLING_CONFIG=str(cluster.folder / "api.ini"), netns=cluster.network.parts)
    found = {one["check"]: one for one in here("doctor", "--role", "api")}
    assert found["records"]["state"] == "ok"
    assert each_database in found["records"]["seen"]


def test_a_key_that_was_made_seals_what_follows(tmp_path: Path, sanderling: CommandLine) -> None:
    file = tmp_path / "secrets.key"
    for count in (1, 2):
        assert sanderling.run("key", "new", str(file)).returncode == 0
        assert len(file.read_text().split()) == count
    first, last = file.read_text().split()
    assert sanderling.run("key", "promote", str(file)).returncode == 0
    assert file.read_text().split() == [last, first]
    assert file.stat().st_mode & 0o777 == 0o600
