"""An operation: what the API was asked to do, with a life cycle that always ends."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from sanderling.model.machine import Machine


class OperationKind(StrEnum):
    CREATE_DISK = "disk.create"
    START_DISK = "disk.start"
    STOP_DISK = "disk.stop"
    DELETE_DISK = "disk.delete"
    CHANGE_DISK = "disk.change"
    CREATE_SNAPSHOT = "snapshot.create"
    ROLL_BACK_DISK = "snapshot.rollback"
    DELETE_SNAPSHOT = "snapshot.delete"
    RECOVER_DISKS = "disks.recover"
    ASSIGN_PATHS = "paths.assign"
    DRAIN_GATEWAY = "gateway.drain"
    UNDRAIN_GATEWAY = "gateway.undrain"
    MARK_DISK = "disk.mark"

    @property
    def changes_disk(self) -> bool:
        """Whether it takes one disk from a state to another, or back to it, and is undone when it fails or is cancelled.

        What any other operation has done stays: it ends where it is, and asking for the opposite is an operation of its own.
        """
        return self in _CHANGE_DISK


_CHANGE_DISK = {
    OperationKind.CREATE_DISK,
    OperationKind.START_DISK,
    OperationKind.STOP_DISK,
    OperationKind.DELETE_DISK,
    OperationKind.CHANGE_DISK,
    OperationKind.CREATE_SNAPSHOT,
    OperationKind.ROLL_BACK_DISK,
    OperationKind.DELETE_SNAPSHOT,
}


class OperationState(StrEnum):
    QUEUED = "queued"
    PENDING = "pending"
    RUNNING = "running"
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"


class OperationEvent(StrEnum):
    BEGIN = "begin"
    START = "start"
    CANCEL = "cancel"
    SUCCEED = "succeed"
    FAIL = "fail"
    UNDO = "undo"
    UNDONE = "undone"
    UNDONE_BY_REQUEST = "undone_by_request"


_S, _E = OperationState, OperationEvent

# fmt: off
OPERATIONS = Machine("operation", start=_S.QUEUED, rest={_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.ROLLED_BACK}, table=[
    (_S.QUEUED,       _E.BEGIN,             _S.PENDING),       # its resource is free; most find it so and are born pending
    (_S.QUEUED,       _E.CANCEL,            _S.CANCELLED),
    (_S.QUEUED,       _E.FAIL,              _S.FAILED),        # when its turn came it was not possible any more
    (_S.PENDING,      _E.START,             _S.RUNNING),
    (_S.PENDING,      _E.CANCEL,            _S.CANCELLED),
    (_S.RUNNING,      _E.SUCCEED,           _S.SUCCEEDED),
    (_S.RUNNING,      _E.FAIL,              _S.FAILED),        # a step failed and its kind cannot be undone
    (_S.RUNNING,      _E.CANCEL,            _S.CANCELLED),     # what its kind has done stays
    (_S.RUNNING,      _E.UNDO,              _S.ROLLING_BACK),
    (_S.ROLLING_BACK, _E.UNDONE,            _S.ROLLED_BACK),
    (_S.ROLLING_BACK, _E.UNDONE_BY_REQUEST, _S.CANCELLED),     # a cancel asked for it
    (_S.ROLLING_BACK, _E.FAIL,              _S.FAILED),        # undoing failed too: a person is needed, and told so
])
# fmt: on


class StepState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"


class StepEvent(StrEnum):
    START = "start"
    FINISH = "finish"
    FAIL = "fail"
    UNDO = "undo"


_T, _V = StepState, StepEvent

# fmt: off
STEPS = Machine("step", start=_T.PENDING, rest={_T.PENDING, _T.DONE, _T.FAILED, _T.UNDONE}, table=[
    (_T.PENDING, _V.START,  _T.RUNNING),
    (_T.RUNNING, _V.START,  _T.RUNNING),   # its conductor died in the middle: run again, steps are idempotent
    (_T.RUNNING, _V.FINISH, _T.DONE),
    (_T.RUNNING, _V.FAIL,   _T.FAILED),
    (_T.RUNNING, _V.UNDO,   _T.UNDONE),
    (_T.FAILED,  _V.UNDO,   _T.UNDONE),    # a step that failed may have done half of its work
    (_T.DONE,    _V.UNDO,   _T.UNDONE),
])
# fmt: on


class Step(BaseModel):
    """One named part of an operation; `deadline_s` bounds one attempt at it.

    `tried_at` is when the latest attempt, at it or at undoing it, began. `problem` is the wire form of what the latest one that
    failed failed with; `next_try_at` is when the next begins, while one is waited for.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    state: StepState = StepState.PENDING
    deadline_s: float
    attempts: int = 0
    started_at: datetime | None = None
    tried_at: datetime | None = None
    next_try_at: datetime | None = None
    ended_at: datetime | None = None
    problem: dict[str, Any] | None = None


class Cause(BaseModel):
    """The operation that something is done for, and the place in its trace; both empty when nobody asked for it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    operation_id: str = ""
    traceparent: str = ""


class Operation(BaseModel):
    """What is stored and shown of an operation. `problem` is the wire form of what went wrong, if anything did; `cast_at` is
    when the conductors were woken for it, or no longer had to be."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: OperationKind
    resource_id: str
    resource_name: str
    state: OperationState = OperationState.PENDING
    params: dict[str, Any]
    steps: tuple[Step, ...]
    requested_by: str
    traceparent: str | None = None
    cancel_requested: bool = False
    claimed_by: str | None = None
    claim_epoch: int = 0
    claimed_at: datetime | None = None
    claimed_until: datetime | None = None
    cast_at: datetime | None = None
    created_at: datetime
    turn: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    problem: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.state in OPERATIONS.rest

    @property
    def is_queued(self) -> bool:
        """Whether it waits for others on its resource, and nothing of it has been done."""
        return OPERATIONS.allows(self.state, OperationEvent.BEGIN)
