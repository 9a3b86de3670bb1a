"""Snapshots: taken once, gone back to whole or marked as half done, and kept while a clone needs them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conductor import failpoints
from sanderling.errors import ImageFailed, InUse
from sanderling.images.base import Snapshot
from sanderling.model.disks import Disk, DiskState
from sanderling.model.exports import UNKNOWN_CLIENT, Export
from sanderling.model.operations import OperationKind, OperationState
from sanderling.records import disks, events
from tests.house import Crash, Gateways, House
from tests.unit.test_runner import Troubled, raising

CREATE, START, STOP = OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.STOP_DISK
TAKE, ROLL_BACK, REMOVE = OperationKind.CREATE_SNAPSHOT, OperationKind.ROLL_BACK_DISK, OperationKind.DELETE_SNAPSHOT


@pytest.fixture
def gateways(house: House) -> Iterator[Gateways]:
    thread = Gateways(house.coordination)
    thread.start()
    yield thread
    thread.stop()


def written(house: House, disk: Disk, data: bytes | None = None) -> bytes:
    """The first bytes of the disk; with `data`, after writing them."""
    file = Path(house.images.backing_store(disk.image).location)
    if data is not None:
        with file.open("r+b") as image:
            image.write(data)
    return file.read_bytes()[:4]


def told(house: House, kind: str) -> list[str]:
    with house.records.read() as session:
        return [event.data["snapshot"] for event in events.page(session, after=0, limit=1000) if event.kind == kind]


def kept(house: House, disk: Disk) -> list[str]:
    return [one.name for one in house.images.snapshots(disk.image)]


@pytest.fixture
def disk(house: House) -> Disk:
    made = house.disk()
    house.done(CREATE, made, start=False)
    written(house, made, b"old.")
    return made


@pytest.mark.parametrize("failpoint", ["", *failpoints.forward(TAKE)])
def test_a_snapshot_is_taken_and_told_of_once(house: House, disk: Disk, failpoint: str) -> None:
    operation = house.ask(TAKE, disk, snapshot="before")
    if failpoint:
        with pytest.raises(Crash):
            house.drive(operation, failpoint=failpoint)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert (kept(house, disk), told(house, "snapshot.created")) == (["before"], ["before"])
    assert house.state(disk) == DiskState.STOPPED


@pytest.mark.parametrize("failpoint", ["", *failpoints.forward(ROLL_BACK)])
def test_a_disk_rolled_back_holds_what_it_did(house: House, disk: Disk, failpoint: str) -> None:
    house.done(TAKE, disk, snapshot="before")
    written(house, disk, b"new!")
    operation = house.ask(ROLL_BACK, disk, snapshot="before")
    if failpoint:
        with pytest.raises(Crash):
            house.drive(operation, failpoint=failpoint)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert written(house, disk) == b"old."
    described = house.described(disk)
    assert described is not None
    assert (house.state(disk), described.rolling_back_to) == (DiskState.STOPPED, "")


def test_a_disk_that_is_half_rolled_back_cannot_be_started_until_it_is_wholly(
    house: House, disk: Disk, gateways: Gateways
) -> None:
    house.done(TAKE, disk, snapshot="before")
    whole, troubled = house.stores, Troubled(house.images)
    troubled.before["roll_back"] = raising(ImageFailed("half of it was done"))
    house.stores = replace(whole, images=troubled)
    assert house.drive(house.ask(ROLL_BACK, disk, snapshot="before")).state is OperationState.FAILED
    assert house.state(disk) == DiskState.FAILED
    house.stores = whole
    started = house.drive(house.ask(START, disk))
    assert started.state is OperationState.ROLLED_BACK
    assert "broke off half-way" in str(started.problem)
    house.done(ROLL_BACK, disk, snapshot="before")
    house.done(START, disk)


@pytest.mark.parametrize(("asked", "code"), [("gone", "not-found"), ("small", "conflict")])
def test_a_disk_that_cannot_go_back_to_what_was_asked_for_stays_as_it_is(
    house: House, disk: Disk, gateways: Gateways, asked: str, code: str
) -> None:
    house.done(TAKE, disk, snapshot="small")
    house.done(OperationKind.CHANGE_DISK, disk, wanted={"size_bytes": 2 * disk.size_bytes})
    ended = house.drive(house.ask(ROLL_BACK, disk, snapshot=asked))
    assert (ended.state, ended.problem and ended.problem["code"]) == (OperationState.ROLLED_BACK, code)
    assert house.state(disk) == DiskState.STOPPED
    house.done(START, disk)


@pytest.mark.parametrize("read", [False, True], ids=["before it read the description", "after that"])
def test_an_attempt_that_slept_until_the_disk_was_rolled_back_by_another_changes_nothing(
    house: House, disk: Disk, read: bool
) -> None:
    """It had looked whether it still counts; the other came to the end meanwhile, and the disk was written to again."""
    house.done(TAKE, disk, snapshot="before")
    operation, slept = house.ask(ROLL_BACK, disk, snapshot="before"), Troubled(house.images)
    whole = house.stores

    def sleep() -> None:
        slept.before.clear()
        house.stores = whole
        house.drive(operation, conductor="c2", later=True)
        written(house, disk, b"new!")

    if read:
        slept.before["roll_back"] = sleep
        house.stores = replace(whole, images=slept)
        ended = house.drive(operation)
    else:
        ended = house.drive(operation, failpoint="snapshot.rollback.roll_back_image.roll_back:before", strike=sleep)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert written(house, disk) == b"new!"


def test_a_roll_back_that_goes_on_elsewhere_is_ended_before_the_disk_is_free(house: House, disk: Disk) -> None:
    house.done(TAKE, disk, snapshot="before")
    troubled, told = Troubled(house.images), list[str]()

    def end() -> None:
        described = house.described(disk)
        assert described is not None
        told.append(f"{described.rolling_back_to!r} {house.state(disk)}")

    troubled.before["end_roll_back"] = end
    house.stores = replace(house.stores, images=troubled)
    house.done(ROLL_BACK, disk, snapshot="before")
    assert told == ["'' rolling_back"]


def test_whoever_still_has_the_image_open_is_fenced_before_it_is_rolled_back(house: House, disk: Disk) -> None:
    house.done(TAKE, disk, snapshot="before")
    troubled = Troubled(house.images)
    troubled.answers["clients"] = lambda: ("left-over",)
    fenced_by_then: list[list[str]] = []
    troubled.before["roll_back"] = lambda: fenced_by_then.append(list(troubled.fenced))
    house.stores = replace(house.stores, images=troubled)
    house.done(ROLL_BACK, disk, snapshot="before")
    assert fenced_by_then == [["left-over"]]


def listed(house: House, disk: Disk, *clients: str) -> Troubled:
    """Images whose every image these clients have open, each of which has told that it served the disk."""
    troubled = Troubled(house.images)
    troubled.answers["clients"] = lambda: (*clients, "nobody-knows-it")
    house.stores = replace(house.stores, images=troubled)
    with house.records.begin() as session:
        for client in clients:
            now, data = house.records.now(), {"client": client}
            events.append(session, "export.served", at=now, actor="g1", resource_id=disk.id, data=data)
    return troubled


@pytest.mark.parametrize(
    ("call", "kind", "asked"),
    [
        ("snapshot", TAKE, {"snapshot": "new"}),
        ("remove_snapshot", REMOVE, {"snapshot": "old"}),
        ("grow", OperationKind.CHANGE_DISK, {"wanted": {"size_bytes": 2 << 20}}),
        ("clone", CREATE, {"source": {"snapshot": "old"}, "start": False}),
    ],
)
def test_a_client_that_has_ended_is_fenced_first_so_that_nobody_waits_for_its_answer(
    house: House, disk: Disk, call: str, kind: OperationKind, asked: dict[str, Any]
) -> None:
    house.done(TAKE, disk, snapshot="old")
    troubled = listed(house, disk, "ended")
    fenced_by_then: list[list[str]] = []
    troubled.before[call] = lambda: fenced_by_then.append(list(troubled.fenced))
    if kind is CREATE:
        house.done(CREATE, house.disk(name="clone"), **{**asked, "source": {"disk_id": disk.id, **asked["source"]}})
    else:
        house.done(kind, disk, **asked)
    assert fenced_by_then == [["ended"]]


def test_of_those_that_have_served_who_still_does_is_not_fenced(house: House, disk: Disk, gateways: Gateways) -> None:
    house.done(START, disk)
    troubled = listed(house, disk, "client-of-g1", "client-of-g2")
    house.done(TAKE, disk, snapshot="new")
    assert troubled.fenced == ["client-of-g2"]


def test_nobody_is_fenced_while_it_is_not_known_who_serves(house: House, disk: Disk) -> None:
    key = f"exports/{disk.id}/0"
    value = Export(generation=1, client=UNKNOWN_CLIENT).model_dump_json().encode()
    assert house.coordination.put(key, value, expected=None)
    troubled = listed(house, disk, "perhaps")
    house.done(TAKE, disk, snapshot="new")
    assert troubled.fenced == []


def test_a_removed_snapshot_is_gone(house: House, disk: Disk) -> None:
    for name in ("one", "two"):
        house.done(TAKE, disk, snapshot=name)
    house.done(REMOVE, disk, snapshot="one")
    assert (kept(house, disk), told(house, "snapshot.deleted")) == (["two"], ["one"])


@pytest.mark.parametrize("failpoint", ["", *failpoints.forward(CREATE)])
def test_a_clone_is_a_disk_of_its_own_that_begins_as_the_snapshot(
    house: House, disk: Disk, gateways: Gateways, failpoint: str
) -> None:
    house.done(TAKE, disk, snapshot="before")
    written(house, disk, b"new!")
    clone = house.disk(name="clone")
    operation = house.ask(CREATE, clone, source={"disk_id": disk.id, "snapshot": "before"})
    if failpoint:
        with pytest.raises(Crash):
            house.drive(operation, failpoint=failpoint)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert (written(house, clone), written(house, disk)) == (b"old.", b"new!")
    described = house.described(clone)
    assert described is not None
    assert (described.id, described.name) == (clone.id, "clone")


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("clone", ["made", "being made"])
def test_a_disk_with_clones_goes_on_as_it_was_when_it_is_to_be_deleted(
    house: House, disk: Disk, gateways: Gateways, clone: str, start: bool
) -> None:
    if start:
        house.done(START, disk)
    other = house.disk(name="other")
    if clone == "made":
        at, troubled = house.records.now(), Troubled(house.images)
        troubled.answers["snapshots"] = lambda: (Snapshot("before", 1, at, (other.image,)),)
        house.stores = replace(house.stores, images=troubled)
    else:
        house.ask(CREATE, other, source={"disk_id": disk.id, "snapshot": "before"})
    ended = house.drive(house.ask(OperationKind.DELETE_DISK, disk))
    assert (ended.state, ended.problem and ended.problem["code"]) == (OperationState.ROLLED_BACK, "in-use")
    assert ended.problem is not None
    assert "disk other" in ended.problem["detail"]
    with house.records.read() as session:
        row = disks.get(session, disk.id)
        assert (row.state, row.started) == ("started" if start else "stopped", start)
    assert len(house.coordination.list(f"exports/{disk.id}/").entries) == start


def test_a_disk_whose_image_is_gone_is_deleted(house: House, disk: Disk) -> None:
    house.images.remove(disk.image)
    house.done(OperationKind.DELETE_DISK, disk)


def test_clones_that_only_the_image_store_knows_of_are_not_waited_for(house: House, disk: Disk) -> None:
    troubled = Troubled(house.images)
    troubled.before["remove"] = raising(InUse("it has clones", clones=["other"]), times=1)
    house.stores = replace(house.stores, images=troubled)
    ended = house.drive(house.ask(OperationKind.DELETE_DISK, disk))
    assert (ended.state, kept(house, disk)) == (OperationState.FAILED, [])


def test_a_deleted_disk_takes_its_snapshots_with_it(house: House, disk: Disk) -> None:
    house.done(TAKE, disk, snapshot="before")
    house.done(OperationKind.DELETE_DISK, disk)
    assert not list(Path(house.images.backing_store(disk.image).location).parent.glob("*.snapshots"))
    with house.records.read() as session:
        assert not disks.page(session, limit=9)


def test_a_disk_that_a_gateway_may_still_serve_is_not_rolled_back(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    house.done(TAKE, disk, snapshot="before")
    with house.records.begin() as session:  # as when its stop had written the image, and Consul was away from then on
        disks.get(session, disk.id).state = DiskState.FAILED.value
    described = house.described(disk)
    assert described is not None
    stopped = described.model_copy(update={"started": False, "revision": described.revision + 1})
    stored = house.images.get_metadata(disk.image)["sanderling.disk"]
    assert house.images.set_metadata(disk.image, "sanderling.disk", stopped.model_dump_json(), expected=stored)
    written(house, disk, b"new!")
    ended = house.drive(house.ask(ROLL_BACK, disk, snapshot="before"))
    assert ended.state is OperationState.FAILED
    assert "stop it first" in str(ended.problem)
    assert written(house, disk) == b"new!"


def test_a_clone_that_was_left_with_the_description_of_the_other_gets_its_own(house: House, disk: Disk) -> None:
    house.done(TAKE, disk, snapshot="before")
    clone = house.disk(name="clone")
    operation = house.ask(CREATE, clone, start=False, source={"disk_id": disk.id, "snapshot": "before"})
    with pytest.raises(Crash):
        house.drive(operation, failpoint=f"{CREATE}.describe.begin:before")
    inherited = house.images.get_metadata(disk.image)["sanderling.disk"]
    assert house.images.set_metadata(clone.image, "sanderling.disk", inherited, expected=None)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    described = house.described(clone)
    assert described is not None
    assert (described.id, described.name) == (clone.id, "clone")
