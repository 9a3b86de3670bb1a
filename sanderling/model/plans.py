"""What each kind of operation does, step by step, and what its disk becomes at the end. Pure: a dry run shows what a run does."""

import math
from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict

from sanderling.model.disks import PATHS_MAX, DiskEvent, DiskState
from sanderling.model.operations import OperationKind, Step, StepState
from sanderling.settings import Conductor

CREATE_IMAGE: Final = "create_image"
DESCRIBE: Final = "describe"
DESCRIBE_STARTED: Final = "describe_started"
DESCRIBE_STOPPED: Final = "describe_stopped"
PUBLISH: Final = "publish"
AWAIT_SERVED: Final = "await_served"
AWAIT_RELEASED: Final = "await_released"
RETRACT: Final = "retract"
REMOVE_IMAGE: Final = "remove_image"
GROW_IMAGE: Final = "grow_image"
DESCRIBE_CHANGED: Final = "describe_changed"
PUBLISH_CHANGED: Final = "publish_changed"
CREATE_SNAPSHOT: Final = "create_snapshot"
DESCRIBE_ROLLING_BACK: Final = "describe_rolling_back"
ROLL_BACK_IMAGE: Final = "roll_back_image"
DESCRIBE_ROLLED_BACK: Final = "describe_rolled_back"
REMOVE_SNAPSHOT: Final = "remove_snapshot"
PRUNE_SNAPSHOTS: Final = "prune_snapshots"
CHECK_UNCLONED: Final = "check_uncloned"
CHECK_SNAPSHOT: Final = "check_snapshot"
RECOVER: Final = "recover"
SETTLE: Final = "settle"
FORGET: Final = "forget"
MARK: Final = "mark"
UNMARK: Final = "unmark"
MARK_DISK: Final = "mark_disk"
PLAN_DRAIN: Final = "plan_drain"
MOVE_PATHS: Final = "move_paths"
CHECK_EMPTY: Final = "check_empty"

ASSIGNMENTS: Final = "assignments"
"""The resource of every operation that moves paths, so that there is one at a time."""

NO_RETURN: Final = frozenset(
    {DESCRIBE_STOPPED, REMOVE_IMAGE, GROW_IMAGE, DESCRIBE_ROLLING_BACK, REMOVE_SNAPSHOT, PRUNE_SNAPSHOTS, SETTLE, FORGET}
)
"""Once one of these has begun, the operation goes forward or fails; it is neither cancelled nor undone."""

WINDS_UP: Final = frozenset({MARK, UNMARK, MARK_DISK, PLAN_DRAIN, MOVE_PATHS, RECOVER})
"""What these do stays, so a cancel that finds one at work lets it finish. Moving paths then begins no further move."""

_START: Final = (DESCRIBE_STARTED, PUBLISH, AWAIT_SERVED)
_STOP: Final = (DESCRIBE_STOPPED, PUBLISH, AWAIT_RELEASED, RETRACT)


class Plan(BaseModel):
    """What an operation would do, in order, and in words what could be lost or interrupted by it."""

    model_config = ConfigDict(frozen=True)

    kind: OperationKind
    steps: tuple[Step, ...]
    at_risk: tuple[str, ...] = ()


def plan(
    kind: OperationKind,
    conductor: Conductor,
    *,
    disk_name: str = "",
    start: bool = True,
    started: bool = True,
    moves: int = 0,
    grows: bool = False,
    restarts: bool = False,
) -> Plan:
    """The plan of an operation, on the disk of that name if it is about one; the rest as in `steps_of`.

    `restarts` counts for changing a started disk: whether its exports are started again for it.
    """
    steps = steps_of(kind, conductor, start=start, started=started, moves=moves, grows=grows)
    return Plan(kind=kind, steps=steps, at_risk=_at_risk(kind, disk_name, started=started, restarts=restarts))


