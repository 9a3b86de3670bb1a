"""A conductor that dies at any point of an operation: another one ends it, and nothing is left over."""

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from conductor import failpoints
from sanderling.model import plans
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.disks import Path as DiskPath
from sanderling.model.marks import Marks
from sanderling.model.moves import MOVES, Move, MoveState
from sanderling.model.operations import Operation, OperationKind, OperationState, StepState
from sanderling.records import assignments, marks, operations
from sanderling.records import moves as recorded
from sanderling.records.tables import StepRow
from tests.house import SETTINGS, Crash, Gateways, House

CREATE, START, STOP = OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.STOP_DISK
DELETE = OperationKind.DELETE_DISK
PATIENT_S, HOPELESS_S = 20.0, 0.05


@pytest.fixture
def gateways(house: House) -> Iterator[Gateways]:
    thread = Gateways(house.coordination)
    thread.start()
    yield thread
    thread.stop()


def prepared(house: House, kind: OperationKind) -> Disk:
    """A disk for which an operation of this kind makes sense, spread over two exports."""
    disk = house.disk(access=Access.SHARED)
    if kind is not CREATE:
        house.done(CREATE, disk, start=kind is not START)
    return disk


def crash_and_resume(house: House, operation: Operation, failpoint: str) -> Operation:
    with pytest.raises(Crash):
        house.drive(operation, failpoint=failpoint)
    assert not house.operation(operation).ended or failpoint.endswith(".end:after")
    return house.drive(operation, conductor="c2", later=True)


@pytest.mark.rows("PA-12", "W-PA-5")
@pytest.mark.parametrize("failpoint", [name for kind in (CREATE, START, STOP, DELETE) for name in failpoints.forward(kind)])
def test_a_crash_on_the_way_forward_delays_the_operation_and_nothing_else(
    house: House, gateways: Gateways, failpoint: str
) -> None:
    kind = kind_of(failpoint)
    disk = prepared(house, kind)
    ended = crash_and_resume(house, house.ask(kind, disk), failpoint)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    if kind is DELETE:
        assert (house.state(disk), house.images.list(), house.keys(disk)) == (None, (), [])
        return
    described = house.described(disk)
    assert described is not None
    assert described.started == (kind is not STOP)
    assert house.images.list() == (disk.image,)
    if kind is STOP:
        assert (house.state(disk), house.keys(disk)) == (DiskState.STOPPED, [])
    else:
        assert house.state(disk) == DiskState.STARTED
        assert house.keys(disk) == [f"disks/{disk.id}", f"exports/{disk.id}/1", f"exports/{disk.id}/2"]


@pytest.mark.rows("W-MC-5")
@pytest.mark.parametrize("failpoint", [name for kind in (CREATE, START) for name in failpoints.backward(kind)])
def test_a_crash_on_the_way_back_leaves_nothing_of_the_operation(house: House, failpoint: str) -> None:
    kind = CREATE if failpoint.startswith(CREATE) else START
    disk = house.disk()
    if kind is START:
        house.done(CREATE, disk, start=False)
    operation = house.ask(kind, disk, deadline_s=PATIENT_S)
    impatient(house, operation)
    ended = crash_and_resume(house, operation, failpoint)
    assert ended.state is OperationState.ROLLED_BACK, ended.problem
    assert ended.problem is not None
    assert ended.problem["code"] == "step-timed-out"
    assert house.keys(disk) == []
    described = house.described(disk)
    if kind is CREATE:
        assert (house.state(disk), house.images.list(), described) == (None, (), None)
    else:
        assert house.state(disk) == DiskState.STOPPED
        assert described is not None
        assert not described.started


def impatient(house: House, operation: Operation) -> None:
    """There are no gateways here: let the wait for them fail at once."""
    with house.records.begin() as session:
        session.execute(
            update(StepRow)
            .where(StepRow.operation_id == operation.id, StepRow.name == plans.AWAIT_SERVED)
            .values(deadline_s=HOPELESS_S)
        )


