"""What keeps an attempt at a step that no longer counts from changing anything."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.lab.parts.daemons import waited
from conductor.steps import images
from conductor.steps.base import Context, Halted
from sanderling.errors import ClaimLost, InUse, StepTimedOut
from sanderling.model.disks import Disk
from sanderling.model.operations import Operation, OperationKind
from sanderling.records import events, operations
from tests.house import SETTINGS, House, migrated


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path, migrated(tmp_path / "template.sqlite"))
    yield built
    built.close()


def claimed(house: House) -> Operation:
    return claimed_for(house, house.disk())


def claimed_for(house: House, disk: Disk) -> Operation:
    operation = house.ask(OperationKind.CREATE_DISK, disk)
    with house.records.begin() as session:
        claim = operations.claim(session, operation.id, conductor="c1", now=house.records.now(), ttl_s=0.0)
    assert claim is not None
    return claim


def attempt(house: House, operation: Operation, *, left_s: float = 60.0) -> Context:
    deadline = house.stores.clock.monotonic() + left_s
    reach, tell = (lambda _: None), (lambda: None)
    return Context(house.stores, SETTINGS, operation, operation.steps[0], deadline, threading.Event(), reach, tell)


def changed_by(context: Context) -> list[str]:
    done = []
    with context.effect("create"):
        done.append("changed")
    return done


def test_an_attempt_that_counts_has_its_effect(house: House) -> None:
    assert changed_by(attempt(house, claimed(house))) == ["changed"]


def test_an_attempt_whose_claim_was_taken_changes_nothing(house: House) -> None:
    context = attempt(house, claimed(house))
    with house.records.begin() as session:
        later = operations.claim(session, context.operation.id, conductor="c2", now=house.records.now(), ttl_s=60.0)
    assert later is not None
    with pytest.raises(ClaimLost):
        changed_by(context)


def test_an_attempt_that_was_left_behind_changes_nothing(house: House) -> None:
    context = attempt(house, claimed(house))
    context.halted.set()
    with pytest.raises(Halted):
        changed_by(context)


def test_an_attempt_whose_time_is_over_changes_nothing(house: House) -> None:
    with pytest.raises(StepTimedOut) as refused:
        changed_by(attempt(house, claimed(house), left_s=0))
    assert refused.value.context["step"] == "create_image"


def test_an_attempt_to_go_forward_changes_nothing_once_the_operation_is_being_undone(house: House) -> None:
    context = attempt(house, claimed(house))
    with house.records.begin() as session:
        epoch = context.operation.claim_epoch
        operations.begin_undo(session, context.operation.id, claim_epoch=epoch, now=house.records.now(), problem=None)
    with pytest.raises(ClaimLost):
        changed_by(context)


@pytest.fixture
def opener(house: House) -> Iterator[Callable[[Disk], str]]:
    """Has the disk's image open in a process of its own; its client."""
    started: list[subprocess.Popen[bytes]] = []

    def open_image(disk: Disk) -> str:
        file = house.stores.images.backing_store(disk.image).location
        process = subprocess.Popen([sys.executable, "-c", f"import signal; f = open({file!r}, 'rb+'); signal.pause()"])
        started.append(process)
        waited(lambda: len(house.stores.images.clients(disk.image)) == 1, within_s=10, what="the image is open")
        return house.stores.images.clients(disk.image)[0]

    yield open_image
    for process in started:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("said", [True, False], ids=["it has served", "nobody knows it"])
def test_an_image_is_removed_once_what_has_served_it_is_fenced_and_nobody_else_is(
    house: House, opener: Callable[[Disk], str], said: bool
) -> None:
    disk = house.disk()
    context = attempt(house, claimed_for(house, disk), left_s=3.0)
    house.stores.images.create(disk.image, 512, metadata={})
    client = opener(disk)
    with house.records.begin() as session:
        if said:
            data = {"client": client}
            now = house.records.now()
            events.append(session, "export.served", at=now, actor="node", resource_id=disk.id, data=data)
    if said:
        images.remove(context)
        assert disk.image not in house.stores.images.list()
    else:
        with pytest.raises(InUse):
            images.remove(context)
    assert house.stores.images.is_fenced(client) is said
