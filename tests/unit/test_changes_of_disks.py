"""Changing a disk: told to the image first, undone when it fails, and felt by initiators only where they meet something else."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from conductor import failpoints
from conductor.publisher import Publisher
from sanderling.coordination.base import Coordination
from sanderling.errors import Conflict, ImageFailed, TransitionRefused, Unavailable
from sanderling.images.base import Images
from sanderling.model import plans
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.exports import Export, ExportId
from sanderling.model.operations import Cause, OperationKind, OperationState
from sanderling.records import disks, operations
from sanderling.settings import Settings
from tests.house import Crash, Gateways, House
from tests.unit.test_runner import Troubled, raising
from tests.unit.test_runner_failpoints import HOPELESS_S, impatient

CREATE, START, STOP = OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.STOP_DISK
CHANGE = OperationKind.CHANGE_DISK
ONE = ["iqn.2026-11.io.example:one"]
SEALED = {"user": "u", "secret": "sealed", "mutual_user": "", "mutual_secret": ""}


@pytest.fixture
def gateways(house: House) -> Iterator[Gateways]:
    thread = Gateways(house.coordination)
    thread.start()
    yield thread
    thread.stop()


def served_at(house: House, disk: Disk) -> int:
    """The revision that the disk's export was started with."""
    entry = house.coordination.get(ExportId(disk.id, 0).key)
    assert entry is not None
    return Export.model_validate_json(entry.value).revision


def same(house: House, disk: Disk) -> Disk:
    """The disk as image and index agree on it."""
    described = house.described(disk)
    assert described == house.indexed(disk)
    return described