def steps_of(
    kind: OperationKind,
    conductor: Conductor,
    *,
    start: bool = True,
    started: bool = True,
    moves: int = 0,
    grows: bool = False,
    prunes: bool = False,
) -> tuple[Step, ...]:
    """The steps of an operation, with their deadlines.

    `start` counts for creating: whether the new disk is also started. `started` counts for deleting: False only for a disk that
    rests stopped, whose exports are known to be gone; for any other, stopping comes first; and for changing: whether workers
    are to be told. `moves` counts for what moves paths: the most moves that there can be. `grows` counts for changing, `prunes`
    for taking a snapshot.
    """
    deadlines = {
        CREATE_IMAGE: conductor.image_deadline_s,
        DESCRIBE: conductor.image_deadline_s,
        DESCRIBE_STARTED: conductor.image_deadline_s,
        DESCRIBE_STOPPED: conductor.image_deadline_s,
        REMOVE_IMAGE: conductor.image_deadline_s,
        GROW_IMAGE: conductor.image_deadline_s,
        DESCRIBE_CHANGED: conductor.image_deadline_s,
        CREATE_SNAPSHOT: conductor.image_deadline_s,
        DESCRIBE_ROLLING_BACK: conductor.image_deadline_s,
        ROLL_BACK_IMAGE: conductor.roll_back_deadline_s,
        DESCRIBE_ROLLED_BACK: conductor.image_deadline_s,
        REMOVE_SNAPSHOT: conductor.image_deadline_s,
        PRUNE_SNAPSHOTS: conductor.image_deadline_s,
        CHECK_UNCLONED: conductor.image_deadline_s,
        CHECK_SNAPSHOT: conductor.image_deadline_s,
        RECOVER: conductor.recover_deadline_s,
        PUBLISH: conductor.publish_deadline_s,
        PUBLISH_CHANGED: conductor.publish_deadline_s,
        RETRACT: conductor.publish_deadline_s,
        SETTLE: conductor.publish_deadline_s,
        FORGET: conductor.publish_deadline_s,
        AWAIT_SERVED: conductor.serve_deadline_s,
        AWAIT_RELEASED: conductor.serve_deadline_s,
        MARK: conductor.publish_deadline_s,
        UNMARK: conductor.publish_deadline_s,
        MARK_DISK: conductor.publish_deadline_s,
        PLAN_DRAIN: conductor.publish_deadline_s,
        MOVE_PATHS: _moves_deadline_s(conductor, moves),
        CHECK_EMPTY: conductor.move_deadline_s,
    }
    return tuple(
        Step(name=name, deadline_s=deadlines[name])
        for name in _names(kind, start=start, started=started, grows=grows, prunes=prunes)
    )


def past_return(steps: Iterable[Step]) -> Step | None:
    """The first step begun that cannot be undone, if any."""
    return next((step for step in steps if step.name in NO_RETURN and step.state is not StepState.PENDING), None)


def when_begun(kind: OperationKind) -> DiskEvent | None:
    """What happens first to the disk that the operation is about; None for one that makes its disk, or is not about one."""
    return _WHEN_BEGUN.get(kind)


_WHEN_BEGUN: Final = {
    OperationKind.START_DISK: DiskEvent.START,
    OperationKind.STOP_DISK: DiskEvent.STOP,
    OperationKind.DELETE_DISK: DiskEvent.DELETE,
    OperationKind.CHANGE_DISK: DiskEvent.CHANGE,
    OperationKind.CREATE_SNAPSHOT: DiskEvent.SNAPSHOT,
    OperationKind.ROLL_BACK_DISK: DiskEvent.ROLL_BACK,
    OperationKind.DELETE_SNAPSHOT: DiskEvent.SNAPSHOT,
}


def when_done(kind: OperationKind, steps: Iterable[Step]) -> DiskEvent | None:
    """What happens to the disk when the operation has succeeded; None when it rests as it did before."""
    if kind is OperationKind.CREATE_DISK:
        return DiskEvent.STARTED if any(step.name == DESCRIBE_STARTED for step in steps) else DiskEvent.CREATED
    return {
        OperationKind.START_DISK: DiskEvent.STARTED,
        OperationKind.STOP_DISK: DiskEvent.STOPPED,
        OperationKind.DELETE_DISK: DiskEvent.DELETED,
        OperationKind.ROLL_BACK_DISK: DiskEvent.ROLLED_BACK,
    }.get(kind)


