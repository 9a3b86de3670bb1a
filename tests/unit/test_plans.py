"""Plans: the steps of each kind of operation, and what becomes of the disk."""

import pytest

from conductor.steps.catalogue import ACTIONS
from sanderling.model import plans
from sanderling.model.disks import DISKS, DiskEvent, DiskState
from sanderling.model.operations import OperationKind, Step, StepState
from sanderling.settings import Conductor

CREATE, START, STOP = OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.STOP_DISK
DELETE = OperationKind.DELETE_DISK
CHANGE, ROLL_BACK = OperationKind.CHANGE_DISK, OperationKind.ROLL_BACK_DISK
BEGINS = {START: DiskEvent.START, STOP: DiskEvent.STOP, DELETE: DiskEvent.DELETE, ROLL_BACK: DiskEvent.ROLL_BACK}
RESTS = [CHANGE, OperationKind.CREATE_SNAPSHOT, OperationKind.DELETE_SNAPSHOT]


def names(kind: OperationKind, *, start: bool = True, started: bool = True) -> list[str]:
    return [step.name for step in plans.steps_of(kind, Conductor(), start=start, started=started)]


def test_a_disk_that_is_not_to_be_started_is_only_made() -> None:
    assert names(CREATE, start=False) == ["create_image", "describe", "settle"]


def test_creating_with_start_is_creating_and_then_starting() -> None:
    assert names(CREATE) == [*names(CREATE, start=False)[:-1], *names(START)]


def test_a_disk_that_may_be_served_is_stopped_before_its_image_goes() -> None:
    check, *rest = names(DELETE, started=False)
    assert names(DELETE) == [check, *names(STOP)[:-1], *rest]


def test_exports_are_released_before_their_keys_are_removed() -> None:
    assert names(STOP).index(plans.AWAIT_RELEASED) < names(STOP).index(plans.RETRACT)


@pytest.mark.parametrize("kind", OperationKind)
def test_every_step_has_a_deadline(kind: OperationKind) -> None:
    assert all(step.deadline_s > 0 for step in plans.steps_of(kind, Conductor()))


def test_a_plan_says_what_is_at_risk() -> None:
    def at_risk(kind: OperationKind, *, started: bool = True) -> str:
        return " ".join(plans.plan(kind, Conductor(), disk_name="vol", started=started).at_risk)

    assert "all data of disk vol" in at_risk(DELETE)
    assert "iSCSI session" in at_risk(DELETE)
    assert "iSCSI session" not in at_risk(DELETE, started=False)
    assert "iSCSI session" in at_risk(STOP)
    assert (at_risk(CREATE), at_risk(START)) == ("", "")


@pytest.mark.parametrize("kind", [CREATE, START])
def test_what_makes_or_starts_a_disk_can_be_undone_until_it_settles(kind: OperationKind) -> None:
    steps = [Step(name=name, deadline_s=1, state=StepState.DONE) for name in names(kind)]
    assert plans.past_return(steps[:-1]) is None
    assert plans.past_return(steps) == steps[-1]


@pytest.mark.parametrize("started", [True, False])
def test_what_stops_or_deletes_a_disk_cannot_be_undone_once_it_has_begun(started: bool) -> None:
    for kind in (STOP, DELETE):
        begins = [name for name in names(kind, started=started) if name != plans.CHECK_UNCLONED]
        first, *rest = (Step(name=name, deadline_s=1) for name in begins)
        assert plans.past_return([first, *rest]) is None
        begun = first.model_copy(update={"state": StepState.RUNNING})
        assert plans.past_return([begun, *rest]) == begun


@pytest.mark.parametrize("was", [DiskState.STOPPED, DiskState.STARTED, DiskState.FAILED])
@pytest.mark.parametrize("kind", BEGINS)
@pytest.mark.parametrize("published", [True, False])
def test_however_an_operation_is_undone_its_disk_can_make_the_move(kind: OperationKind, was: DiskState, published: bool) -> None:
    if not DISKS.allows(was, BEGINS[kind]):
        return
    under_way = DISKS.next(was, BEGINS[kind])
    event = plans.when_undone(kind, was, published=published)
    assert event is not None
    after = DISKS.next(under_way, event)
    assert after == (DiskState.STOPPED if kind is START and published else was)


