"""What a plan is made from: read from the records and coordination together."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path as Folder

import pytest
from sqlalchemy.orm import Session

from sanderling import layouts
from sanderling.clock import SystemClock
from sanderling.coordination.base import Entry
from sanderling.model.balance import PlannedMove
from sanderling.model.disks import Access, Disk, DiskState, Path
from sanderling.model.exports import Export, ExportId, Front, Gateway, Store
from sanderling.model.subnets import Subnet
from sanderling.records import disks, marks, subnets
from sanderling.records.database import Records
from sanderling.settings import Records as RecordsSettings

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SUBNET = Subnet(name="s", cidr="10.0.0.0/24", interface="eth0", pool_first="10.0.0.1", pool_last="10.0.0.99")


@pytest.fixture
def session(tmp_path: Folder) -> Iterator[Session]:
    records = Records(RecordsSettings(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=SystemClock())
    records.migrate()
    with records.begin() as session:
        subnets.insert(session, SUBNET, now=NOW, actor="t")
        for number, (name, state) in enumerate([("a", DiskState.STARTED), ("b", DiskState.STARTED), ("c", DiskState.STOPPED)]):
            access = Access.SHARED if name == "b" else Access.EXCLUSIVE
            disks.insert(session, disk(name, number, access, started=state is DiskState.STARTED), now=NOW, state=state)
        yield session
    records.close()


def disk(name: str, number: int, access: Access, *, started: bool) -> Disk:
    paths = tuple(
        Path(index=index, address=f"10.0.0.{10 * number + index}", prefix_len=24, interface="eth0", subnet="s")
        for index in (1, 2)
    )
    return Disk(id=name, name=name, iqn=f"iqn.x:{name}", size_bytes=512, access=access, paths=paths, started=started)


def export(disk_id: str, index: int, node: str, *, session: str | None = "s") -> Entry:
    return Entry(f"exports/{disk_id}/{index}", Export(generation=1, node=node).model_dump_json().encode(), 1, session)


def gateway(name: str, *, session: str | None = "s", **more: object) -> Entry:
    return Entry(f"nodes/{name}", Gateway.model_validate({"name": name, **more}).model_dump_json().encode(), 1, session)


def test_every_started_export_has_its_owner_or_none_and_a_stopped_disk_has_no_place(session: Session) -> None:
    entries = [export("a", 0, "n1"), export("b", 1, "n2"), export("b", 2, "n1", session=None), export("c", 0, "n1")]
    layout = layouts.of(session, [*entries, Entry("exports/b/x", b"", 1)], []).layout
    assert layout.owners == {ExportId("a", 0): "n1", ExportId("b", 1): "n2", ExportId("b", 2): None}


def test_a_value_that_cannot_be_read_is_an_export_without_owner(session: Session) -> None:
    layout = layouts.of(session, [Entry("exports/a/0", b"{", 1, "s")], []).layout
    assert layout.owners[ExportId("a", 0)] is None


def test_who_is_dead_or_withdrawing_is_no_gateway_and_who_is_drained_or_has_no_store_gets_nothing_new(session: Session) -> None:
    marks.drain(session, "n3", is_drained=True, now=NOW, actor="t", operation_id="o")
    entries = [
        gateway("n1"),
        gateway("n2", session=None),
        gateway("n3"),
        gateway("n4", withdrawing=True),
        gateway("n6", store=Store(cut_off=True)),
    ]
    layout = layouts.of(session, [], entries).layout
    assert layout.gateways == {"n1", "n3", "n6"}
    assert layout.usable == {"n1"}


def test_who_is_cut_off_on_a_network_is_kept_from_the_disks_with_a_path_there_and_from_no_other(session: Session) -> None:
    far = disk("far", 4, Access.EXCLUSIVE, started=True)
    paths = tuple(path.model_copy(update={"interface": "eth9"}) for path in far.paths)
    disks.insert(session, far.model_copy(update={"paths": paths}), now=NOW, state=DiskState.STARTED)
    marks.mark_disk(session, "a", pin=None, avoid=frozenset({"n1"}), now=NOW, actor="t", operation_id="o")
    situation = layouts.of(session, [], [gateway("n1"), gateway("n2", front=Front(cut_off=("eth0",)))])
    assert situation.layout.usable == {"n1", "n2"}
    assert situation.layout.avoid == {"a": {"n1", "n2"}, "b": {"n2"}}
    assert situation.avoid == {"a": {"n1"}}, "what people have marked"


def test_a_move_names_the_disk_and_the_addresses_that_go_along(session: Session) -> None:
    situation = layouts.of(session, [], [])
    move = situation.move(0, PlannedMove(ExportId("a", 0), None, "n1"))
    assert (move.disk_name, move.addresses, move.source) == ("a", ("10.0.0.1", "10.0.0.2"), "")
    assert situation.move(1, PlannedMove(ExportId("b", 2), "n2", "n1")).addresses == ("10.0.0.12",)
