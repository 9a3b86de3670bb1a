"""What crosses the bus: frozen, versioned, JSON. Fields are added with defaults and never renamed, so old and new can talk."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict

from sanderling.model.exports import Epoch, ExportId

VERSION: Final = "1.2"  # a new field with a default raises the second number; what an old reader would misread, the first


def _readable(version: str) -> str:
    major = version.partition(".")[0]
    if not (major.isascii() and major.isdecimal()) or int(major) > int(VERSION.partition(".")[0]):
        raise ValueError(f"version {version!r} cannot be read here; this release reads up to {VERSION}")
    return version


class Message(BaseModel):
    """Unknown fields are ignored: they are what a newer release added. A newer major version is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Annotated[str, AfterValidator(_readable)] = VERSION
    traceparent: str | None = None


class Wake(Message):
    """To a conductor: this operation is waiting. The record decides what there is to do."""

    operation_id: str


class ExportCommand(Message):
    """To the worker of one node: `path_host` (take this export) or `clean` (give it up), good for one epoch only.

    A `clean` with a `destination` gives up by handing on: only to that gateway, once it stands ready, and not otherwise.
    """

    operation_id: str
    disk_id: str
    index: int
    generation: int
    counter: int
    destination: str = ""
    expires_at: float = 0.0  # both set by rpc/signing.py: seconds since the epoch, and hexadecimal digits
    signature: str = ""

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