@pytest.mark.parametrize("kind", [kind for kind in OperationKind if kind.changes_disk and kind not in RESTS])
def test_however_an_operation_succeeds_its_disk_can_make_the_move(kind: OperationKind) -> None:
    for start in (True, False):
        under_way = DISKS.next(DiskState.STOPPED, BEGINS[kind]) if kind in BEGINS and kind is not STOP else DiskState.STOPPING
        if kind is CREATE:
            under_way = DiskState.CREATING
        event = plans.when_done(kind, plans.steps_of(kind, Conductor(), start=start))
        assert event is not None
        assert DISKS.next(under_way, event) in DISKS.rest


@pytest.mark.parametrize("kind", RESTS)
def test_a_disk_rests_as_it_was_before_during_and_after_what_only_changes_or_copies_it(kind: OperationKind) -> None:
    assert plans.when_done(kind, plans.steps_of(kind, Conductor())) is None
    assert plans.when_undone(kind, DiskState.STARTED, published=True) is None


def test_a_disk_is_grown_before_it_is_said_to_be_larger_and_then_cannot_be_made_smaller() -> None:
    steps = plans.steps_of(CHANGE, Conductor(), grows=True)
    assert [step.name for step in steps] == ["grow_image", *names(CHANGE)]
    first, *rest = steps
    assert plans.past_return([first.model_copy(update={"state": StepState.RUNNING}), *rest]) is not None
    assert plans.past_return([Step(name=name, deadline_s=1, state=StepState.DONE) for name in names(CHANGE)[:-1]]) is None


def test_workers_are_told_of_a_change_only_of_a_started_disk() -> None:
    assert names(CHANGE, started=False) == ["describe_changed", "settle"]
    assert names(CHANGE) == ["describe_changed", "publish_changed", "await_served", "settle"]


KEEPS = [kind for kind in OperationKind if not kind.changes_disk]


@pytest.mark.parametrize("kind", KEEPS)
def test_what_changes_no_disk_can_be_cancelled_at_any_time_and_is_not_undone(kind: OperationKind) -> None:
    steps = [Step(name=name, deadline_s=1, state=StepState.DONE) for name in names(kind)]
    assert plans.past_return(steps) is None
    assert not [effect for name in names(kind) for effect in ACTIONS[name].undo_effects]


@pytest.mark.parametrize("kind", KEEPS)
def test_a_step_that_a_cancel_may_end_half_way_does_nothing_but_wait(kind: OperationKind) -> None:
    assert not [name for name in names(kind) if ACTIONS[name].effects and name not in plans.WINDS_UP]


@pytest.mark.rows("W-PA-10", "W-PA-11")
def test_moving_paths_has_time_for_each_move_to_take_as_long_as_it_may() -> None:
    def deadline_s(moves: int, per_gateway: int) -> float:
        own = Conductor(moves_per_gateway=per_gateway, move_deadline_s=30.0, move_settle_s=15.0)
        (step,) = plans.steps_of(OperationKind.ASSIGN_PATHS, own, moves=moves)
        return step.deadline_s

    assert deadline_s(100, 1) >= 100 * 45
    assert deadline_s(100, 4) < deadline_s(100, 1) / 3
    assert deadline_s(0, 4) > 0


def test_a_plan_of_moves_says_what_is_at_risk() -> None:
    for kind in (OperationKind.ASSIGN_PATHS, OperationKind.DRAIN_GATEWAY):
        assert "each path that is moved" in " ".join(plans.plan(kind, Conductor(), moves=3).at_risk)
    assert plans.plan(OperationKind.UNDRAIN_GATEWAY, Conductor()).at_risk == ()
