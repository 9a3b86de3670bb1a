"""Draining and undraining gateways, and marking disks, as operations: what is marked, emptied, published, and what is refused."""

import math
import threading
from collections.abc import Callable

import pytest
from sqlalchemy.exc import IntegrityError

from conductor.publisher import Publisher
from conductor.steps.base import Context
from conductor.steps.marks import publish_marks
from conductor.steps.moves import check_empty
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import Busy, MoveFailed
from sanderling.model import plans
from sanderling.model.disks import Access, Disk, DiskEvent, DiskState
from sanderling.model.marks import MARKS_KEY, Marks
from sanderling.model.moves import MoveState
from sanderling.model.operations import Operation, OperationKind, OperationState, StepState
from sanderling.records import assignments, disks, marks
from sanderling.records.tables import OperationRow
from sanderling.settings import Settings
from tests.fleet import Fleet, Sent
from tests.house import SETTINGS, Crash, House
from tests.unit.test_assignments import cancel, problem, started, states


@pytest.fixture
def fleet(house: House) -> Fleet:
    return house.fleet("g1", "g2", "g3")


def drain(house: House, gateway: str = "g1") -> Operation:
    with house.records.begin() as session:
        subject = assignments.drain_of(gateway)
        return assignments.submit(session, subject, conductor=SETTINGS, requested_by="alice", now=house.records.now())


def undrain(house: House, gateway: str = "g1") -> Operation:
    with house.records.begin() as session:
        subject = assignments.undrain_of(gateway)
        return assignments.submit(session, subject, conductor=SETTINGS, requested_by="alice", now=house.records.now())


def test_a_drain_may_take_as_long_as_moving_every_path_there_is(house: House) -> None:
    for number in range(4):
        started(house, f"vol-{number}", access=Access.SHARED)
    wanted = plans.steps_of(OperationKind.DRAIN_GATEWAY, SETTINGS, moves=8)
    assert drain(house).steps == wanted
    assert wanted != plans.steps_of(OperationKind.DRAIN_GATEWAY, SETTINGS)


@pytest.mark.rows("W-PA-9")
@pytest.mark.parametrize(("one", "opposite"), [(drain, undrain), (undrain, drain)])
@pytest.mark.parametrize("gateway", ["g1", "g" * 255])
def test_a_drain_and_an_undrain_of_one_gateway_are_never_open_at_once(
    house: House, one: Callable[[House, str], Operation], opposite: Callable[[House, str], Operation], gateway: str
) -> None:
    first = one(house, gateway)
    with pytest.raises(Busy) as refused:
        opposite(house, gateway)
    assert refused.value.context["operation_id"] == first.id
    cancel(house, opposite(house, "another"))
    cancel(house, first)
    opposite(house, gateway)


def test_not_even_who_did_not_see_the_drain_can_write_an_undrain_beside_it(house: House) -> None:
    asked = drain(house).model_dump(exclude={"steps"})
    blind = {"id": "blind", "kind": OperationKind.UNDRAIN_GATEWAY, "resource_id": "g1"}
    with house.records.begin() as session, pytest.raises(IntegrityError, match=r"operations\.gateway"), session.begin_nested():
        session.add(OperationRow(**asked | blind, gateway="g1"))
    with house.records.begin() as session:
        session.add(OperationRow(**asked | blind, gateway="g2"))


def published(house: House) -> Marks:
    assert MARKS_KEY in house.noted
    entry = house.coordination.get(MARKS_KEY)
    return Marks.model_validate_json(entry.value) if entry else Marks()


def test_a_gateway_that_is_drained_is_marked_and_serves_nothing_in_the_end(house: House, fleet: Fleet) -> None:
    disk, other = started(house), started(house, "other")
    exports = [*fleet.serve(disk, "g1"), *fleet.serve(other, "g1")]
    ended = house.drive(drain(house))
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert published(house).drained == {"g1"}
    assert {fleet.owner(export) for export in exports} == {"g2", "g3"}
    assert house.drive(undrain(house)).state is OperationState.SUCCEEDED
    assert published(house) == Marks()


def test_a_gateway_that_serves_nothing_is_drained_at_once(house: House, fleet: Fleet) -> None:
    assert house.drive(drain(house)).state is OperationState.SUCCEEDED
    assert fleet.sent == []


