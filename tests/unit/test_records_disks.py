"""The index of disks: every move is the table's, every move is in the history, and the history tells the state."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.errors import Conflict, Exhausted, IdempotencyMismatch, InUse, InvalidInput, NotFound, TransitionRefused
from sanderling.model.disks import DISKS, Disk, DiskEvent, DiskState
from sanderling.model.disks import Path as DiskPath
from sanderling.model.operations import OperationKind
from sanderling.model.subnets import Subnet
from sanderling.records import disks, events, idempotency, operations, subnets
from sanderling.records.database import Records
from sanderling.records.tables import DiskRow, PathRow, SubnetRow

CLOCK = SystemClock()
NOW = CLOCK.wall()


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=CLOCK)
    opened.migrate()
    with opened.begin() as session:
        for name, number in (("a", 1), ("b", 2)):
            subnet = Subnet(
                name=name,
                cidr=f"10.{number}.0.0/29",
                interface="eth1",
                pool_first=f"10.{number}.0.1",
                pool_last=f"10.{number}.0.6",
            )
            subnets.insert(session, subnet, now=NOW, actor="test")
    yield opened
    opened.close()


def disk(name: str, *paths: DiskPath) -> Disk:
    return Disk(id=f"id-{name}", name=name, iqn=f"iqn.2026-11.test:{name}", size_bytes=512, paths=paths, initiators=("iqn.x",))


def path(index: int, address: str, subnet: str = "a") -> DiskPath:
    return DiskPath(index=index, address=address, prefix_len=29, interface="eth1", subnet=subnet)


@pytest.mark.parametrize("state", list(DiskState))
@pytest.mark.parametrize("event", list(DiskEvent))
def test_a_disk_moves_by_its_table_and_only_by_it(records: Records, state: DiskState, event: DiskEvent) -> None:
    with records.begin() as session:
        disks.insert(session, disk("db", path(1, "10.1.0.1")), now=NOW, state=state)
    try:
        with records.begin() as session:
            moved = disks.apply(session, "id-db", event, now=NOW, actor="c", operation_id="o", started=True, revision=7)
        assert DISKS.allows(state, event)
        assert (moved.state, moved.started, moved.revision) == (DISKS.next(state, event).value, True, 7)
    except TransitionRefused:
        assert not DISKS.allows(state, event)
        with records.read() as session:
            assert disks.get(session, "id-db").state == state.value


def test_a_disk_is_described_as_it_was_inserted(records: Records) -> None:
    described = disk("db", path(1, "10.1.0.1"), path(2, "10.2.0.1", "b"))
    with records.begin() as session:
        disks.insert(session, described, now=NOW, state=DiskState.CREATING)
    with records.read() as session:
        assert disks.describe(disks.by_name(session, "db")) == described
        assert [p.index for p in disks.by_name(session, "db").paths] == [1, 2]


def test_the_history_of_a_disk_replayed_gives_its_state(records: Records) -> None:
    with records.begin() as session:
        disks.insert(session, disk("db"), now=NOW, state=DiskState.CREATING)
        for event in (DiskEvent.STARTED, DiskEvent.STOP, DiskEvent.FAIL, DiskEvent.DELETE):
            disks.apply(session, "id-db", event, now=NOW, actor="c", operation_id=None)
    with records.read() as session:
        kinds = [e.kind for e in events.page(session, after=0, limit=100, resource_id="id-db")]
        assert kinds[-1] == f"disk.{disks.get(session, 'id-db').state}" == "disk.deleting"


@pytest.mark.rows("W-PA-25")
def test_a_forgotten_disk_frees_its_name_its_iqn_and_its_addresses(records: Records) -> None:
    with records.begin() as session:
        disks.insert(session, disk("db", path(1, "10.1.0.1")), now=NOW, state=DiskState.DELETING)
    with records.begin() as session:
        disks.forget(session, "id-db", now=NOW, actor="c", operation_id="o")
    with records.begin() as session:
        assert session.query(PathRow).count() == 0
        disks.insert(session, disk("db", path(1, "10.1.0.1")), now=NOW, state=DiskState.CREATING)
        assert [e.kind for e in events.page(session, after=0, limit=9, operation_id="o")] == ["disk.deleted"]


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (disk("db"), "name"),
        (disk("two").model_copy(update={"iqn": "iqn.2026-11.test:db"}), "iqn"),
        (disk("two", path(1, "10.1.0.2"), path(2, "10.1.0.1")), "addresses[1]"),
    ],
)
def test_what_another_disk_has_is_a_conflict_that_names_the_field(records: Records, other: Disk, field: str) -> None:
    with records.begin() as session:
        disks.insert(session, disk("db", path(1, "10.1.0.1")), now=NOW, state=DiskState.CREATING)
    with pytest.raises(Conflict) as caught, records.begin() as session:
        disks.insert(session, other, now=NOW, state=DiskState.CREATING)
    assert caught.value.context["field"] == field


def test_the_schema_itself_keeps_an_address_from_two_disks(records: Records) -> None:
    with records.begin() as session:
        disks.insert(session, disk("one", path(1, "10.1.0.1")), now=NOW, state=DiskState.CREATING)
        disks.insert(session, disk("two", path(1, "10.1.0.2")), now=NOW, state=DiskState.CREATING)
    with pytest.raises(IntegrityError), records.begin() as session:
        session.get_one(PathRow, ("id-two", 1)).address = "10.1.0.1"


def test_siblings_are_spread_and_a_full_subnet_is_passed_over(records: Records) -> None:
    with records.begin() as session:
        assert [p.subnet for p in subnets.allocate(session, 4)] == ["a", "b", "a", "b"]
        held = subnets.allocate(session, 5, names=["a"])
        disks.insert(session, disk("db", *held), now=NOW, state=DiskState.CREATING)
        assert [p.subnet for p in subnets.allocate(session, 4)] == ["b", "a", "b", "b"]
        with pytest.raises(Exhausted, match="path 2 of 2"):
            subnets.allocate(session, 2, names=["a"])


def test_the_lowest_address_that_is_free_is_taken(records: Records) -> None:
    with records.begin() as session:
        disks.insert(session, disk("db", path(1, "10.1.0.1"), path(2, "10.1.0.3")), now=NOW, state=DiskState.CREATING)
        assert [p.address for p in subnets.allocate(session, 2, names=["a"])] == ["10.1.0.2", "10.1.0.4"]


@pytest.mark.parametrize(("cidr", "pool"), [("10.3.0.0/24", "10.3.0.{}"), ("fd00:3::/64", "fd00:3::{:x}")])
def test_the_search_goes_on_where_it_ended_and_back_for_what_was_given_back(records: Records, cidr: str, pool: str) -> None:
    def insert(name: str, *numbers: int) -> None:
        paths = [path(index, pool.format(number), "c") for index, number in enumerate(numbers, start=1)]
        with records.begin() as session:
            disks.insert(session, disk(name, *paths), now=NOW, state=DiskState.DELETING)

    def free(count: int = 1) -> list[str]:
        with records.begin() as session:
            return [p.address for p in subnets.allocate(session, count, names=["c"])]

    def begins_at() -> str | None:
        with records.read() as session:
            return session.get_one(SubnetRow, "c").free_from

    ends = {"pool_first": pool.format(10), "pool_last": pool.format(49)}
    with records.begin() as session:
        subnets.insert(session, Subnet(name="c", cidr=cidr, interface="e", **ends), now=NOW, actor="test")
    insert("below", 2)
    insert("early", 10)
    insert("most", *range(11, 40))
    assert (free(2), begins_at()) == ([pool.format(40), pool.format(41)], pool.format(40))
    for name, found in (("below", 40), ("early", 10), ("most", 10)):
        with records.begin() as session:
            disks.forget(session, f"id-{name}", now=NOW, actor="c", operation_id=None)
        assert free() == [pool.format(found)]
    insert("all", *range(10, 49))
    assert free() == [pool.format(49)]
    with records.begin() as session:  # as one that knew nothing of it would leave it
        session.execute(delete(DiskRow).where(DiskRow.id == "id-all"))
    assert free(2) == [pool.format(49), pool.format(10)]


def test_the_one_address_that_is_free_among_very_many_is_found(records: Records) -> None:
    pool = [f"10.4.{number // 256}.{number % 256}" for number in range(1, 1400)]
    with records.begin() as session:
        wide = Subnet(name="wide", cidr="10.4.0.0/16", interface="e", pool_first=pool[0], pool_last=pool[-1])
        subnets.insert(session, wide, now=NOW, actor="test")
        paths = [path(index, address, "wide") for index, address in enumerate(pool, start=1) if address != pool[1300]]
        disks.insert(session, disk("db", *paths), now=NOW, state=DiskState.CREATING)
        assert [p.address for p in subnets.allocate(session, 1, names=["wide"])] == [pool[1300]]
        with pytest.raises(Exhausted):
            subnets.allocate(session, 2, names=["wide"])


def test_the_next_search_does_not_begin_behind_what_is_free(records: Records) -> None:
    """The second path's address is beyond the few that are looked at first; the first's is still nobody's."""
    with records.begin() as session:
        subnet = Subnet(name="c", cidr="10.3.0.0/24", interface="e", pool_first="10.3.0.1", pool_last="10.3.0.99")
        subnets.insert(session, subnet, now=NOW, actor="test")
        taken = [path(number, f"10.3.0.{number + 1}", "c") for number in range(1, 20)]
        disks.insert(session, disk("db", *taken), now=NOW, state=DiskState.CREATING)
        assert [p.address for p in subnets.allocate(session, 2, names=["c"])] == ["10.3.0.1", "10.3.0.21"]
        assert [p.address for p in subnets.allocate(session, 1, names=["c"])] == ["10.3.0.1"]


