"""What crosses the bus: frozen, versioned, JSON. Fields are added with defaults and never renamed, so old and new can talk."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from sanderling.model.exports import Epoch, ExportId


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    traceparent: str | None = None


class Wake(Message):
    """To a conductor: this operation is waiting. The record decides what there is to do."""

    operation_id: str


class ExportCommand(Message):
    """To the worker of one node: `path_host` (take this export) or `clean` (give it up), good for one epoch only."""

    operation_id: str
    disk_id: str
    index: int
    generation: int
    counter: int

    @property
    def export(self) -> ExportId:
        return ExportId(self.disk_id, self.index)

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.generation, self.counter)


class ExportReport(Message):
    """From a worker: what it saw of one export. `seen` is a word such as "served", "left", "fenced", "refused", "lapsed"."""

    report_id: str
    node: str
    disk_id: str
    index: int
    generation: int
    counter: int
    seen: str
    detail: dict[str, Any] = {}


class Ping(Message):
    """To any server: answer with Pong. Tells a deaf consumer from a live one, end to end."""


class Pong(Message):
    server: str
