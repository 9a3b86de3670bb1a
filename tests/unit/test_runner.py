"""Driving operations: retries, failures, cancels, claims, deadlines, and exports that a dead worker left."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cli.lab.parts.daemons import waited
from conductor.runner import Runner
from conductor.steps.descriptions import METADATA_KEY
from conductor.steps.keys import delete_keys, keys_of
from sanderling.errors import Fenced, ImageFailed, InUse, Unavailable
from sanderling.images.base import Images
from sanderling.model import plans
from sanderling.model.disks import Disk, DiskState
from sanderling.model.exports import Export, ExportPhase
from sanderling.model.operations import Operation, OperationKind, OperationState, StepState
from sanderling.records import operations
from sanderling.records.tables import EventRow
from sanderling.settings import General, Settings
from tests.house import SETTINGS, Gateways, House

CREATE, START, STOP = OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.STOP_DISK
DELETE = OperationKind.DELETE_DISK


class Troubled:
    """Images of which single calls do something else first; `before["create"]` may raise or wait."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.before: dict[str, Callable[[], None]] = {}
        self.answers: dict[str, Callable[[], Any]] = {}
        self.fenced: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.before.get(name, lambda: None)()
            if name == "fence":
                return self.fenced.append(args[0])
            if name in self.answers:
                return self.answers[name]()
            return getattr(self._images, name)(*args, **kwargs)

        return call


@pytest.fixture
def images(house: House) -> Troubled:
    troubled = Troubled(house.images)
    house.stores = replace(house.stores, images=troubled)
    return troubled


@pytest.fixture
def gateways(house: House) -> Iterator[Gateways]:
    thread = Gateways(house.coordination)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def runner(house: House) -> Iterator[Runner]:
    own = replace(SETTINGS, workers=2, sweep_interval_s=0.05, move_settle_s=15)
    settings = Settings(sanderling=General(node="c1"), conductor=own)
    running = Runner(settings, house.stores, tell=lambda: None)
    yield running
    running.stop()


def raising(problem: Exception, *, times: int = 10**6) -> Callable[[], None]:
    left = [problem] * min(times, 1000)

    def raise_while_left() -> None:
        if left:
            raise left.pop()

    return raise_while_left


def steps(operation: Operation) -> dict[str, StepState]:
    return {step.name: step.state for step in operation.steps}


def test_a_part_that_is_away_for_a_moment_costs_an_attempt(house: House, images: Troubled) -> None:
    images.before["create"] = raising(Unavailable("away", dependency="images"), times=2)
    ended = house.drive(house.ask(CREATE, house.disk(), start=False))
    assert ended.state is OperationState.SUCCEEDED
    assert ended.steps[0].attempts == 3


def test_a_conductor_that_was_fenced_comes_again_as_another_client(house: House, images: Troubled) -> None:
    images.before["create"] = raising(Fenced("this client is fenced", client="1.2.3.4:0/1"), times=1)
    ended = house.done(CREATE, house.disk(), start=False)
    assert ended.steps[0].attempts == 2


def test_between_two_attempts_the_step_says_what_the_last_failed_with_and_when_the_next_begins(
    house: House, images: Troubled
) -> None:
    failed, seen = raising(Unavailable("no monitor answers", dependency="images"), times=1), list[Operation]()
    operation = house.ask(CREATE, house.disk(), start=False)

    def look_and_fail() -> None:
        seen.append(house.operation(operation))
        failed()

    images.before["create"] = look_and_fail
    ended = house.drive(operation)
    first, second = (one.steps[0] for one in seen)
    assert (first.problem, first.next_try_at) == (None, None)
    assert second.problem is not None
    assert second.problem["detail"] == "no monitor answers"
    assert first.tried_at is not None
    assert second.tried_at is not None
    assert first.started_at == second.started_at == first.tried_at < second.tried_at
    assert (ended.state, ended.steps[0].problem) == (OperationState.SUCCEEDED, None)