@pytest.mark.parametrize("released", ["at once", "by and by", "never"])
def test_a_disk_that_is_stopped_while_its_gateway_is_drained_is_in_nobodys_way_once_it_is_released(
    house: House, fleet: Fleet, released: str
) -> None:
    disk, other = started(house), started(house, "other")
    (export,), (moved,) = fleet.serve(disk, "g1"), fleet.serve(other, "g1")

    def release() -> None:
        value = fleet.value(export).model_dump_json().encode()
        assert house.coordination.release(export.key, value, consul_session=fleet.nodes["g1"].consul_session)

    def stop(sent: Sent) -> bool:
        if sent.command.export != export:
            return True
        with house.records.begin() as session:
            if disks.get(session, disk.id).state == DiskState.STARTED:
                disks.apply(session, disk.id, DiskEvent.STOP, now=house.records.now(), actor="alice", operation_id=None)
                if released == "at once":
                    release()
        return False

    fleet.before = stop
    later = threading.Timer(0.3, release)
    if released == "by and by":
        later.start()
    ended = house.drive(drain(house))
    later.cancel()
    assert sorted(states(house, ended)) == [MoveState.FAILED, MoveState.SUCCEEDED]
    assert fleet.owner(moved) in {"g2", "g3"}
    if released == "never":
        assert (ended.state, "g1 still serves 1 exports" in problem(ended)) == (OperationState.FAILED, True)
    else:
        assert ended.state is OperationState.SUCCEEDED, ended.problem


def test_an_export_that_went_elsewhere_than_the_drain_meant_is_out_of_its_way_too(house: House, fleet: Fleet) -> None:
    (export,) = fleet.serve(started(house), "g1")

    def elsewhere(sent: Sent) -> bool:
        value = fleet.value(export)
        if value.node == "g1":
            raw = value.model_dump_json().encode()
            assert house.coordination.release(export.key, raw, consul_session=fleet.nodes["g1"].consul_session)
            fleet.take("g3" if sent.server == "g2" else "g2", export)
        return False

    fleet.before = elsewhere
    ended = house.drive(drain(house))
    assert states(house, ended) == [MoveState.FAILED]
    assert ended.state is OperationState.SUCCEEDED, ended.problem


def test_a_drain_fails_where_a_path_that_is_served_did_not_move(house: House, fleet: Fleet) -> None:
    (export,) = fleet.serve(started(house), "g1")
    for name in ("g2", "g3"):
        fleet.nodes[name].refuses[export] = "no room"
    ended = house.drive(drain(house))
    assert ended.state is OperationState.FAILED
    assert "1 of 1 moves failed" in problem(ended)


def drained_alone(house: House) -> Operation:
    """A drain of the gateway that serves a disk and has no other beside it, about to check what is left."""
    house.fleet("g1").serve(started(house), "g1")
    operation = drain(house)
    with pytest.raises(Crash):
        house.drive(operation, failpoint="gateway.drain.check_empty.begin:after")
    return operation


def left_at_once(house: House, operation: Operation) -> str:
    """What its check says while there is any amount of time left; `Halted` when it waits."""
    halted, going = threading.Event(), house.operation(operation)
    step, stores = going.steps[-1], house.stores
    context = Context(stores, SETTINGS, going, step, math.inf, halted, reach=lambda _: None, tell=lambda: None)
    waiting = threading.Timer(5, halted.set)
    waiting.start()
    try:
        with pytest.raises(MoveFailed) as failed:
            check_empty(context)
    finally:
        waiting.cancel()
    return failed.value.detail


def test_a_drain_of_what_no_other_gateway_may_take_fails_at_once_with_the_fix_and_the_mark_stays(house: House) -> None:
    operation = drained_alone(house)
    detail = left_at_once(house, operation)
    assert "g1 still serves 1 exports that no other gateway may take: vol/0" in detail
    assert "add a gateway" in detail
    assert "undrain g1" in detail
    ended = house.drive(operation, conductor="c2", later=True)
    assert (ended.state, problem(ended)) == (OperationState.FAILED, detail)
    assert published(house).drained == {"g1"}


