"""What the records promise of lists and look-ups.  Runs on every database: each has its own idea of text, JSON and order."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from sanderling.clock import ManualClock
from sanderling.errors import Conflict, IdempotencyMismatch, InUse
from sanderling.model.balance import Layout
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.exports import ExportId
from sanderling.model.marks import Marks
from sanderling.model.moves import Move, MoveEvent, MoveState
from sanderling.model.subnets import Subnet
from sanderling.records import (
    assignments,
    disks,
    events,
    gaps,
    idempotency,
    marks,
    moves,
    notifications,
    operations,
    plans,
    subnets,
    tokens,
)
from sanderling.records.database import Records
from sanderling.settings import Conductor
from sanderling.settings import Records as RecordsSettings

NAMES = ("a", "a-b", "ab", "b1", "b-2", "b0c")


@pytest.fixture
def records(url: str) -> Iterator[Records]:
    opened = Records(RecordsSettings(url=url), clock=ManualClock())
    with opened.begin() as session:
        subnet = Subnet(name="front", cidr="10.1.0.0/24", interface="eth1", pool_first="10.1.0.1", pool_last="10.1.0.20")
        subnets.insert(session, subnet, now=opened.now(), actor="test")
    yield opened
    opened.close()


def a_disk(records: Records, name: str, *, state: DiskState = DiskState.STARTED, access: Access = Access.EXCLUSIVE) -> Disk:
    with records.begin() as session:
        paths = subnets.allocate(session, 2)
        iqn = f"iqn.2026-11.io.sanderling:{name}"
        started = state is DiskState.STARTED
        disk = Disk(id=f"id-{name}", name=name, iqn=iqn, size_bytes=512, paths=paths, access=access, started=started)
        disks.insert(session, disk, now=records.now(), state=state)
    return disk


def test_disks_and_their_paths_come_page_by_page_each_once_in_one_order(records: Records) -> None:
    made = {name: a_disk(records, name) for name in NAMES}
    with records.read() as session:
        whole = [row.name for row in disks.page(session, limit=99)]
        paged: list[str] = []
        while rows := disks.page(session, marker=paged[-1] if paged else None, limit=2):
            paged += [row.name for row in rows]
        addresses: list[tuple[str, int]] = []
        while found := disks.paths(session, after=addresses[-1] if addresses else None, limit=3):
            addresses += [(row.disk.name, row.index) for row in found]
        assert [disks.describe(row) for row in disks.page(session, limit=99)] == [made[name] for name in whole]
        assert disks.started(session) == [made[name] for name in whole]
    assert paged == whole
    assert sorted(whole) == sorted(NAMES)
    assert addresses == [(name, index) for name in whole for index in (1, 2)]


def test_what_is_looked_for_means_the_same_everywhere(records: Records) -> None:
    a_disk(records, "data-1")
    a_disk(records, "data-2", state=DiskState.STOPPED, access=Access.SHARED)
    with records.read() as session:

        def found(**wanted: object) -> list[str]:
            return [row.name for row in disks.page(session, limit=9, **wanted)]  # type: ignore[arg-type]

        assert found(name_contains="DATA") == ["data-1", "data-2"]
        assert [found(name_contains=part) for part in ("%", "_", "\\", "a-2")] == [[], [], [], ["data-2"]]
        assert found(state=DiskState.STOPPED) == found(access=Access.SHARED) == ["data-2"]
        assert {row.disk.name for row in disks.paths(session, limit=9, disk_contains="A-1")} == {"data-1"}
        assert {row.disk.name for row in disks.paths(session, limit=9, disk="id-data-2")} == {"data-2"}
        assert [row.disk.name for row in disks.paths(session, limit=9, address="10.1.0.1")] == ["data-1"]


def test_where_a_name_looks_like_anothers_id_the_name_counts(records: Records) -> None:
    now = records.now()
    with records.begin() as session:
        first, _ = tokens.create(session, name="first", role=tokens.Role.READER, now=now, actor="test")
        tokens.create(session, name=first.id, role=tokens.Role.READER, now=now, actor="test")
        assert tokens.remove(session, first.id, now=now, actor="test").name == first.id

        def rule(name: str) -> str:
            given = notifications.create(
                session, name=name, kinds=["*"], sealed_url="sealed", receiver="x", now=now, actor="test", rules_max=9
            )
            return given.id

        earliest = rule("earliest")
        rule(earliest)
        assert notifications.get(session, earliest).name == earliest


def test_what_somebody_has_is_refused_by_name(records: Records) -> None:
    a_disk(records, "db")
    with pytest.raises(Conflict, match="there is a disk db"):
        a_disk(records, "db")
    with pytest.raises(InUse, match="carries"), records.begin() as session:
        subnets.remove(session, "front", now=records.now(), actor="test")
    with records.begin() as session:
        tokens.create(session, name="t", role=tokens.Role.ADMIN, now=records.now(), actor="test")
    with pytest.raises(Conflict, match="there is a token t"), records.begin() as session:
        tokens.create(session, name="t", role=tokens.Role.READER, now=records.now(), actor="test")


def a_move(records: Records, disk: Disk, *, gap_s: float) -> str:
    move = Move(position=0, disk_id=disk.id, disk_name=disk.name, index=0, addresses=("10.1.0.1",), source="g1", destination="g2")
    now = records.now()
    with records.begin() as session:
        asked = assignments.submit(session, moves=[move], conductor=Conductor(), requested_by="alice", now=now)
    with records.begin() as session:
        held = operations.claim(session, asked.id, conductor="c", now=now, ttl_s=5)
        assert held is not None
        moves.apply(session, asked.id, 0, MoveEvent.START, now=now, actor="c")
        moves.apply(session, asked.id, 0, MoveEvent.SUCCEED, now=now, actor="c")
        export = ExportId(disk.id, 0)
        assert moves.note_gap(session, export, source="g1", destination="g2", gap_s=gap_s, operation_id=asked.id) == asked.id
        assert [move.disk_name for move in moves.open_moves(session)] == [disk.name]
    with records.begin() as session:
        operations.release(session, asked.id, claim_epoch=held.claim_epoch)
        operations.request_cancel(session, asked.id, actor="alice", now=now)
    return asked.id


def test_moves_are_counted_and_their_gaps_found_beside_those_of_failovers(records: Records) -> None:
    moved = a_move(records, a_disk(records, "db"), gap_s=0.25)
    with records.begin() as session:
        for kind, gap_s in ((gaps.FAILOVER, 3.5), (gaps.RESTART, 1.5), ("first", None)):
            events.append(session, gaps.SERVED, at=records.now(), actor="g2", data={"kind": kind, "gap_s": gap_s})
    with records.read() as session:
        assert gaps.recent(session, limit=9) == gaps.Gaps([0.25], [3.5], [1.5])
        assert moves.counts(session, [moved])[moved][MoveState.SUCCEEDED] == 1
        assert [move.gap_s for move in moves.asked_since(session, records.now() - timedelta(days=1), requested_by="alice")] == [
            0.25
        ]


def test_plans_marks_and_keys_are_read_back_as_they_were_written(records: Records) -> None:
    layout = Layout(owners={ExportId("d", 0): "g1"}, gateways=frozenset({"g1", "g2"}), pins={"d": "g2"})
    disk = a_disk(records, "db")
    now = records.now()
    with records.begin() as session:
        plan_id = plans.insert(session, request={"planner": "average", "ü": None}, layout=layout, moves=[], now=now, keep_s=9)
        marks.mark_disk(session, disk.id, pin="g1", avoid=frozenset({"g2"}), now=now, actor="alice", operation_id="o")
        operation = assignments.submit(session, conductor=Conductor(), requested_by="alice", now=now)
        idempotency.remember(session, actor="alice", key="k", digest="d", operation_id=operation.id, now=now)
    with records.begin() as session:
        kept = plans.get(session, plan_id, now=now, keep_s=9)
        assert (kept.request, kept.layout) == ({"planner": "average", "ü": None}, layout)
        assert marks.read(session) == Marks(pins={disk.id: "g1"}, avoid={disk.id: frozenset({"g2"})})
        assert idempotency.find(session, actor="alice", key="k", digest="d") == operation.id
        with pytest.raises(IdempotencyMismatch):
            idempotency.find(session, actor="alice", key="k", digest="other")
        plans.insert(session, request={}, layout=layout, moves=[], now=now + timedelta(seconds=99), keep_s=9)
        assert [event.kind for event in events.page(session, after=0, limit=9, resource_id=disk.id)] == ["disk.marked"]