def test_while_an_attempt_is_waited_for_the_step_says_when_it_begins(house: House, images: Troubled) -> None:
    images.before["create"] = raising(Unavailable("no monitor answers", dependency="images"))
    operation = house.ask(CREATE, house.disk(), start=False)
    slow = Settings(
        sanderling=General(node="c1"), conductor=replace(SETTINGS, retry_first_s=60.0, retry_most_s=60.0, move_settle_s=15.0)
    )
    runner = Runner(slow, house.stores, tell=lambda: None)
    runner.start()
    try:
        waited(
            lambda: house.operation(operation).steps[0].next_try_at is not None, within_s=30, what="the next attempt is planned"
        )
    finally:
        runner.stop()
    step = house.operation(operation).steps[0]
    assert step.tried_at is not None
    assert step.next_try_at is not None
    assert step.next_try_at > step.tried_at
    assert step.problem is not None
    assert step.problem["code"] == "unavailable"


def test_what_waits_for_others_on_a_disk_is_driven_in_turn(house: House, runner: Runner, gateways: Gateways) -> None:
    disk = house.disk()
    asked = [house.ask(CREATE, disk, start=False)]
    for kind in (START, STOP, START):
        with house.records.begin() as session:
            asked.append(
                operations.submit(
                    session,
                    kind=kind,
                    resource_id=disk.id,
                    resource_name=disk.name,
                    params={},
                    steps=plans.steps_of(kind, SETTINGS),
                    requested_by="alice",
                    now=house.records.now(),
                    queue_max=3,
                )
            )
    assert [one.state for one in asked] == [OperationState.PENDING, *[OperationState.QUEUED] * 3]
    assert house.drive(asked[1]).state is OperationState.QUEUED
    runner.start()
    waited(lambda: house.operation(asked[-1]).ended, within_s=60, what="the last one has ended")
    ended = [house.operation(one) for one in asked]
    assert [one.state for one in ended] == [OperationState.SUCCEEDED] * 4
    for before, after in pairwise(ended):
        assert before.ended_at is not None
        assert after.started_at is not None
        assert before.ended_at <= after.started_at
    assert house.state(disk) == DiskState.STARTED


@pytest.mark.rows("W-MC-5")
def test_a_part_that_stays_away_ends_the_operation_and_nothing_is_left(house: House, images: Troubled) -> None:
    images.before["set_metadata"] = raising(Unavailable("away", dependency="images"))
    disk = house.disk()
    ended = house.drive(house.ask(CREATE, disk, start=False))
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.problem is not None
    assert (ended.problem["code"], ended.problem["context"]["step"]) == ("unavailable", "describe")
    assert "ask again" in ended.problem["context"]["fix"]
    assert (house.state(disk), house.images.list()) == (None, ())


def test_a_refusal_is_not_tried_again(house: House, images: Troubled) -> None:
    images.before["create"] = raising(ImageFailed("no"))
    ended = house.drive(house.ask(CREATE, house.disk(), start=False))
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.steps[0].attempts == 1


def test_a_fault_of_ours_ends_the_operation_like_any_other(house: House, images: Troubled) -> None:
    images.before["create"] = raising(ZeroDivisionError("oops"))
    ended = house.drive(house.ask(CREATE, house.disk(), start=False))
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.problem is not None
    assert "ZeroDivisionError" in ended.problem["detail"]


def test_when_undoing_fails_too_the_disk_is_failed_and_the_problem_says_both(house: House, images: Troubled) -> None:
    images.before["set_metadata"] = raising(ImageFailed("cannot describe"))
    images.before["remove"] = raising(ImageFailed("cannot remove"))
    disk = house.disk()
    ended = house.drive(house.ask(CREATE, disk, start=False))
    assert ended.state is OperationState.FAILED
    assert ended.problem is not None
    assert ended.problem["detail"] == "cannot remove"
    assert ended.problem["context"]["undoing_after"]["detail"] == "cannot describe"
    assert house.state(disk) == DiskState.FAILED
    images.before.clear()
    house.done(DELETE, disk)
    assert (house.state(disk), house.images.list()) == (None, ())


