"""A move: one export from the gateway that serves it to another, as part of an operation that assigns paths."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from sanderling.model.exports import ExportId
from sanderling.model.machine import Machine


class MoveState(StrEnum):
    PENDING = "pending"
    MOVING = "moving"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class MoveEvent(StrEnum):
    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


_S, _E = MoveState, MoveEvent

# fmt: off
MOVES = Machine("move", start=_S.PENDING, rest={_S.SUCCEEDED, _S.FAILED, _S.CANCELLED}, table=[
    (_S.PENDING, _E.START,   _S.MOVING),
    (_S.PENDING, _E.CANCEL,  _S.CANCELLED),
    (_S.PENDING, _E.FAIL,    _S.FAILED),     # it could not even be begun
    (_S.MOVING,  _E.START,   _S.MOVING),     # its conductor died in the middle: the workers go on, it is watched again
    (_S.MOVING,  _E.SUCCEED, _S.SUCCEEDED),
    (_S.MOVING,  _E.FAIL,    _S.FAILED),
])
# fmt: on


class Move(BaseModel):
    """What is stored and shown of a move. `source` is empty when nobody served the export; `gap_s` is how long its operations
    were held, as the source's worker saw it; `problem` is the wire form of what went wrong."""

    model_config = ConfigDict(frozen=True)

    position: int
    disk_id: str
    disk_name: str
    index: int
    addresses: tuple[str, ...]
    source: str
    destination: str
    state: MoveState = MoveState.PENDING
    gap_s: float | None = None
    problem: dict[str, Any] | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def export(self) -> ExportId:
        return ExportId(self.disk_id, self.index)
