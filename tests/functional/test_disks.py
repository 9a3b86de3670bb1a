"""What can be done with a disk, by the command line as its own process; each effect is seen at the initiator or in Ceph."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rados
import rbd

from cli.lab.cluster import Cluster
from cli.lab.initiator import SECTOR, Initiator
from cli.lab.parts.daemons import waited
from sanderling import images, secrets
from sanderling.clock import SystemClock
from sanderling.errors import TargetFailed
from sanderling.model.disks import image_of
from sanderling.records.tables import DiskRow
from tests.functional.command_line import CommandLine, records
from tests.functional.test_serving import inside, writing

pytestmark = pytest.mark.usefixtures("each_database")

CLOCK = SystemClock()
HOST = "iqn.2026-11.io.sanderling.tests:host"
OTHER = "iqn.2026-11.io.sanderling.tests:other"
SECRET, MUTUAL = "one-way-s3cret", "mutual-s3cret!"


def connected(cluster: Cluster, disk: dict[str, Any], *, name: str = HOST, timeout_s: float = 10.0, **login: Any) -> Initiator:
    with inside(cluster.network.initiator):
        portals = [f"{path['address']}:3260" for path in disk["paths"]]
        initiator = Initiator(disk["iqn"], portals, initiator_name=name, timeout_s=timeout_s, **login)
        try:
            initiator.login()
        except TargetFailed:
            initiator.close()
            raise
        return initiator


def lets_in(cluster: Cluster, disk: dict[str, Any], **how: Any) -> bool:
    """Whether an initiator gets in within a few tries."""
    try:
        connected(cluster, disk, timeout_s=2.0, **how).close()
    except TargetFailed:
        return False
    return True


@contextlib.contextmanager
def image(cluster: Cluster, disk_id: str, snapshot: str | None = None) -> Iterator[Any]:
    ceph = rados.Rados(conffile=cluster.ceph.conf, rados_id=cluster.ceph.user)
    ceph.connect(timeout=10)
    try:
        with (
            ceph.open_ioctx(cluster.ceph.pool) as pool,
            rbd.Image(pool, image_of(disk_id), snapshot=snapshot, read_only=True) as opened,
        ):
            yield opened
    finally:
        ceph.shutdown()


@contextlib.contextmanager
def left_over(cluster: Cluster, disk_id: str, snapshot: str) -> Iterator[str]:
    """The name of a clone of the snapshot that no disk has."""
    name = image_of(str(uuid.uuid4()))
    ceph = rados.Rados(conffile=cluster.ceph.conf, rados_id=cluster.ceph.user)
    ceph.connect(timeout=10)
    try:
        with ceph.open_ioctx(cluster.ceph.pool) as pool:
            rbd.RBD().clone(pool, image_of(disk_id), snapshot, pool, name)
            try:
                yield name
            finally:
                rbd.RBD().remove(pool, name)
    finally:
        ceph.shutdown()


def description(cluster: Cluster, disk: dict[str, Any]) -> dict[str, Any]:
    """What the image says of itself."""
    with image(cluster, disk["id"]) as opened:
        told: dict[str, Any] = json.loads(opened.metadata_get("sanderling.disk"))
    return told


@pytest.mark.rows("PA-11")
def test_what_is_said_of_a_disk_and_its_paths_stands_on_its_image(cluster: Cluster, disk: dict[str, Any]) -> None:
    told = description(cluster, disk)
    assert [told[field] for field in ("id", "name", "iqn")] == [disk[field] for field in ("id", "name", "iqn")]
    fields = ("index", "address", "prefix_len", "interface", "subnet")
    assert [[path[field] for field in fields] for path in told["paths"]] == [
        [path[field] for field in fields] for path in disk["paths"]
    ]


def test_a_renamed_disk_keeps_its_sessions_its_iqn_and_its_data(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    with writing(cluster, disk, attempt_s=20.0) as writer:
        sanderling("disk", "rename", unique, f"{unique}-b", "--wait")
        writer.wrote(50)
        assert writer.logins == 1
    assert description(cluster, disk)["name"] == f"{unique}-b"
    shown = sanderling("disk", "show", f"{unique}-b")
    assert (shown["id"], shown["iqn"], shown["state"]) == (disk["id"], disk["iqn"], "started")
    assert "there is no disk" in sanderling.refused("disk", "show", unique)


def test_a_grown_disk_is_larger_at_the_initiator_and_lost_no_write_on_the_way(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    with writing(cluster, disk) as writer:
        sanderling("disk", "grow", unique, "--size", "96M", "--wait")
        writer.wrote(50)
    with image(cluster, disk["id"]) as opened:
        assert opened.size() == 96 << 20
        assert writer.history.check(lambda lba: bytes(opened.read(lba * SECTOR, SECTOR))) == []
    initiator = connected(cluster, disk)
    try:
        assert initiator.sectors() == (96 << 20) // SECTOR
        initiator.write((96 << 20) // SECTOR - 1, b"e" * SECTOR)
        assert initiator.read((96 << 20) // SECTOR - 1) == b"e" * SECTOR
    finally:
        initiator.close()
    assert "cut off is lost" in sanderling.refused("disk", "grow", unique, "--size", "64M")


def test_who_may_log_in_is_changed_and_who_no_longer_may_is_disconnected(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    guest = connected(cluster, disk, name=OTHER, timeout_s=5.0)
    sanderling("disk", "allow", unique, "--initiator", HOST, "--wait")
    with inside(cluster.network.initiator), pytest.raises(TargetFailed):
        guest.read(0)
    guest.close()
    assert lets_in(cluster, disk, name=HOST)
    assert not lets_in(cluster, disk, name=OTHER)
    sanderling("disk", "allow", unique, "--nobody", "--wait")
    assert not lets_in(cluster, disk, name=HOST)
    sanderling("disk", "allow", unique, "--any", "--wait")
    assert lets_in(cluster, disk, name=OTHER)


def test_chap_one_way_and_mutual_is_asked_for_and_never_shown(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str, tmp_path: Path
) -> None:
    mutual = tmp_path / "mutual"
    mutual.write_text(MUTUAL)
    sanderling("disk", "chap", unique, "--user", "host", "--secret-file", "-", "--wait", typed=f"{SECRET}\n")
    assert lets_in(cluster, disk, login=("host", SECRET))
    assert not lets_in(cluster, disk)
    assert not lets_in(cluster, disk, login=("host", MUTUAL))
    both = ("--user", "host", "--mutual-user", "san", "--mutual-secret-file", str(mutual), "--secret-file", "-")
    sanderling("disk", "chap", unique, *both, "--wait", typed=f"{SECRET}\n")
    assert lets_in(cluster, disk, login=("host", SECRET), target_login=("san", MUTUAL))
    assert not lets_in(cluster, disk, login=("host", SECRET), target_login=("san", "not-the-s3cret"))
    assert sanderling("disk", "show", unique)["chap"] == {"user": "host", "mutual_user": "san"}
    told = json.dumps(
        [
            description(cluster, disk),
            sanderling("disk", "show", unique),
            cluster.http.get("/v1/events", params={"after": 0}).json(),
        ]
    )
    assert SECRET not in told
    assert MUTUAL not in told
    for process in cluster.processes.values():
        assert SECRET not in process.log_file.read_text()
    for wrong in ("short", "much-too-long-a-secret", "twelve blanks"):
        said = sanderling.refused("disk", "chap", unique, "--user", "host", "--secret-file", "-", typed=f"{wrong}\n")
        assert "chap.secret" in said
        assert wrong not in said
    sanderling("disk", "chap", unique, "--off", "--wait")
    assert lets_in(cluster, disk)


def test_without_the_key_a_disk_is_not_served_and_says_so_and_with_it_as_second_it_is(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    sanderling("disk", "chap", unique, "--user", "host", "--secret-file", "-", "--wait", typed=f"{SECRET}\n")
    sanderling("disk", "stop", unique, "--wait")
    key, api = cluster.key_file.read_text(), cluster["api"]  # which says how long each step may take
    patient = api.settings
    api.settings = replace(patient, conductor=replace(patient.conductor, serve_deadline_s=5.0))
    api.restart()
    cluster.wait_until_ready()
    try:
        cluster.key_file.unlink()
        secrets.add(cluster.key_file)
        said = sanderling.refused("disk", "start", unique, "--wait")
        assert "does not hold" in said
        assert "secret-unreadable" in said or "sealed with a key" in said
    finally:
        cluster.key_file.write_text(cluster.key_file.read_text() + key)
        api.settings = patient
        api.restart()
        cluster.wait_until_ready()
    waited(
        lambda: sanderling.run("disk", "start", unique, "--wait").returncode == 0,
        within_s=60,
        what="the gateways try the export again",
    )
    assert lets_in(cluster, disk, login=("host", SECRET))


def test_a_snapshot_under_io_holds_every_write_up_to_one_moment_and_none_after_it(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    with writing(cluster, disk, attempt_s=20.0) as writer:
        writer.wrote(200)
        before = writer.count
        sanderling("snapshot", "create", unique, "now", "--wait")
        after = writer.count + 1
        writer.wrote(200)
        assert writer.logins == 1
    with image(cluster, disk["id"], "now") as kept:
        found = {lba: bytes(kept.read(lba * SECTOR, SECTOR)) for lba in writer.history.sent}
    numbers = {lba: writer.history.number(sector) or 0 for lba, sector in found.items()}
    moment = max(numbers.values())
    assert before <= moment <= after
    for lba, sent in writer.history.sent.items():
        assert numbers[lba] == max((number for number in sent if number <= moment), default=0), lba
    (listed,) = sanderling("snapshot", "list", unique)
    assert (listed["name"], listed["size_bytes"], listed["clones"]) == ("now", 64 << 20, [])


def test_a_disk_goes_back_to_a_snapshot_and_a_clone_goes_on_from_it(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    initiator = connected(cluster, disk)
    initiator.write(0, b"o" * SECTOR)
    sanderling("snapshot", "create", unique, "before", "--wait")
    initiator.write(0, b"n" * SECTOR)
    initiator.close()
    clone = f"{unique}-c"
    sanderling("snapshot", "clone", unique, "before", "--to", clone, "--allow-any", "--wait")
    try:
        shown = sanderling("disk", "show", clone)
        copied = connected(cluster, shown)
        assert copied.read(0) == b"o" * SECTOR
        copied.write(0, b"c" * SECTOR)
        copied.close()
        with left_over(cluster, disk["id"], "before") as stray:
            said = sanderling.refused("snapshot", "delete", unique, "before")
            assert f"disk {clone}" in said
            assert f"image {stray}" in said
            assert "disk recover" in said
        said = sanderling.refused("disk", "delete", unique, "--force", "--confirm", unique)
        assert f"has clones: disk {clone}; delete them first" in said
        assert "recover" not in said
    finally:
        cluster.delete_disk(clone)
    assert "cannot roll_back" in sanderling.refused("snapshot", "rollback", unique, "before", "--confirm", unique)
    sanderling("disk", "stop", unique, "--wait")
    assert "confirm" in sanderling.refused("snapshot", "rollback", unique, "before")
    sanderling("snapshot", "rollback", unique, "before", "--confirm", unique, "--wait")
    sanderling("disk", "start", unique, "--wait")
    again = connected(cluster, disk)
    assert again.read(0) == b"o" * SECTOR
    again.close()
    sanderling("disk", "stop", unique, "--wait")
    assert "has snapshots" in sanderling.refused("disk", "delete", unique)
    sanderling("snapshot", "delete", unique, "before", "--wait")
    assert sanderling("snapshot", "list", unique) == []


def test_a_snapshot_right_after_a_move_and_a_stop_waits_for_no_client_that_has_ended(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    """Whom Ceph lists is waited for, a client that was killed for up to 30 s: it is fenced, and the one that serves is not."""
    address, source = disk["paths"][0]["address"], disk["paths"][0]["gateway"]
    heir = next(node for node in cluster.network.nodes if node != source)
    with contextlib.closing(images.connect(cluster.settings(), clock=CLOCK)) as store:
        (moved,) = store.clients(image_of(disk["id"]))
        sanderling("assignment", "apply", "--path", address, "--to", heir, "--wait")
        sanderling("snapshot", "create", unique, "moved", "--wait")
        (stopped,) = store.clients(image_of(disk["id"]))
        assert (store.is_fenced(moved), store.is_fenced(stopped)) == (True, False)
        sanderling("disk", "stop", unique, "--wait")
        sanderling("snapshot", "create", unique, "stopped", "--wait")
        assert store.clients(image_of(disk["id"])) == ()
        assert store.is_fenced(stopped)


def test_connections_are_those_that_initiators_have(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    def shown() -> list[tuple[str, str]]:
        found = sanderling("disk", "connections", unique)["connections"]
        return sorted((one["initiator"], one["address"]) for one in found)

    assert shown() == []
    first, second = connected(cluster, disk, name=HOST), connected(cluster, disk, name=OTHER)
    address = disk["paths"][0]["address"]
    waited(lambda: shown() == sorted([(HOST, address), (OTHER, address)]), within_s=15, what="both connections are shown")
    first.close()
    second.close()
    waited(lambda: shown() == [], within_s=15, what="no connection is shown")


def test_usage_counts_what_was_written_and_settings_name_every_path(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    assert sanderling("disk", "usage", unique)["used_bytes"] == 0
    initiator = connected(cluster, disk)
    initiator.write(0, b"u" * SECTOR)
    initiator.close()
    assert 0 < sanderling("disk", "usage", unique)["used_bytes"] <= 4 << 20
    for system in ("open-iscsi", "esxi", "windows"):
        said = sanderling.run("disk", "initiator-settings", unique, "--for", system).stdout
        assert all(path["address"] in said for path in disk["paths"]), said
        assert "SANDRLNG" in said


def test_a_schedule_takes_snapshots_by_itself_and_keeps_as_many_as_were_asked_for(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    with writing(cluster, disk, attempt_s=20.0) as writer:
        sanderling("snapshot", "schedule", unique, "--every", "1h", "--keep", "1", "--wait")
        before: list[str] = []
        for _ in range(2):
            with records(cluster) as session:
                session.get_one(DiskRow, disk["id"]).snapshot_due_at = CLOCK.wall()

            def another(before: list[str] = before) -> bool:
                there = [one["name"] for one in sanderling("snapshot", "list", unique)]
                return len(there) == 1 and there != before

            waited(another, within_s=60, what="a snapshot that was due is there, and none but that")
            before = [one["name"] for one in sanderling("snapshot", "list", unique)]
        assert writer.logins == 1
    sanderling("snapshot", "schedule", unique, "--off", "--wait")
    assert sanderling("disk", "show", unique)["schedule"] is None


def test_disks_are_recovered_from_ceph_alone_with_paths_iqns_and_chap(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str
) -> None:
    sanderling("disk", "chap", unique, "--user", "host", "--secret-file", "-", "--wait", typed=f"{SECRET}\n")
    before = sanderling("disk", "show", unique)
    initiator = connected(cluster, disk, login=("host", SECRET))
    initiator.write(0, b"r" * SECTOR)

    with records(cluster) as session:
        session.delete(session.get(DiskRow, disk["id"]))
    assert "there is no disk" in sanderling.refused("disk", "show", unique)
    assert initiator.read(0) == b"r" * SECTOR, "who serves a disk does not ask the records"
    sanderling("disk", "recover", "--wait")
    after = sanderling("disk", "show", unique)
    changing = ("changed_at", "created_at", "connected", "paths")
    assert {name: value for name, value in after.items() if name not in changing} == {
        name: value for name, value in before.items() if name not in changing
    }
    assert [path["address"] for path in after["paths"]] == [path["address"] for path in before["paths"]]
    assert initiator.read(0) == b"r" * SECTOR
    assert initiator.logins == 1
    initiator.close()
    assert lets_in(cluster, disk, login=("host", SECRET))