@pytest.mark.rows("W-PA-1")
def test_a_stop_that_fails_cannot_go_back_and_the_disk_can_be_stopped_again(
    house: House, images: Troubled, gateways: Gateways
) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    images.before["set_metadata"] = raising(ImageFailed("no"))
    ended = house.drive(house.ask(STOP, disk))
    assert ended.state is OperationState.FAILED
    assert ended.problem is not None
    assert "cannot be undone" in ended.problem["context"]["fix"]
    assert house.state(disk) == DiskState.FAILED
    images.before.clear()
    house.done(STOP, disk)
    assert (house.state(disk), house.keys(disk)) == (DiskState.STOPPED, [])


def test_a_step_that_keeps_ending_its_conductor_is_given_up(house: House) -> None:
    operation = house.ask(CREATE, house.disk(), start=False)
    for number in range(SETTINGS.step_attempts_max):
        with house.records.begin() as session:
            claimed = operations.claim(session, operation.id, conductor=f"dead-{number}", now=house.records.now(), ttl_s=0.0)
            assert claimed is not None
            operations.begin_step(session, operation.id, 0, claim_epoch=claimed.claim_epoch, now=house.records.now())
    ended = house.drive(operation, later=True)
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.problem is not None
    assert "ended its conductor each time" in ended.problem["detail"]


def test_a_disk_that_nobody_serves_is_not_started_and_the_problem_says_why(house: House) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    ended = house.drive(house.ask(START, disk, deadline_s=0.2))
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.problem is not None
    assert "taken by none of 0 live gateways" in ended.problem["detail"]
    assert (house.state(disk), house.keys(disk)) == (DiskState.STOPPED, [])


@pytest.mark.rows("W-PA-24")
def test_a_cancel_ends_a_wait_and_undoes_what_was_done(house: House, runner: Runner) -> None:
    disk = house.disk()
    operation = house.ask(CREATE, disk)
    runner.start()
    runner.wake(operation.id)
    waiting = lambda: steps(house.operation(operation))[plans.AWAIT_SERVED] is StepState.RUNNING  # noqa: E731
    waited(waiting, within_s=20, what="the wait for gateways begins")
    with house.records.begin() as session:
        operations.request_cancel(session, operation.id, actor="alice", now=house.records.now())
    waited(lambda: house.operation(operation).ended, within_s=15, what="the cancel ends it, long before the deadline")
    ended = house.operation(operation)
    assert ended.state is OperationState.CANCELLED
    assert ended.problem is None
    assert (house.state(disk), house.images.list(), house.keys(disk)) == (None, (), [])


@pytest.mark.rows("W-OM-2", "W-MC-2", "W-PA-5")
def test_a_sweep_drives_what_no_wake_up_told_of(house: House, runner: Runner) -> None:
    asked = [house.ask(CREATE, house.disk(name=f"vol-{n}"), start=False) for n in range(20)]
    runner.start()
    waited(lambda: all(house.operation(one).ended for one in asked), within_s=30, what="all end")
    assert {house.operation(one).state for one in asked} == {OperationState.SUCCEEDED}
    assert len(house.images.list()) == len(asked)


def test_a_conductor_that_stops_gives_its_operations_back_at_once(house: House, runner: Runner) -> None:
    operation = house.ask(CREATE, house.disk())
    runner.start()
    waiting = lambda: steps(house.operation(operation))[plans.AWAIT_SERVED] is StepState.RUNNING  # noqa: E731
    waited(waiting, within_s=20, what="the wait for gateways begins")
    runner.stop()
    with house.records.read() as session:
        assert operations.due(session, now=house.records.now(), ttl_s=SETTINGS.claim_ttl_s, limit=9) == [operation.id]


