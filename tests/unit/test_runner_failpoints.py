"""A conductor that dies at any point of an operation: another one ends it, and nothing is left over."""

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from conductor import failpoints
from sanderling.model import plans
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.operations import Operation, OperationKind, OperationState
from sanderling.records.tables import StepRow
from tests.house import Crash, Gateways, House

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
@pytest.mark.parametrize("failpoint", failpoints.listing())
def test_a_crash_on_the_way_forward_delays_the_operation_and_nothing_else(
    house: House, gateways: Gateways, failpoint: str
) -> None:
    kind = next(kind for kind in OperationKind if failpoint.startswith(f"{kind}."))
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
