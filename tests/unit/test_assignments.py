"""Moving paths as an operation: records on a file, an embedded coordination store, and gateways that answer commands there."""

import pytest

from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import Operation, OperationState
from sanderling.records import assignments
from sanderling.records import moves as recorded
from tests.fleet import Fleet
from tests.house import SETTINGS, House


def started(house: House, name: str = "vol", *, access: Access = Access.EXCLUSIVE) -> Disk:
    return house.disk(name=name, access=access, state=DiskState.STARTED)


def move(disk: Disk, source: str, destination: str, *, index: int = 0, position: int = 0) -> Move:
    return Move(
        position=position,
        disk_id=disk.id,
        disk_name=disk.name,
        index=index,
        addresses=("10.0.0.1",),
        source=source,
        destination=destination,
    )


def ask(house: House, *moves: Move) -> Operation:
    with house.records.begin() as session:
        return assignments.submit(session, moves=moves, conductor=SETTINGS, requested_by="alice", now=house.records.now())


def states(house: House, operation: Operation) -> list[MoveState]:
    with house.records.read() as session:
        return [each.state for each in recorded.of(session, operation.id)]


@pytest.fixture
def fleet(house: House) -> Fleet:
    return house.fleet("g1", "g2", "g3")


def test_a_move_ends_when_its_destination_serves(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert fleet.owner(export) == "g2"
    assert states(house, ended) == [MoveState.SUCCEEDED]
    assert [(sent.server, sent.method) for sent in fleet.sent] == [("g2", "export.path_host"), ("g1", "export.clean")]