@pytest.mark.rows("W-MC-3", "W-MC-4")
def test_a_conductor_whose_claim_was_taken_stops_at_once(house: House, images: Troubled) -> None:
    operation, entered, go_on = house.ask(CREATE, house.disk(), start=False), threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        go_on.wait(20)

    images.before["create"] = hold
    first = threading.Thread(target=house.drive, args=(operation,), daemon=True)
    first.start()
    assert entered.wait(20)
    images.before.clear()
    assert house.drive(operation, conductor="c2", later=True).state is OperationState.SUCCEEDED
    go_on.set()
    first.join(20)
    assert not first.is_alive()
    with house.records.read() as session:
        rows = session.query(EventRow).filter_by(operation_id=operation.id).order_by(EventRow.id).all()
        assert [row.kind for row in rows].count("step.done") == 3
        assert [row.kind for row in rows][-1] == "operation.succeeded"
        assert {row.actor for row in rows[3:]} == {"c2"}


@pytest.mark.rows("W-MC-6", "W-PA-12")
def test_a_step_that_blocks_past_its_deadline_is_left_behind_and_changes_nothing_more(house: House, images: Troubled) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    go_on, finished = threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread().name == "step describe_started" and not finished.is_set():
            finished.set()
            go_on.wait(20)

    images.before["get_metadata"] = hold
    ended = house.drive(house.ask(START, disk, deadline_s=0.05))
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.problem is not None
    assert ended.problem["code"] == "step-timed-out"
    blocked = [thread for thread in threading.enumerate() if thread.name == "step describe_started"]
    assert blocked, "the operation ended before what blocked it"
    go_on.set()
    blocked[0].join(10)
    assert not blocked[0].is_alive()
    described = house.described(disk)
    assert described is not None
    assert not described.started


@pytest.mark.rows("W-PA-15")
def test_a_stop_that_a_gateway_does_not_follow_fails_and_names_the_gateway(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    gateways.stop()
    ended = house.drive(house.ask(STOP, disk, deadline_s=0.2))
    assert ended.state is OperationState.FAILED
    assert ended.problem is not None
    assert ended.problem["context"]["step"] == plans.AWAIT_RELEASED
    assert f"exports/{disk.id}/0 by g1" in ended.problem["detail"]
    assert house.keys(disk) == [f"disks/{disk.id}", f"exports/{disk.id}/0"]


def test_keys_that_name_a_client_which_may_still_write_are_not_removed(house: House) -> None:
    left = Export(generation=1, counter=1, node="g1", client="c", phase=ExportPhase.SERVING)
    assert house.coordination.put("exports/d1/0", left.model_dump_json().encode())
    assert not delete_keys(house.coordination, keys_of(house.coordination, "d1"))
    assert house.coordination.get("exports/d1/0") is not None


def test_what_a_dead_worker_left_is_fenced_before_the_disk_counts_as_stopped(
    house: House, images: Troubled, gateways: Gateways
) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    gateways.die()
    assert house.drive(house.ask(STOP, disk)).state is OperationState.SUCCEEDED
    assert images.fenced == ["client-of-g1"]
    assert house.keys(disk) == []


def test_a_disk_that_failed_is_published_so_that_its_first_owner_fences(house: House) -> None:
    disk = house.disk(state=DiskState.FAILED)
    house.images.create(disk.image, disk.size_bytes, metadata={"sanderling.disk": disk.model_dump_json()})
    operation = house.ask(START, disk, deadline_s=0.2)
    keys: list[Export] = []
    entry = threading.Thread(target=lambda: keys.append(first_export(house, f"exports/{disk.id}/0")), daemon=True)
    entry.start()
    house.drive(operation)
    entry.join(10)
    assert (keys[0].client, keys[0].phase) == ("unknown", ExportPhase.FREE)


def first_export(house: House, key: str) -> Export:
    index = 0
    while True:
        listing = house.coordination.watch(key, index=index, timeout_s=5)
        if listing.entries:
            return Export.model_validate_json(listing.entries[0].value)
        index = listing.index


def test_a_disk_started_again_gets_a_generation_of_its_own(house: House, gateways: Gateways) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    before = house.described(disk)
    house.done(STOP, disk)
    house.done(START, disk)
    after = house.described(disk)
    assert before is not None
    assert after is not None
    assert after.generation > before.generation
    assert after.revision == before.revision + 2


def test_a_description_that_somebody_else_changed_meanwhile_is_not_written_over(
    house: House, images: Troubled, gateways: Gateways
) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)

    def publish_again() -> None:
        images.before.clear()
        stored = house.images.get_metadata(disk.image)[METADATA_KEY]
        raised = Disk.model_validate_json(stored)
        raised = raised.model_copy(update={"generation": raised.generation + 5})
        assert house.images.set_metadata(disk.image, METADATA_KEY, raised.model_dump_json(), expected=stored)

    before = house.described(disk)
    images.before["set_metadata"] = publish_again
    house.done(START, disk)
    after = house.described(disk)
    assert before is not None
    assert after is not None
    assert after.generation == before.generation + 6


