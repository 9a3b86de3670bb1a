"""Snapshots by schedule: on their beat, once each, with the oldest removed, and never those that a person took."""

from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest

from conductor.schedules import SCHEDULER, Scheduler
from sanderling.images.base import Images, Snapshot
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.operations import OperationKind, OperationState
from sanderling.records import disks, operations
from tests.house import SETTINGS, House
from tests.unit.test_runner import Troubled
from tests.unit.test_snapshots import kept

CREATE, CHANGE = OperationKind.CREATE_DISK, OperationKind.CHANGE_DISK


@pytest.fixture
def disk(house: House) -> Disk:
    made = house.disk()
    house.done(CREATE, made, start=False)
    house.done(CHANGE, made, wanted={"schedule": {"every_s": 60, "keep": 2}})
    return made


def scheduler(house: House) -> Scheduler:
    return Scheduler(SETTINGS, house.stores, tell=lambda: None, wake=lambda _: None)


def overdue(house: House, disk: Disk, seconds: float) -> None:
    """Have the next snapshot been due that long ago."""
    with house.records.begin() as session:
        disks.get(session, disk.id).snapshot_due_at = house.records.now() - timedelta(seconds=seconds)


def due_in_s(house: House, disk: Disk) -> float:
    with house.records.read() as session:
        at = disks.get(session, disk.id).snapshot_due_at
    assert at is not None
    return (at - house.records.now()).total_seconds()


def taken(house: House) -> list[str]:
    """The operations that are asked for now, each driven to its end: what they took."""
    names = []
    for operation_id in scheduler(house).turn():
        with house.records.read() as session:
            operation = operations.get(session, operation_id)
        assert operation.requested_by == SCHEDULER
        ended = house.drive(operation)
        assert ended.state is OperationState.SUCCEEDED, ended.problem
        names.append(str(operation.params["snapshot"]))
    return names


def test_a_schedule_is_on_the_image_and_nothing_is_due_at_once(house: House, disk: Disk) -> None:
    described = house.described(disk)
    assert described is not None
    assert described == house.indexed(disk)
    assert described.schedule is not None
    assert 50 < due_in_s(house, disk) <= 60
    assert taken(house) == []


def test_what_is_due_is_taken_once_and_the_next_is_due_on_the_same_beat(house: House, disk: Disk) -> None:
    overdue(house, disk, 150)
    (name,) = taken(house)
    assert kept(house, disk) == [name]
    assert name.startswith("auto-")
    assert 20 < due_in_s(house, disk) <= 30, "the two that were missed are not made up for"
    assert taken(house) == []


def test_the_oldest_go_and_those_of_a_person_and_those_with_clones_stay(house: House, disk: Disk) -> None:
    at = house.records.now()
    troubled = Troubled(house.images)
    there = {f"auto-{n}": Snapshot(f"auto-{n}", 1, at, ("clone",) if n == 0 else ()) for n in range(3)}
    there = {"mine": Snapshot("mine", 1, at)} | there
    troubled.answers["snapshots"] = lambda: tuple(there.values())
    removed: list[str] = []
    stores = house.stores
    house.stores = replace(stores, images=cast(Images, _Recording(troubled, removed)))
    overdue(house, disk, 1)
    taken(house)
    assert removed == []
    there |= {f"auto-{n}": Snapshot(f"auto-{n}", 1, at) for n in (3, 4)}
    overdue(house, disk, 1)
    taken(house)
    assert removed == ["auto-1", "auto-2"]


class _Recording:
    """Images that only note which snapshots are removed and never hold more than they are told."""

    def __init__(self, images: Troubled, removed: list[str]) -> None:
        self._images, self._removed = images, removed

    def snapshot(self, _name: str, _snapshot: str) -> None: ...

    def remove_snapshot(self, _name: str, snapshot: str) -> None:
        self._removed.append(snapshot)

    def __getattr__(self, name: str) -> object:
        return getattr(self._images, name)


def test_a_busy_disk_has_its_turn_later(house: House, disk: Disk) -> None:
    overdue(house, disk, 1)
    going = house.ask(CHANGE, disk, wanted={"name": "other"})
    assert scheduler(house).turn() == []
    assert due_in_s(house, disk) < 0
    house.drive(going)
    assert len(taken(house)) == 1


def test_two_conductors_that_look_at_once_take_one(house: House, disk: Disk) -> None:
    overdue(house, disk, 1)
    assert [len(scheduler(house).turn()), len(scheduler(house).turn())] == [1, 0]


def test_a_shared_disk_that_is_started_is_passed_over(house: House) -> None:
    disk = house.disk(access=Access.SHARED, state=DiskState.STARTED)
    with house.records.begin() as session:
        disks.get(session, disk.id).schedule = {"every_s": 60, "keep": 1}
    overdue(house, disk, 1)
    assert taken(house) == []
    assert due_in_s(house, disk) > 0


def test_a_schedule_that_is_taken_away_takes_nothing_any_more(house: House, disk: Disk) -> None:
    house.done(CHANGE, disk, wanted={"schedule": None})
    with house.records.read() as session:
        assert disks.get(session, disk.id).snapshot_due_at is None
    described = house.described(disk)
    assert described is not None
    assert described.schedule is None