def test_what_other_gateways_could_take_and_have_not_is_named_when_a_drain_fails(house: House) -> None:
    operation = drained_alone(house)
    house.fleet("g2")
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.FAILED
    assert "g1 still serves 1 exports that no other gateway has taken: vol/0" in problem(ended)
    assert "undrain g1" in problem(ended)


def test_a_drain_that_is_cancelled_while_it_waits_keeps_what_it_has_done(house: House) -> None:
    fleet, disk = house.fleet("g1"), started(house)
    (export,) = fleet.serve(disk, "g1")
    operation = drain(house)
    with pytest.raises(Crash):
        house.drive(operation, failpoint="gateway.drain.check_empty.begin:after")
    cancel(house, operation)
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.CANCELLED
    assert [step.state for step in ended.steps] == [StepState.DONE, StepState.DONE, StepState.DONE, StepState.UNDONE]
    assert published(house).drained == {"g1"}
    assert fleet.owner(export) == "g1"


def marked(house: House, disk: Disk, *, pin: str | None, avoid: frozenset[str] = frozenset()) -> Operation:
    with house.records.begin() as session:
        subject = assignments.marks_of(disk, pin=pin, avoid=avoid)
        asked = assignments.submit(session, subject, conductor=SETTINGS, requested_by="alice", now=house.records.now())
    return house.drive(asked)


def test_the_marks_of_a_disk_are_published_and_its_state_is_left_alone(house: House) -> None:
    disk = started(house)
    assert marked(house, disk, pin="g1", avoid=frozenset({"g2"})).state is OperationState.SUCCEEDED
    assert published(house) == Marks(pins={disk.id: "g1"}, avoid={disk.id: frozenset({"g2"})})
    assert house.state(disk) == DiskState.STARTED
    assert marked(house, disk, pin=None).state is OperationState.SUCCEEDED
    assert published(house) == Marks()


def test_marks_that_coordination_lost_are_published_again(house: House) -> None:
    disk = started(house)
    marked(house, disk, pin="g1")
    assert house.coordination.delete("marks")
    house.another_conductor()
    Publisher(Settings(), house.stores, tell=lambda: None).turn()
    assert published(house).pins == {disk.id: "g1"}
    assert house.coordination.put("marks", b"junk")
    Publisher(Settings(), house.stores, tell=lambda: None).turn()
    assert published(house).pins == {disk.id: "g1"}


class Overtaken(EmbeddedCoordination):
    """A store on which another conductor publishes first, whenever there is something in `before`."""

    before: list[Callable[[], object]]

    def put(self, key: str, value: bytes, *, expected: int | None = None) -> bool:
        if self.before:
            self.before.pop()()
        return super().put(key, value, expected=expected)


def test_of_two_conductors_that_publish_marks_at_once_the_one_that_knows_more_prevails(house: House) -> None:
    store, disk = Overtaken(clock=house.stores.clock), started(house)
    store.before = []
    house.use(store)
    store.before = [lambda: marked(house, disk, pin="g2")]
    with house.records.begin() as session:
        marks.drain(session, "g1", is_drained=True, now=house.records.now(), actor="alice", operation_id="o")
    publish_marks(house.stores)
    assert published(house) == Marks(drained=frozenset({"g1"}), pins={disk.id: "g2"})


def test_marks_are_told_once_more_after_they_were_changed(house: House) -> None:
    """Another thread of the conductor may have told of them too early: workers then looked and saw the old ones."""
    store, journal = Overtaken(clock=house.stores.clock), house.stores.journal
    store.before = []
    house.use(store)
    with house.records.begin() as session:
        marks.drain(session, "g1", is_drained=True, now=house.records.now(), actor="alice", operation_id="o")
    store.before = [lambda: journal.write(store.put)]
    assert publish_marks(house.stores)
    assert not journal.is_written


def test_a_disk_that_is_deleted_leaves_no_marks(house: House) -> None:
    disk = house.disk()
    house.done(OperationKind.CREATE_DISK, disk, start=False)
    marked(house, disk, pin="g1")
    house.done(OperationKind.DELETE_DISK, disk)
    Publisher(Settings(), house.stores, tell=lambda: None).turn()
    assert published(house) == Marks()