@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_client_that_was_made_to_give_up_and_is_still_listed_is_fenced_so_that_the_image_can_go(
    house: House, images: Troubled, gateways: Gateways, stopped_before: bool
) -> None:
    disk = house.disk()
    house.done(CREATE, disk)
    if stopped_before:
        house.done(STOP, disk)
    listed = ["client-of-g1", "client-of-somebody-else"]
    images.answers["clients"] = lambda: tuple(client for client in listed if client not in images.fenced)
    images.before["remove"] = lambda: in_use() if "client-of-g1" not in images.fenced else None
    house.done(DELETE, disk)
    assert images.fenced == ["client-of-g1"]
    assert house.images.list() == ()


def test_an_image_that_somebody_else_has_open_is_not_removed_and_the_problem_names_who(house: House, images: Troubled) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    images.answers["clients"] = lambda: ("client-of-somebody-else",)
    images.before["remove"] = in_use
    ended = house.drive(house.ask(DELETE, disk, deadline_s=0.8))
    assert ended.state is OperationState.FAILED
    assert ended.problem is not None
    assert ended.problem["code"] == "in-use"
    assert ended.problem["context"]["clients"] == ["client-of-somebody-else"]
    assert images.fenced == []


def in_use() -> None:
    raise InUse("it is open")


def test_an_image_removed_in_many_parts_costs_one_attempt(house: House, images: Troubled) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    parts = SETTINGS.step_attempts_max * 3
    images.before["remove"] = raising(Unavailable("repeat to go on", dependency="images", left_bytes=1 << 40), times=parts)
    ended = house.done(DELETE, disk)
    assert {step.name: step.attempts for step in ended.steps}[plans.REMOVE_IMAGE] == 1
    assert house.images.list() == ()


def test_a_disk_whose_image_is_half_removed_cannot_be_started_only_deleted(house: House, images: Troubled) -> None:
    disk = house.disk()
    house.done(CREATE, disk, start=False)
    images.before["remove"] = lambda: fail_having_removed(house, disk.image)
    assert house.drive(house.ask(DELETE, disk)).state is OperationState.FAILED
    images.before.clear()
    ended = house.drive(house.ask(START, disk))
    assert ended.state is OperationState.ROLLED_BACK
    assert ended.problem is not None
    assert (ended.problem["code"], ended.problem["context"]["step"]) == ("not-found", plans.DESCRIBE_STARTED)
    assert "is missing or has no description" in ended.problem["detail"]
    assert house.state(disk) == DiskState.FAILED
    house.done(DELETE, disk)
    assert house.state(disk) is None


def fail_having_removed(house: House, image: str) -> None:
    house.images.remove(image)
    raise ImageFailed("half of it is in the trash")
