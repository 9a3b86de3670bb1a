"""A disk: an RBD image presented as LUN 1 of one iSCSI target, with 1 to 8 paths."""

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from sanderling.model.machine import Machine
from sanderling.model.operations import Cause

PATHS_MAX: Final = 8
SECTOR_BYTES: Final = 512
SIZE_MAX_BYTES: Final = 2**63 - SECTOR_BYTES
LUN: Final = 1
PORTAL_PORT: Final = 3260  # RFC 7143, section 13: the well-known port of an iSCSI target


PROBE_USER: Final = "sanderling-probe"
"""The CHAP name of the worker's own reads, which no disk may have: a target knows each name once."""
SCHEDULED: Final = "auto-"
"""How the names of snapshots begin that a schedule has taken."""


class Access(StrEnum):
    """`exclusive`: one export serves every path. `shared`: one export a path, spread over nodes (docs name the hazards)."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class DiskState(StrEnum):
    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    ROLLING_BACK = "rolling_back"
    DELETING = "deleting"
    FAILED = "failed"
    DELETED = "deleted"


class DiskEvent(StrEnum):
    CREATED = "created"
    START = "start"
    STARTED = "started"
    STOP = "stop"
    STOPPED = "stopped"
    CHANGE = "change"
    SNAPSHOT = "snapshot"
    ROLL_BACK = "roll_back"
    ROLLED_BACK = "rolled_back"
    DELETE = "delete"
    DELETED = "deleted"
    FAIL = "fail"


_S, _E = DiskState, DiskEvent

# fmt: off
DISKS = Machine("disk", start=_S.CREATING, rest={_S.STOPPED, _S.STARTED, _S.FAILED, _S.DELETED}, table=[
    (_S.CREATING,     _E.CREATED,     _S.STOPPED),
    (_S.CREATING,     _E.STARTED,     _S.STARTED),
    (_S.CREATING,     _E.DELETED,     _S.DELETED),       # creating failed and left nothing behind
    (_S.CREATING,     _E.FAIL,        _S.FAILED),
    (_S.STOPPED,      _E.START,       _S.STARTING),
    (_S.STOPPED,      _E.CHANGE,      _S.STOPPED),
    (_S.STOPPED,      _E.SNAPSHOT,    _S.STOPPED),
    (_S.STOPPED,      _E.ROLL_BACK,   _S.ROLLING_BACK),
    (_S.STOPPED,      _E.DELETE,      _S.DELETING),
    (_S.STARTING,     _E.STARTED,     _S.STARTED),
    (_S.STARTING,     _E.STOPPED,     _S.STOPPED),       # starting failed and was undone
    (_S.STARTING,     _E.FAIL,        _S.FAILED),
    (_S.STARTED,      _E.STOP,        _S.STOPPING),
    (_S.STARTED,      _E.CHANGE,      _S.STARTED),
    (_S.STARTED,      _E.SNAPSHOT,    _S.STARTED),
    (_S.STARTED,      _E.DELETE,      _S.DELETING),      # forced, with the disk's name as confirmation
    (_S.STOPPING,     _E.STOPPED,     _S.STOPPED),
    (_S.STOPPING,     _E.STARTED,     _S.STARTED),       # stopping was cancelled before it began
    (_S.STOPPING,     _E.FAIL,        _S.FAILED),
    (_S.ROLLING_BACK, _E.ROLLED_BACK, _S.STOPPED),
    (_S.ROLLING_BACK, _E.STOPPED,     _S.STOPPED),       # rolling back was cancelled before it began
    (_S.ROLLING_BACK, _E.FAIL,        _S.FAILED),
    (_S.DELETING,     _E.DELETED,     _S.DELETED),
    (_S.DELETING,     _E.STOPPED,     _S.STOPPED),       # deleting was cancelled before it began
    (_S.DELETING,     _E.STARTED,     _S.STARTED),
    (_S.DELETING,     _E.FAIL,        _S.FAILED),
    (_S.FAILED,       _E.START,       _S.STARTING),
    (_S.FAILED,       _E.STOP,        _S.STOPPING),
    (_S.FAILED,       _E.ROLL_BACK,   _S.ROLLING_BACK),  # once more, after a roll-back that broke off half-way
    (_S.FAILED,       _E.DELETE,      _S.DELETING),
])
# fmt: on


def image_of(disk_id: str) -> str:
    return f"sanderling-{disk_id}"


class Path(BaseModel):
    """One portal address of a disk. `index` counts from 1 (spec: PA-12)."""

    model_config = ConfigDict(frozen=True)

    index: int
    address: str
    prefix_len: int
    interface: str
    subnet: str


class Chap(BaseModel):
    """What an initiator proves when it logs in, and, with `mutual_user`, what the target proves in turn (RFC 7143, section 12.1).

    The secrets are sealed (`sanderling.secrets`): only a worker that starts the disk's export opens them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    user: str
    secret: str = Field(repr=False)
    mutual_user: str = ""
    mutual_secret: str = Field("", repr=False)


class Schedule(BaseModel):
    """A snapshot each `every_s`; of those that were taken so, the newest `keep` are kept."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    every_s: int
    keep: int


_UNSEEN: Final = frozenset({"name", "schedule"})


def restarts_exports(fields: Iterable[str]) -> bool:
    """Whether initiators meet something else when these fields of a disk change, so that its exports are started again."""
    return any(field not in _UNSEEN for field in fields)


class Disk(BaseModel):
    """The disk's own description: written on its image first, copied to `disks/<id>` in coordination, indexed in the records.

    `revision` rises with every change of the description; `generation` rises when coordination is rebuilt from the images,
    and is the high half of every export's epoch. `initiators` empty with `allow_any` false means that nobody may log in.
    `presented_at` is the revision that last changed what initiators meet; 0 stands for `revision`, as in descriptions that
    were written when there was no other. `rolling_back_to` names a snapshot while the data is neither what it was nor that.
    `cause` is told in coordination's copy alone: what had this revision published.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    iqn: str
    size_bytes: int
    access: Access = Access.EXCLUSIVE
    paths: tuple[Path, ...]
    initiators: tuple[str, ...] = ()
    allow_any: bool = False
    chap: Chap | None = None
    schedule: Schedule | None = None
    started: bool = False
    revision: int = 1
    presented_at: int = 0
    generation: int = 1
    rolling_back_to: str = ""

    @property
    def export_revision(self) -> int:
        """What its exports must have been started with, or later: they are started again when it rises."""
        return self.presented_at or self.revision

    cause: Cause = Cause()

    @property
    def image(self) -> str:
        """The name of the image in its pool; the id alone, so that renaming a disk never touches data."""
        return image_of(self.id)

    @property
    def scsi_serial(self) -> str:
        """32 hexadecimal digits, the same on every node: initiators know the disk's paths as one disk by it.

        tgt takes the NAA-6 designator from the hexadecimal digits of this string (measured on tgt 1.0.85).
        """
        return self.id.replace("-", "")

    @property
    def tid(self) -> int:
        """The target id, the same on every node and different for two disks with near certainty.

        tgt derives the NAA-3 designator from it, so equal ids on different disks would look like one disk.
        """
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:3], "big") % 0x7FFFFE + 2

    def export_paths(self, index: int) -> tuple[Path, ...]:
        """The paths that export `index` serves: all of them for 0 (exclusive), the one of that index when shared."""
        if self.access is Access.EXCLUSIVE:
            return self.paths
        return tuple(path for path in self.paths if path.index == index)

    @property
    def export_indexes(self) -> tuple[int, ...]:
        if self.access is Access.EXCLUSIVE:
            return (0,)
        return tuple(path.index for path in self.paths)
