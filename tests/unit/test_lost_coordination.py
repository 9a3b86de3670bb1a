"""Operations whose coordination store is lost, with all it held, while they are under way."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sanderling.clock import SystemClock
from sanderling.coordination.changes import Changes
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.images.files import FileImages
from sanderling.model.disks import Disk, DiskState
from sanderling.model.exports import Export
from sanderling.model.operations import OperationKind, OperationState
from sanderling.settings import Images
from tests.house import Crash, Gateways, House, migrated


class Opened(FileImages):
    """Images that a worker nobody knows of any more still has open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Images(backend="files", folder=str(folder)), clock=SystemClock())
        self.openers: tuple[str, ...] = ()
        self.fenced: list[str] = []

    def clients(self, name: str) -> tuple[str, ...]:
        return self.openers

    def fence(self, client: str) -> None:
        self.fenced.append(client)
        self.openers = tuple(opener for opener in self.openers if opener != client)


@pytest.fixture
def images(tmp_path: Path) -> Opened:
    return Opened(tmp_path / "images")


@pytest.fixture
def house(tmp_path: Path, images: Opened) -> Iterator[House]:
    built = House(tmp_path, migrated(tmp_path / "template.sqlite"), images=images)
    yield built
    built.close()


def lose_coordination(house: House) -> None:
    house.use(EmbeddedCoordination(clock=SystemClock()))


@pytest.mark.rows("IS-2", "W-PA-2")
@pytest.mark.parametrize("kind", [OperationKind.STOP_DISK, OperationKind.DELETE_DISK])
def test_what_still_serves_is_fenced_before_the_disk_counts_as_stopped(house: House, images: Opened, kind: OperationKind) -> None:
    disk = house.disk()
    gateways = Gateways(house.coordination)
    gateways.start()
    house.done(OperationKind.CREATE_DISK, disk)
    gateways.stop()
    lose_coordination(house)
    images.openers = ("pid:1:1",)
    operation = house.ask(kind, disk)
    assert house.drive(operation).state is OperationState.SUCCEEDED
    assert images.fenced == ["pid:1:1"]
    assert {entry.key for entry in house.coordination.list("").entries} == {house.stores.journal.key}


@pytest.mark.parametrize("kind", [OperationKind.STOP_DISK, OperationKind.DELETE_DISK])
def test_what_serves_on_while_its_keys_are_lost_is_fenced_before_the_disk_counts_as_stopped(
    house: House, images: Opened, kind: OperationKind
) -> None:
    disk = house.disk()
    gateways = Gateways(house.coordination)
    gateways.start()
    house.done(OperationKind.CREATE_DISK, disk)
    gateways.stop()
    images.openers = ("pid:1:1",)
    operation = house.ask(kind, disk)
    with pytest.raises(Crash):
        house.drive(operation, failpoint=f"{kind}.await_released.begin:after")
    lose_coordination(house)
    assert house.drive(operation, later=True).state is OperationState.SUCCEEDED
    assert images.fenced == ["pid:1:1"]


def test_the_first_owner_of_a_disk_started_again_fences_whoever_has_it_open(house: House) -> None:
    disk = house.disk()
    house.done(OperationKind.CREATE_DISK, disk, start=False)
    operation = house.ask(OperationKind.START_DISK, disk)
    with pytest.raises(Crash):
        house.drive(operation, failpoint="disk.start.await_served.begin:after")
    assert first_client(house, disk) == "unknown"


def test_a_new_disk_has_nobody_to_fence_unless_it_was_published_before(house: House) -> None:
    disk = house.disk()
    operation = house.ask(OperationKind.CREATE_DISK, disk)
    with pytest.raises(Crash):
        house.drive(operation, failpoint="disk.create.publish.finish:before")
    assert first_client(house, disk) == ""
    lose_coordination(house)
    with pytest.raises(Crash):
        house.drive(operation, failpoint="disk.create.publish.finish:before", later=True)
    assert first_client(house, disk) == "unknown"


def first_client(house: House, disk: Disk) -> str:
    (entry,) = house.coordination.list(f"exports/{disk.id}/").entries
    return Export.model_validate_json(entry.value).client


@pytest.mark.rows("W-PA-3")
def test_a_disk_that_was_waited_for_is_published_again_in_a_new_generation(house: House) -> None:
    disk = house.disk()
    operation = house.ask(OperationKind.CREATE_DISK, disk)
    with pytest.raises(Crash):
        house.drive(operation, failpoint="disk.create.await_served.begin:after")
    before = house.described(disk)
    lose_coordination(house)
    gateways = Gateways(house.coordination)
    gateways.start()
    ended = house.drive(operation, later=True)
    gateways.stop()
    assert ended.state is OperationState.SUCCEEDED
    after = house.described(disk)
    assert before is not None
    assert after is not None
    assert after.generation == before.generation + 1
    entry = house.coordination.list(f"exports/{disk.id}/").entries[0]
    assert Export.model_validate_json(entry.value).generation == after.generation
    assert house.state(disk) == DiskState.STARTED


def test_keys_lost_between_two_attempts_to_publish_are_made_in_a_new_generation(house: House) -> None:
    disk = house.disk()
    operation = house.ask(OperationKind.CREATE_DISK, disk)
    generations = []
    for later in (False, True):
        with pytest.raises(Crash):
            house.drive(operation, failpoint="disk.create.publish.finish:before", later=later)
        (entry,) = house.coordination.list(f"exports/{disk.id}/").entries
        generations.append(Export.model_validate_json(entry.value).generation)
        lose_coordination(house)
    assert generations[1] > generations[0], "a worker may have been given the epochs of the first"


@pytest.mark.parametrize("kind", [OperationKind.STOP_DISK, OperationKind.DELETE_DISK])
def test_an_export_that_cannot_be_read_is_fenced_like_an_unknown_one_and_the_disk_stops(
    house: House, images: Opened, kind: OperationKind
) -> None:
    disk = house.disk()
    gateways = Gateways(house.coordination)
    gateways.start()
    house.done(OperationKind.CREATE_DISK, disk)
    gateways.stop()
    lose_coordination(house)
    images.openers = ("pid:1:1",)
    for key in (f"disks/{disk.id}", f"exports/{disk.id}/0", f"exports/{disk.id}/stray"):
        assert house.coordination.put(key, b"junk")
    assert house.drive(house.ask(kind, disk)).state is OperationState.SUCCEEDED
    assert images.fenced == ["pid:1:1"]
    assert house.keys(disk) == [f"exports/{disk.id}/stray"]


def test_workers_are_told_to_give_up_a_disk_whose_creation_is_undone(house: House) -> None:
    """Nobody serves it in time; a worker that takes it late must hear that it is not wanted any more."""
    disk = house.disk()
    ended = house.drive(house.ask(OperationKind.CREATE_DISK, disk, deadline_s=0.2))
    assert ended.state is OperationState.ROLLED_BACK
    entry = house.coordination.get(house.stores.journal.key)
    assert entry is not None
    keys = [f"disks/{disk.id}", f"exports/{disk.id}/0"]
    told = list(Changes.model_validate_json(entry.value).keys)
    assert told == 4 * keys + 2 * keys[::-1], "made, stopped, removed; each before and after"
