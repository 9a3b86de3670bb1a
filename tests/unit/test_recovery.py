"""Recovery: the index of disks, made again from what the images say, and nothing else changed."""

from pathlib import Path

from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.disks import Path as DiskPath
from sanderling.model.operations import Operation, OperationKind, OperationState
from sanderling.records import assignments, disks, events, subnets
from sanderling.records.tables import SubnetRow
from tests.house import SETTINGS, House

CREATE = OperationKind.CREATE_DISK


def recovered(house: House) -> Operation:
    with house.records.begin() as session:
        operation = assignments.submit(
            session, assignments.RECOVERY, conductor=SETTINGS, requested_by="alice", now=house.records.now()
        )
    return house.drive(operation)


def told(house: House, kind: str) -> list[dict[str, str]]:
    with house.records.read() as session:
        return [event.data for event in events.page(session, after=0, limit=1000) if event.kind == kind]


def test_disks_that_were_lost_from_the_records_are_there_again_as_their_images_say(house: House) -> None:
    stopped, shared = house.disk(name="stopped"), house.disk(name="shared", access=Access.SHARED)
    for disk in (stopped, shared):
        house.done(CREATE, disk, start=False)
    described = [house.described(disk) for disk in (stopped, shared)]
    with house.records.begin() as session:
        for disk in (stopped, shared):
            session.delete(disks.get(session, disk.id))
        session.flush()
        session.delete(session.get(SubnetRow, "front"))
    ended = recovered(house)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert [house.indexed(disk) for disk in (stopped, shared)] == described
    assert (house.state(stopped), house.state(shared)) == (DiskState.STOPPED, DiskState.STOPPED)
    with house.records.read() as session:
        assert subnets.get(session, "front").pool_last == "10.0.255.254"
    assert [each["name"] for each in sorted(told(house, "disk.recovered"), key=lambda each: each["name"])] == [
        "shared",
        "stopped",
    ]


def test_what_is_indexed_is_left_alone_and_recovering_twice_changes_nothing(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    before = house.indexed(disk)
    for _ in range(2):
        assert recovered(house).state is OperationState.SUCCEEDED
    assert house.indexed(disk) == before
    assert told(house, "disk.recovered") == []


def test_a_disk_that_was_deleted_while_its_image_was_read_stays_deleted(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    described = house.images.get_metadata(disk.image)
    house.done(OperationKind.DELETE_DISK, disk)
    house.images.create(disk.image, disk.size_bytes, metadata=described)  # as it was when it was read
    assert recovered(house).state is OperationState.SUCCEEDED
    assert told(house, "disk.recovered") == []


def test_a_started_disk_is_recovered_as_started(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    started = house.indexed(disk).model_copy(update={"started": True, "revision": 2})
    stored = house.images.get_metadata(disk.image)["sanderling.disk"]
    assert house.images.set_metadata(disk.image, "sanderling.disk", started.model_dump_json(), expected=stored)
    house.forget(disk)
    assert recovered(house).state is OperationState.SUCCEEDED
    assert (house.state(disk), house.indexed(disk)) == (DiskState.STARTED, started)


def test_a_disk_whose_address_is_taken_is_named_and_the_others_are_recovered(house: House) -> None:
    lost, taken = house.disk(name="lost"), house.disk(name="other")
    for disk in (lost, taken):
        house.done(CREATE, disk, start=False)
        house.forget(disk)
    with house.records.begin() as session:
        path = DiskPath(index=1, address=lost.paths[0].address, prefix_len=16, interface="eth0", subnet="front")
        thief = Disk(id="thief", name="thief", iqn="iqn.2026-11.io.example:thief", size_bytes=512, paths=(path,))
        disks.insert(session, thief, now=house.records.now(), state=DiskState.STOPPED)
    ended = recovered(house)
    assert ended.state is OperationState.FAILED
    assert lost.paths[0].address in str(ended.problem)
    assert (house.state(lost), house.state(taken)) == (None, DiskState.STOPPED)
    assert [each["image"] for each in told(house, "disk.not_recovered")] == [lost.image]


def test_an_image_with_the_description_of_another_is_no_disk(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    house.images.create("sanderling-copy", disk.size_bytes, metadata=house.images.get_metadata(disk.image))
    house.forget(disk)
    ended = recovered(house)
    assert ended.state is OperationState.FAILED
    assert "sanderling-copy" in str(ended.problem)
    assert house.state(disk) == DiskState.STOPPED


def test_images_of_others_and_half_made_ones_are_passed_over(house: House, tmp_path: Path) -> None:
    house.images.create("golden", 512, metadata={})
    house.images.create("sanderling-half", 512, metadata={})
    assert recovered(house).state is OperationState.SUCCEEDED
    assert sorted(house.images.list()) == ["golden", "sanderling-half"]
