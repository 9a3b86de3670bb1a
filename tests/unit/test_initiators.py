"""What initiators are told to set: times from the cluster's own bounds, every portal, and never a secret."""

from dataclasses import replace

import pytest

from sanderling.model.disks import Access, Chap, Disk, Path
from sanderling.model.initiators import Bounds, System, settings_for
from sanderling.settings import Settings, Worker

DISK = Disk(
    id="d",
    name="backup",
    iqn="iqn.2026-11.io.sanderling:backup",
    size_bytes=1 << 30,
    paths=(
        Path(index=1, address="10.1.0.100", prefix_len=24, interface="eth1", subnet="a"),
        Path(index=2, address="fd00::100", prefix_len=64, interface="eth2", subnet="b"),
    ),
)
BOUNDS = Bounds.of(Settings())


@pytest.mark.parametrize("system", System)
def test_every_portal_is_named_and_waits_are_longer_than_the_longest_gap(system: System) -> None:
    said = settings_for(system, DISK, BOUNDS)
    assert all(path.address in said for path in DISK.paths)
    assert f"longest gap is {BOUNDS.failover_s} s" in said
    assert str(BOUNDS.wait_s) in said or system is System.ESXI
    assert BOUNDS.wait_s >= 2 * BOUNDS.failover_s


def test_the_longest_gap_follows_the_settings() -> None:
    slower = replace(Settings(), iscsi_worker=Worker(target_start_timeout_s=25.0))
    assert Bounds.of(slower).failover_s == BOUNDS.failover_s + 10


@pytest.mark.parametrize("system", System)
def test_chap_names_are_quoted_and_sealed_secrets_are_left_out(system: System) -> None:
    chap = Chap(user="it's $(me)", secret="SEALED-1", mutual_user="san", mutual_secret="SEALED-2")
    said = settings_for(system, DISK.model_copy(update={"chap": chap}), BOUNDS)
    assert "SEALED" not in said
    assert "export SECRET" not in said, "what is typed is for the one command that needs it"
    assert ("'it''s $(me)'" if system is System.WINDOWS else "'it'\\''s $(me)'") in said


@pytest.mark.parametrize("system", System)
def test_mutual_chap_is_set_up_on_every_system_and_only_where_the_disk_has_it(system: System) -> None:
    one_way = Chap(user="host", secret="SEALED-1", mutual_secret="")
    both = one_way.model_copy(update={"mutual_user": "san", "mutual_secret": "SEALED-2"})
    said = {chap: settings_for(system, DISK.model_copy(update={"chap": chap}), BOUNDS) for chap in (one_way, both)}
    mutual = {System.OPEN_ISCSI: "username_in -v 'san'", System.ESXI: "--direction mutual", System.WINDOWS: "MUTUALCHAP"}[system]
    assert mutual in said[both]
    assert mutual not in said[one_way]
    assert "mutual CHAP secret" in said[both]


def test_the_longest_gap_counts_noticing_fencing_and_starting_at_their_bounds() -> None:
    configured = Settings()
    least = configured.coordination.check_ttl_s + configured.images.operation_timeout_s + configured.iscsi_worker.grace_s
    assert BOUNDS.failover_s >= least + configured.iscsi_worker.target_start_timeout_s


def test_operations_wait_in_multipath_and_not_in_the_session_where_there_are_several_paths() -> None:
    one = DISK.model_copy(update={"paths": DISK.paths[:1]})
    assert "replacement_timeout -v 5\n" in settings_for(System.OPEN_ISCSI, DISK, BOUNDS)
    assert f"replacement_timeout -v {BOUNDS.wait_s}\n" in settings_for(System.OPEN_ISCSI, one, BOUNDS)
    assert f"no_path_retry {BOUNDS.wait_s // 2}\n" in settings_for(System.OPEN_ISCSI, DISK, BOUNDS)


def test_paths_of_a_shared_disk_are_used_one_at_a_time() -> None:
    shared = DISK.model_copy(update={"access": Access.SHARED})
    assert "path_grouping_policy failover" in settings_for(System.OPEN_ISCSI, shared, BOUNDS)
    assert "path_grouping_policy multibus" in settings_for(System.OPEN_ISCSI, DISK, BOUNDS)
    assert "VMW_PSP_FIXED" in settings_for(System.ESXI, shared, BOUNDS)
    assert "-Policy FOO" in settings_for(System.WINDOWS, shared, BOUNDS)