_RESTS_MEANWHILE: Final = frozenset({OperationKind.CHANGE_DISK, OperationKind.CREATE_SNAPSHOT, OperationKind.DELETE_SNAPSHOT})


def when_undone(kind: OperationKind, was: DiskState, *, published: bool) -> DiskEvent | None:
    """What happens to the disk when nothing of the operation is left; `published` is whether it had begun to tell the workers.

    A disk that was being created is gone. A start that is undone after the workers were told has made them give the disk up, so
    it is stopped whatever it was. Otherwise it is what it was; None when it has been that all the time.
    """
    if kind in _RESTS_MEANWHILE:
        return None
    if kind is OperationKind.CREATE_DISK:
        return DiskEvent.DELETED
    if kind is OperationKind.START_DISK and published:
        return DiskEvent.STOPPED
    return {DiskState.STARTED: DiskEvent.STARTED, DiskState.STOPPED: DiskEvent.STOPPED}.get(was, DiskEvent.FAIL)


def _names(kind: OperationKind, *, start: bool, started: bool, grows: bool, prunes: bool) -> tuple[str, ...]:
    tell = (PUBLISH_CHANGED, AWAIT_SERVED) if started else ()
    return {
        OperationKind.CREATE_DISK: (CREATE_IMAGE, DESCRIBE, *(_START if start else ()), SETTLE),
        OperationKind.START_DISK: (*_START, SETTLE),
        OperationKind.STOP_DISK: (*_STOP, SETTLE),
        OperationKind.DELETE_DISK: (CHECK_UNCLONED, *(_STOP if started else ()), REMOVE_IMAGE, FORGET),
        OperationKind.CHANGE_DISK: (*((GROW_IMAGE,) if grows else ()), DESCRIBE_CHANGED, *tell, SETTLE),
        OperationKind.CREATE_SNAPSHOT: (CREATE_SNAPSHOT, *((PRUNE_SNAPSHOTS,) if prunes else ())),
        OperationKind.ROLL_BACK_DISK: (CHECK_SNAPSHOT, DESCRIBE_ROLLING_BACK, ROLL_BACK_IMAGE, DESCRIBE_ROLLED_BACK, SETTLE),
        OperationKind.DELETE_SNAPSHOT: (REMOVE_SNAPSHOT,),
        OperationKind.RECOVER_DISKS: (RECOVER,),
        OperationKind.ASSIGN_PATHS: (MOVE_PATHS,),
        OperationKind.DRAIN_GATEWAY: (MARK, PLAN_DRAIN, MOVE_PATHS, CHECK_EMPTY),
        OperationKind.UNDRAIN_GATEWAY: (UNMARK,),
        OperationKind.MARK_DISK: (MARK_DISK,),
    }[kind]


def _moves_deadline_s(conductor: Conductor, moves: int) -> float:
    """Enough for every one to take as long as it may: each waits for those at its source, at its destination and of its disk."""
    rounds = 2 * math.ceil(moves / conductor.moves_per_gateway) + PATHS_MAX
    return rounds * (conductor.move_deadline_s + conductor.move_settle_s)


def _at_risk(kind: OperationKind, disk_name: str, *, started: bool, restarts: bool) -> tuple[str, ...]:
    sessions = f"every iSCSI session with disk {disk_name}, and operations of its initiators that were not yet answered"
    if kind is OperationKind.STOP_DISK:
        return (sessions,)
    if kind is OperationKind.DELETE_DISK:
        data = f"all data of disk {disk_name}, for good"
        return (sessions, data) if started else (data,)
    if kind is OperationKind.CHANGE_DISK and started and restarts:
        return (
            f"a moment of service of disk {disk_name}: its exports are started again, so its initiators are disconnected, and "
            "log in again if they may",
        )
    if kind is OperationKind.ROLL_BACK_DISK:
        return (f"everything that was written to disk {disk_name} after the snapshot, for good",)
    if kind is OperationKind.DELETE_SNAPSHOT:
        return (f"what the snapshot of disk {disk_name} holds that the disk no longer does, for good",)
    if kind in (OperationKind.ASSIGN_PATHS, OperationKind.DRAIN_GATEWAY):
        return ("a moment of service on each path that is moved: its operations are held and then answered",)
    return ()