def test_a_change_is_on_the_image_in_the_index_and_with_the_gateways(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    before = served_at(house, disk)
    house.done(CHANGE, disk, wanted={"initiators": ONE, "allow_any": False, "chap": SEALED})
    after = same(house, disk)
    assert (after.initiators, after.chap and after.chap.user) == (tuple(ONE), "u")
    assert house.state(disk) == DiskState.STARTED
    assert served_at(house, disk) == after.export_revision > before


def test_a_new_name_is_nothing_that_an_export_is_started_again_for(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    before = same(house, disk)
    house.done(CHANGE, disk, wanted={"name": "other"})
    after = same(house, disk)
    assert (after.name, after.iqn) == ("other", before.iqn)
    assert after.revision > before.revision
    assert served_at(house, disk) == after.export_revision == before.export_revision


def test_a_stopped_disk_is_changed_without_anybody_being_told(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    house.done(CHANGE, disk, wanted={"size_bytes": 2 << 20})
    assert same(house, disk).size_bytes == house.images.stat(disk.image).size_bytes == 2 << 20
    assert (house.keys(disk), house.state(disk)) == ([], DiskState.STOPPED)


def test_a_change_that_no_gateway_can_serve_is_taken_back(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    before = same(house, disk)
    operation = house.ask(CHANGE, disk, wanted={"name": "other", "chap": SEALED})
    gateways.stop()
    impatient(house, operation)
    ended = house.drive(operation)
    assert ended.state is OperationState.ROLLED_BACK
    after = same(house, disk)
    assert (after.name, after.chap) == (before.name, None)
    assert after.export_revision > before.export_revision, "what was started anew meanwhile must be started again"
    entry = house.coordination.get(f"disks/{disk.id}")
    assert entry is not None
    assert Disk.model_validate_json(entry.value) == after
    assert house.state(disk) == DiskState.STARTED


def test_a_change_cancelled_before_it_begins_leaves_the_disk_as_it_was(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    before = house.indexed(disk)
    operation = house.ask(CHANGE, disk, wanted={"name": "other"})
    with house.records.begin() as session:
        operations.request_cancel(session, operation.id, actor="alice", now=house.records.now())
    assert house.indexed(disk) == before


def test_a_name_is_kept_for_a_disk_that_may_yet_get_it_back(house: House) -> None:
    disk = house.disk(name="vol")
    house.done(CREATE, disk, start=False)
    operation = house.ask(CHANGE, disk, wanted={"name": "other"})
    for name in ("vol", "other"):
        with pytest.raises(Conflict) as taken:
            house.disk(name=name)
        assert taken.value.context["field"] == "name", name
    assert house.drive(operation).state is OperationState.SUCCEEDED
    with pytest.raises(Conflict) as refused:
        house.disk(name="vol")
    assert refused.value.context["field"] == "iqn", "the name is free again, the IQN is not"


def test_a_disk_that_does_not_rest_is_not_changed(house: House) -> None:
    disk = house.disk()
    with house.records.begin() as session, pytest.raises(TransitionRefused):
        disks.change(session, disk.id, {"name": "b"}, now=house.records.now(), actor="alice", operation_id="o")


@pytest.mark.parametrize("failpoint", failpoints.forward(CHANGE))
def test_a_crash_while_a_disk_is_changed_delays_that_and_nothing_else(house: House, gateways: Gateways, failpoint: str) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    operation = house.ask(CHANGE, disk, wanted={"name": "other", "size_bytes": 2 << 20, "initiators": ONE})
    with pytest.raises(Crash):
        house.drive(operation, failpoint=failpoint)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    after = same(house, disk)
    assert (after.name, after.size_bytes, list(after.initiators)) == ("other", 2 << 20, ONE)
    assert house.images.stat(disk.image).size_bytes == 2 << 20


@pytest.mark.parametrize("failpoint", failpoints.backward(CHANGE))
def test_a_crash_while_a_change_is_taken_back_leaves_nothing_of_it(house: House, gateways: Gateways, failpoint: str) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    operation = house.ask(CHANGE, disk, wanted={"name": "other", "initiators": ONE})
    gateways.stop()
    impatient(house, operation)
    with pytest.raises(Crash):
        house.drive(operation, failpoint=failpoint)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.ROLLED_BACK, ended.problem
    after = same(house, disk)
    assert (after.name, after.initiators) == ("vol", ())


def test_a_disk_that_grew_and_is_not_served_stays_grown_and_says_so(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    operation = house.ask(CHANGE, disk, wanted={"size_bytes": 2 << 20}, deadline_s=HOPELESS_S)
    gateways.stop()
    ended = house.drive(operation)
    assert ended.state is OperationState.FAILED
    assert plans.GROW_IMAGE in str(ended.problem)
    assert house.state(disk) == DiskState.STARTED


def test_shared_disks_are_changed_path_by_path(house: House, gateways: Gateways) -> None:
    disk = house.disk(access=Access.SHARED)
    house.done(CREATE, disk)
    house.done(CHANGE, disk, wanted={"initiators": ONE})
    assert same(house, disk).initiators == tuple(ONE)


def test_a_change_that_failed_before_it_was_described_can_be_asked_for_again(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    before = house.indexed(disk)
    whole, troubled = house.stores, Troubled(house.images)
    troubled.before["grow"] = raising(ImageFailed("no"))
    house.stores = replace(whole, images=troubled)
    wanted = {"name": "other", "size_bytes": 2 << 20}
    assert house.drive(house.ask(CHANGE, disk, wanted=wanted)).state is OperationState.FAILED
    assert house.indexed(disk) == before
    house.stores = whole
    house.done(CHANGE, disk, wanted=wanted)
    assert same(house, disk).size_bytes == 2 << 20


def test_a_disk_of_before_is_renamed_without_its_export_being_started_again(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    described = house.described(disk)
    assert described is not None
    old = described.model_copy(update={"presented_at": 0})
    assert house.images.set_metadata(
        disk.image, "sanderling.disk", old.model_dump_json(), expected=house.images.get_metadata(disk.image)["sanderling.disk"]
    )
    house.done(CHANGE, disk, wanted={"name": "other"})
    after = same(house, disk)
    assert after.export_revision == old.export_revision < after.revision


@pytest.mark.parametrize("wanted", [{"size_bytes": 2 << 20}, {"initiators": ONE, "allow_any": False}])
def test_a_change_that_failed_half_way_is_told_and_indexed_as_the_image_says(
    house: House, gateways: Gateways, wanted: dict[str, Any]
) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    whole, away = house.stores, Troubled(cast(Images, house.coordination))
    for call in ("put", "txn"):
        away.before[call] = raising(Unavailable("Consul is away", dependency="coordination"), times=1000)
    house.stores = replace(whole, coordination=cast(Coordination, away))
    assert house.drive(house.ask(CHANGE, disk, wanted=wanted)).state is OperationState.FAILED
    house.stores = whole
    publisher = Publisher(Settings(), whole, tell=lambda: None)
    publisher.turn()
    entry, image = house.coordination.get(f"disks/{disk.id}"), house.described(disk)
    assert entry is not None
    published = Disk.model_validate_json(entry.value)
    assert published.model_copy(update={"cause": Cause()}) == image == house.indexed(disk)
