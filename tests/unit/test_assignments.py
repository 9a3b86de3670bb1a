"""Moving paths as an operation: records on a file, an embedded coordination store, and gateways that answer commands there."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cli.lab.parts.daemons import waited
from conductor.endpoints.operations import endpoint
from conductor.runner import Runner
from rpc.messages import ExportCommand, Wake
from sanderling.errors import Busy, Unavailable
from sanderling.model.disks import Access, Disk, DiskEvent, DiskState
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import Operation, OperationState
from sanderling.records import assignments, disks, operations
from sanderling.records import moves as recorded
from sanderling.records.tables import EventRow
from sanderling.settings import General, Settings
from tests.fleet import Fleet, Sent
from tests.house import SETTINGS, Crash, House
from tests.unit.test_worker_moves import Pair


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


def problem(operation: Operation) -> str:
    assert operation.problem is not None
    return str(operation.problem["detail"])


def cancel(house: House, operation: Operation) -> None:
    with house.records.begin() as session:
        operations.request_cancel(session, operation.id, actor="alice", now=house.records.now())


@pytest.fixture
def fleet(house: House) -> Fleet:
    return house.fleet("g1", "g2", "g3")


@pytest.mark.rows("PA-26", "PA-30", "PA-32", "PA-33")
def test_a_move_ends_when_its_destination_serves(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert ended.state is OperationState.SUCCEEDED, ended.problem
    assert fleet.owner(export) == "g2"
    assert states(house, ended) == [MoveState.SUCCEEDED]
    assert [(sent.server, sent.method) for sent in fleet.sent] == [("g2", "export.path_host"), ("g1", "export.clean")]


@pytest.mark.rows("PA-28", "W-PA-4")
def test_an_assignment_without_moves_succeeds_at_once_and_lets_the_next_one_begin(house: House, fleet: Fleet) -> None:
    assert house.drive(ask(house)).state is OperationState.SUCCEEDED
    assert fleet.sent == []
    assert house.drive(ask(house)).state is OperationState.SUCCEEDED


@pytest.mark.rows("W-PA-23", "PA-36")
def test_every_move_leaves_its_history_and_the_next_assignment_may_begin(house: House, fleet: Fleet) -> None:
    disk = started(house)
    fleet.serve(disk, "g1")
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    with house.records.read() as session:
        kinds = [row.kind for row in session.query(EventRow).filter_by(operation_id=ended.id).order_by(EventRow.id)]
    assert [kind for kind in kinds if kind.startswith("move.")] == ["move.moving", "move.succeeded"]
    assert house.drive(ask(house, move(disk, "g2", "g1"))).state is OperationState.SUCCEEDED


@pytest.mark.rows("PA-16")
def test_what_an_assignment_left_behind_is_gone_before_the_next_one_begins(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    first = ask(house, move(disk, "g1", "g2"))
    fleet.before = lambda _: False
    with pytest.raises(Crash):
        house.drive(first, failpoint="paths.assign.move_paths.command:after")
    with pytest.raises(Busy):
        ask(house, move(disk, "g1", "g3"))
    left = house.drive(first, conductor="c2", later=True)
    assert (left.state, states(house, left)) == (OperationState.FAILED, [MoveState.FAILED])
    late, fleet.before = list(fleet.sent), lambda _: True
    assert house.drive(ask(house, move(disk, "g1", "g3"))).state is OperationState.SUCCEEDED
    for sent in late:
        fleet.cast("iscsi_worker", sent.method, sent.command, server=sent.server)
    assert fleet.owner(export) == "g3"
    with house.records.read() as session:
        assert operations.open_resources(session) == frozenset()


@pytest.mark.rows("PA-27")
def test_a_conductor_that_is_woken_carries_an_assignment_out(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    own = replace(SETTINGS, sweep_interval_s=600, move_settle_s=15)
    runner = Runner(Settings(sanderling=General(node="c1"), conductor=own), house.stores, tell=lambda: None)
    _, woken = endpoint(runner.wake).methods["wake"]
    runner.start()
    try:
        operation = ask(house, move(disk, "g1", "g2"))
        woken(Wake(operation_id=operation.id))
        waited(lambda: house.operation(operation).ended, within_s=20, what="the assignment ends")
    finally:
        runner.stop()
    ended = house.operation(operation)
    assert (ended.state, ended.claimed_by, fleet.owner(export)) == (OperationState.SUCCEEDED, "c1", "g2")


@pytest.mark.rows("W-PA-14")
def test_commands_that_are_lost_are_sent_again(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    fleet.before = lambda _: len(fleet.sent) > 5
    assert house.drive(ask(house, move(disk, "g1", "g2"))).state is OperationState.SUCCEEDED
    assert fleet.owner(export) == "g2"


def test_a_broker_that_is_away_costs_time_and_nothing_else(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")

    def away(_: Sent) -> bool:
        if len(fleet.sent) < 3:
            raise Unavailable("away", dependency="rabbitmq")
        return True

    fleet.before = away
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert (ended.state, ended.steps[0].attempts) == (OperationState.SUCCEEDED, 1)
    assert fleet.owner(export) == "g2"


@pytest.mark.rows("PA-35", "W-PA-1", "W-PA-16")
@pytest.mark.parametrize("who", ["source", "destination"])
def test_a_gateway_that_says_no_fails_its_move_alone_and_the_reason_is_kept(house: House, fleet: Fleet, who: str) -> None:
    disk, other = started(house), started(house, "other")
    (export,), (further,) = fleet.serve(disk, "g1"), fleet.serve(other, "g1")
    says_no = fleet.nodes["g1"].keeps if who == "source" else fleet.nodes["g2"].refuses
    says_no[export] = "because"
    ended = house.drive(ask(house, move(disk, "g1", "g2"), move(other, "g1", "g2", position=1)))
    assert ended.state is OperationState.FAILED
    assert "1 of 2 moves failed: vol/0 to g2" in problem(ended)
    assert "because; g1 serves it" in problem(ended)
    assert states(house, ended) == [MoveState.FAILED, MoveState.SUCCEEDED]
    assert (fleet.owner(export), fleet.owner(further)) == ("g1", "g2")


@pytest.mark.rows("PA-34", "W-PA-11", "W-PA-12")
def test_a_move_that_is_not_done_in_time_is_withdrawn_first_and_never_happens_later(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    late: list[Sent] = []

    def keep_for_later(sent: Sent) -> bool:
        late.append(sent)
        return False

    fleet.before = keep_for_later
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert ended.state is OperationState.FAILED
    assert "not moved within" in problem(ended)
    fleet.before = lambda _: True
    for sent in sorted(late, key=lambda sent: sent.server):  # what the broker kept, to one gateway after the other
        fleet.cast("iscsi_worker", sent.method, sent.command, server=sent.server)
    assert fleet.owner(export) == "g1"


def test_a_worker_that_is_told_to_hand_on_to_itself_serves_on_and_forgets_what_it_was_told_before(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.command(pair.a, "clean", destination="b")
    pair.command(pair.a, "clean", destination="a")
    pair.command(pair.b, "path_host")
    pair.until(lambda: bool(pair.gateways["b"].prepared), "b stands ready")
    before = pair.value.epoch
    for _ in range(5):
        pair.a.turn()
        waited(lambda: not pair.a.worker._lanes.look().busy, within_s=10, what="it has done what it decided")
    assert pair.a.serves()
    assert (pair.value.node, pair.value.epoch) == ("a", before)


@pytest.mark.rows("W-PA-12")
def test_a_move_that_happens_while_it_is_being_withdrawn_has_succeeded(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")

    def at_the_last_moment(sent: Sent) -> bool:
        if sent.command.destination == "g1":
            fleet.before = lambda _: True
            for each in list(fleet.sent)[:2]:
                fleet.cast("iscsi_worker", each.method, each.command, server=each.server)
        return False

    fleet.before = at_the_last_moment
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert ended.state is OperationState.SUCCEEDED
    assert fleet.owner(export) == "g2"


@pytest.mark.rows("W-PA-13")
def test_a_source_that_dies_leaves_the_export_to_its_destination(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")

    def die(sent: Sent) -> bool:
        if fleet.nodes["g1"].is_alive and sent.method == "export.clean":
            fleet.die("g1")
        return True

    fleet.before = die
    assert house.drive(ask(house, move(disk, "g1", "g2"))).state is OperationState.SUCCEEDED
    assert fleet.owner(export) == "g2"


def test_a_destination_that_dies_before_it_has_the_lock_leaves_the_export_where_it_is(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")

    def die(sent: Sent) -> bool:
        if fleet.nodes["g2"].is_alive:
            fleet.die("g2")
        return True

    fleet.before = die
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert ended.state is OperationState.FAILED
    assert "g2 is gone; g1 serves it" in problem(ended)
    assert fleet.owner(export) == "g1"


@pytest.mark.rows("W-PA-13")
def test_a_destination_that_dies_with_the_lock_fails_the_move_and_says_who_serves(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    fleet.stops_half_way.add("g2")

    def die(sent: Sent) -> bool:
        if fleet.value(export).node == "g2" and fleet.nodes["g2"].is_alive:
            fleet.die("g2")
            fleet.take("g1", export)
        return True

    operation = ask(house, move(disk, "g1", "g2"), move(started(house, "other"), "g1", "g3", position=1))
    fleet.serve(other_of(house), "g1")
    fleet.before = die
    ended = house.drive(operation)
    assert ended.state is OperationState.FAILED
    assert "g2 does not serve it; g1 serves it" in problem(ended)
    assert states(house, ended) == [MoveState.FAILED, MoveState.SUCCEEDED]


def other_of(house: House) -> Disk:
    with house.records.read() as session:
        return disks.describe(disks.by_name(session, "other"))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_disk_that_is_stopped_ends_its_moves(house: House, fleet: Fleet, when: str) -> None:
    disk = started(house)
    fleet.serve(disk, "g1")

    def stop(sent: Sent) -> bool:
        with house.records.begin() as session:
            if disks.get(session, disk.id).state == DiskState.STARTED:
                disks.apply(session, disk.id, DiskEvent.STOP, now=house.records.now(), actor="alice", operation_id=None)
        return False

    operation = ask(house, move(disk, "g1", "g2"))
    fleet.before = stop
    if when == "before":
        stop(Sent("", "", fleet_command(disk)))
    ended = house.drive(operation)
    assert ended.state is OperationState.FAILED
    assert ("no longer started" if when == "before" else "was stopped meanwhile") in problem(ended)


def fleet_command(disk: Disk) -> ExportCommand:
    return ExportCommand(operation_id="o", disk_id=disk.id, index=0, generation=1, counter=1)


@pytest.mark.rows("W-PA-24")
def test_a_cancel_lets_what_is_under_way_end_and_nothing_more_begin(house: House, fleet: Fleet) -> None:
    disk = started(house, access=Access.SHARED)
    first, second = fleet.serve(disk, "g1", "g1")
    operation = ask(house, move(disk, "g1", "g2", index=1), move(disk, "g1", "g3", index=2, position=1))

    def asked(_: Sent) -> bool:
        if not house.operation(operation).cancel_requested:
            cancel(house, operation)
        return True

    fleet.before = asked
    ended = house.drive(operation)
    assert (ended.state, ended.problem) == (OperationState.CANCELLED, None)
    assert states(house, ended) == [MoveState.SUCCEEDED, MoveState.CANCELLED]
    assert (fleet.owner(first), fleet.owner(second)) == ("g2", "g1")
    assert ask(house, move(disk, "g1", "g3", index=2)).id != operation.id


def test_a_cancel_before_anything_has_begun_cancels_the_moves_too(house: House, fleet: Fleet) -> None:
    disk = started(house)
    fleet.serve(disk, "g1")
    operation = ask(house, move(disk, "g1", "g2"))
    cancel(house, operation)
    assert house.operation(operation).state is OperationState.CANCELLED
    assert states(house, operation) == [MoveState.CANCELLED]


@pytest.mark.rows("W-PA-5", "PA-55")
def test_a_cancelled_assignment_whose_conductor_died_sees_its_moves_to_their_end(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    operation = ask(house, move(disk, "g1", "g2"))
    with pytest.raises(Crash):
        house.drive(operation, failpoint="paths.assign.move_paths.command:before")
    cancel(house, operation)
    assert states(house, operation) == [MoveState.MOVING]
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.CANCELLED
    assert states(house, ended) == [MoveState.SUCCEEDED]
    assert fleet.owner(export) == "g2"


@pytest.mark.rows("PA-15", "W-PA-9")
def test_of_two_assignments_at_once_one_is_refused_and_told_of_the_other(house: House) -> None:
    disk, barrier = started(house), threading.Barrier(2)
    answers: list[Operation | Busy] = []

    def submit() -> None:
        barrier.wait(10)
        try:
            answers.append(ask(house, move(disk, "g1", "g2")))
        except Busy as refused:
            answers.append(refused)

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    (made,) = [answer for answer in answers if isinstance(answer, Operation)]
    (refused,) = [answer for answer in answers if isinstance(answer, Busy)]
    assert refused.context["operation_id"] == made.id


@pytest.mark.rows("W-MC-3")
def test_of_two_conductors_at_once_one_moves(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    operation = ask(house, move(disk, "g1", "g2"))
    threads = [
        threading.Thread(target=house.drive, args=(operation,), kwargs={"conductor": c}, daemon=True) for c in ("c1", "c2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert house.operation(operation).state is OperationState.SUCCEEDED
    assert len(fleet.sent) == 2
    assert fleet.value(export).counter == 2


@pytest.mark.rows("PA-55", "W-PA-5")
def test_an_assignment_that_no_conductor_drove_for_a_while_is_driven_on(house: House, fleet: Fleet) -> None:
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    operation = ask(house, move(disk, "g1", "g2"))
    fleet.before = lambda _: False
    with pytest.raises(Crash):
        house.drive(operation, failpoint="paths.assign.move_paths.command:after")
    fleet.before = lambda _: True
    ended = house.drive(operation, conductor="c2", later=True)
    assert ended.state is OperationState.SUCCEEDED
    assert fleet.owner(export) == "g2"


def test_many_moves_go_on_at_once(house: House, fleet: Fleet) -> None:
    made = [started(house, f"vol-{n}") for n in range(10)]
    for disk in made:
        fleet.serve(disk, "g1")
    ended = house.drive(ask(house, *(move(disk, "g1", "g2", position=n) for n, disk in enumerate(made))))
    assert ended.state is OperationState.SUCCEEDED
    begun = [sent.command.disk_id for sent in fleet.sent[: 2 * SETTINGS.moves_per_gateway]]
    assert len(set(begun)) == SETTINGS.moves_per_gateway


@pytest.mark.rows("PA-37")
def test_an_assignment_whose_step_keeps_failing_ends_and_so_do_its_moves(house: House, fleet: Fleet) -> None:
    disk = started(house)
    fleet.serve(disk, "g1")

    def broken(_: Sent) -> bool:
        raise ZeroDivisionError("oops")

    fleet.before = broken
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert ended.state is OperationState.FAILED
    assert "ZeroDivisionError" in problem(ended)
    assert states(house, ended) == [MoveState.FAILED]
