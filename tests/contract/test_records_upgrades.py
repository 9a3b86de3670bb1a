"""Records of the first release, brought up to date: every disk is what it was, and what was under way goes on."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData, Table, create_engine, insert

from sanderling import settings
from sanderling.clock import ManualClock
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.disks import Path as DiskPath
from sanderling.model.operations import OperationKind, OperationState
from sanderling.records import disks, operations, subnets
from sanderling.records.database import MIGRATIONS, Records

AT = datetime(2026, 1, 1, tzinfo=UTC)
DISK = Disk(
    id="6f2c6f4e-0000-4000-8000-000000000001",
    name="backup",
    iqn="iqn.2026-11.io.sanderling:backup",
    size_bytes=1 << 30,
    access=Access.SHARED,
    paths=(DiskPath(index=1, address="10.1.0.100", prefix_len=24, interface="eth1", subnet="front"),),
    initiators=("iqn.1993-08.org.debian:01:host1",),
    started=True,
    revision=7,
    generation=3,
)


def first_release(url: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Records as the first release made them, with these rows."""
    config, engine = Config(), create_engine(url)
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for name, values in rows.items():
            table = Table(name, MetaData(), autoload_with=connection)
            connection.execute(insert(table), values)
    engine.dispose()


def test_a_disk_of_the_first_release_is_what_it_was_and_no_export_is_started_again_for_the_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/records.sqlite"
    subnet = {"name": "front", "cidr": "10.1.0.0/24", "interface": "eth1", "pool_first": "10.1.0.100", "pool_last": "10.1.0.199"}
    described = DISK.model_dump(mode="json", include={"id", "name", "iqn", "size_bytes", "access", "initiators", "allow_any"})
    state = {"state": "stopping", "started": True, "revision": 7, "generation": 3, "created_at": AT, "changed_at": AT}
    operation = {"id": "o", "kind": "disk.stop", "resource_id": DISK.id, "resource_name": "backup", "state": "running"}
    claim = {"params": {"was": "started"}, "requested_by": "alice", "cancel_requested": False, "claim_epoch": 4, "created_at": AT}
    step = {"operation_id": "o", "position": 0, "name": "describe_stopped", "state": "running", "deadline_s": 60.0, "attempts": 1}
    first_release(
        url,
        {
            "subnets": [subnet | {"created_at": AT}],
            "disks": [described | state],
            "paths": [DISK.paths[0].model_dump() | {"disk_id": DISK.id}],
            "operations": [operation | claim],
            "steps": [step],
        },
    )
    records = Records(settings.Records(url=url), clock=ManualClock())
    records.migrate()
    with records.read() as session:
        found = disks.describe(disks.by_name(session, "backup"))
        assert found == DISK
        assert found.export_revision == DISK.revision, "what runs was started at that one"
        assert subnets.get(session, "front").pool_last == "10.1.0.199"
        going = operations.get(session, "o")
        assert (going.kind, going.state, [step.name for step in going.steps]) == (
            OperationKind.STOP_DISK,
            OperationState.RUNNING,
            ["describe_stopped"],
        )
        assert DiskState(disks.by_name(session, "backup").state) is DiskState.STOPPING
    with records.begin() as session:
        claimed = operations.claim(session, "o", conductor="c2", now=datetime(2026, 1, 2, tzinfo=UTC), ttl_s=5)
        assert claimed is not None
        assert claimed.claim_epoch == 5
    records.close()