def test_an_address_is_placed_only_where_a_subnet_holds_it(records: Records) -> None:
    with records.begin() as session:
        assert subnets.place(session, ["10.2.0.5"])[0].subnet == "b"
        for addresses, names in ((["10.3.0.1"], None), (["10.2.0.5"], ["a"]), (["10.1.0.7"], None), (["10.1.0.1"] * 2, None)):
            with pytest.raises(InvalidInput):
                subnets.place(session, addresses, names=names)


def test_a_subnet_in_use_stays(records: Records) -> None:
    with records.begin() as session:
        disks.insert(session, disk("db", path(1, "10.1.0.1")), now=NOW, state=DiskState.CREATING)
    with pytest.raises(InUse), records.begin() as session:
        subnets.remove(session, "a", now=NOW, actor="test")
    with pytest.raises(NotFound), records.begin() as session:
        subnets.remove(session, "c", now=NOW, actor="test")
    with records.begin() as session:
        subnets.remove(session, "b", now=NOW, actor="test")
        assert [s.name for s in subnets.page(session, limit=9)] == ["a"]


def test_lists_go_on_after_a_marker_whose_row_is_gone(records: Records) -> None:
    with records.begin() as session:
        for name in ("a", "b", "c"):
            disks.insert(session, disk(name), now=NOW, state=DiskState.DELETING)
        disks.forget(session, "id-b", now=NOW, actor="c", operation_id=None)
        assert [row.name for row in disks.page(session, marker="b", limit=9)] == ["c"]
        assert [row.name for row in disks.page(session, limit=9, name_contains="%")] == []


def test_a_key_stands_for_one_request_of_one_caller(records: Records) -> None:
    with records.begin() as session:
        made = operations.submit(
            session,
            kind=OperationKind.START_DISK,
            resource_id="d",
            resource_name="db",
            params={},
            steps=(),
            requested_by="ann",
            now=NOW,
        )
        idempotency.remember(session, actor="ann", key="k", digest="one", operation_id=made.id, now=NOW)
        assert idempotency.find(session, actor="ann", key="k", digest="one") == made.id
        assert idempotency.find(session, actor="bob", key="k", digest="one") is None
        with pytest.raises(IdempotencyMismatch):
            idempotency.find(session, actor="ann", key="k", digest="two")