def kind_of(failpoint: str) -> OperationKind:
    return next(kind for kind in OperationKind if failpoint.startswith(f"{kind}."))


def keeping(house: House, kind: OperationKind, disk: Disk) -> Operation:
    """What the API does with a request to move the disk's exports, or to mark it or gateway g1."""
    moves = [
        Move(position=n, disk_id=disk.id, disk_name="vol", index=n + 1, addresses=(), source="g1", destination=destination)
        for n, destination in enumerate(("g2", "g3"))
    ]
    subjects = {
        OperationKind.ASSIGN_PATHS: assignments.MOVES,
        OperationKind.DRAIN_GATEWAY: assignments.drain_of("g1"),
        OperationKind.UNDRAIN_GATEWAY: assignments.undrain_of("g1"),
        OperationKind.MARK_DISK: assignments.marks_of(disk, pin="g2", avoid=frozenset()),
        OperationKind.RECOVER_DISKS: assignments.RECOVERY,
    }
    if kind is OperationKind.RECOVER_DISKS:
        _lose_one(house)
    asked = moves if kind is OperationKind.ASSIGN_PATHS else ()
    with house.records.begin() as session:
        return assignments.submit(
            session, subjects[kind], moves=asked, conductor=SETTINGS, requested_by="alice", now=house.records.now()
        )


def _lose_one(house: House) -> None:
    """An image of a disk that the index does not know."""
    path = DiskPath(index=1, address="10.0.200.1", prefix_len=16, interface="eth0", subnet="front")
    lost = Disk(id="lost", name="lost", iqn="iqn.2026-11.io.sanderling:lost", size_bytes=512, paths=(path,))
    house.images.create(lost.image, lost.size_bytes, metadata={"sanderling.disk": lost.model_dump_json()})


KEEPS = [kind for kind in OperationKind if not kind.changes_disk]


@pytest.mark.rows("PA-55", "W-PA-5", "W-PA-14")
@pytest.mark.parametrize("cancelled", [False, True], ids=["", "cancelled"])
@pytest.mark.parametrize("failpoint", [name for kind in KEEPS for name in failpoints.forward(kind)])
def test_a_crash_while_paths_are_moved_or_marked_delays_that_and_nothing_else(
    house: House, failpoint: str, cancelled: bool
) -> None:
    kind, fleet = kind_of(failpoint), house.fleet("g1", "g2", "g3")
    disk = house.disk(access=Access.SHARED, state=DiskState.STARTED)
    exports = fleet.serve(disk, "g1", "g1")
    operation = keeping(house, kind, disk)
    with pytest.raises(Crash):
        house.drive(operation, failpoint=failpoint)
    if cancelled and not house.operation(operation).ended:
        with house.records.begin() as session:
            operations.request_cancel(session, operation.id, actor="alice", now=house.records.now())
    ended = house.drive(operation, conductor="c2", later=True)
    expected = OperationState.CANCELLED if cancelled and failpoint != f"{kind}.end:after" else OperationState.SUCCEEDED
    assert ended.state is expected, ended.problem
    with house.records.read() as session:
        moves, marked = recorded.of(session, operation.id), marks.read(session)
    assert all(move.state in MOVES.rest for move in moves)
    assert not [step for step in ended.steps if step.state is StepState.RUNNING]
    moved = [move for move in moves if move.state is MoveState.SUCCEEDED]
    assert [fleet.owner(move.export) for move in moved] == [move.destination for move in moved]
    assert [fleet.owner(export) for export in exports].count("g1") == len(exports) - len(moved)
    assert house.state(disk) == DiskState.STARTED
    entry = house.coordination.get("marks")
    assert (Marks.model_validate_json(entry.value) if entry else Marks()) == marked
    if expected is OperationState.SUCCEEDED and kind in (OperationKind.ASSIGN_PATHS, OperationKind.DRAIN_GATEWAY):
        assert len(moved) == len(exports)
