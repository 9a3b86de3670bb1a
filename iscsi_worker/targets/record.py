"""What the runtime directory keeps of an export's process, so that a restarted worker finds and adopts it."""

import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from sanderling.errors import TargetFailed
from sanderling.model.disks import PROBE_USER
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import ExportId

RECORD: str = "record.json"
GUARD_STATE: str = "guard"
LOG: str = "log"
_STAT_MOST_BYTES: Final = 4096  # fifty numbers and a name


class Record(BaseModel):
    """One export's process. `probe_iqn` and `probe_secret` are secrets: who knows them may log in at the base portal as the
    worker does. They are this process's own, and worth nothing after it."""

    model_config = ConfigDict(frozen=True)

    disk_id: str
    index: int
    epoch: tuple[int, int]
    revision: int
    iqn: str
    tid: int
    kind: str
    base_port: int
    probe_iqn: str
    probe_secret: str = ""  # where initiators must prove something, the worker must, too
    paths: tuple[DiskPath, ...] = ()
    portals: tuple[str, ...] = ()

    @property
    def export(self) -> ExportId:
        return ExportId(self.disk_id, self.index)

    @property
    def base_portal(self) -> str:
        return f"127.0.0.1:{self.base_port}"

    @property
    def probe_login(self) -> tuple[str, str] | None:
        """The CHAP name and secret of the worker's probe; None where none is asked for."""
        return (PROBE_USER, self.probe_secret) if self.probe_secret else None

    def write(self, folder: Path) -> None:
        """In one step: a reader finds the old record or this one, readable by its owner alone."""
        new = folder / f"{RECORD}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.model_dump_json())
        new.replace(folder / RECORD)

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """`TargetFailed` when there is none or it cannot be understood."""
        try:
            return cls.model_validate_json((folder / RECORD).read_bytes())
        except (OSError, ValueError) as error:
            raise TargetFailed(f"no record of an export in {folder.name}: {error}", folder=str(folder)) from error


def is_running(pid: int, start_time: int) -> bool:
    """Whether that very process lives; a zombie does only while threads of it are left, which may still be inside a call."""
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            stat = os.read(file, _STAT_MOST_BYTES)
        finally:
            os.close(file)
    except OSError:
        return False
    fields = stat.rpartition(b")")[2].split()
    is_dead = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    return not is_dead and int(fields[19]) == start_time


def last_words(folder: Path) -> str:
    """The end of what the process logged, in one line."""
    try:
        said = (folder / LOG).read_bytes()[-600:].decode(errors="replace")
    except OSError:
        return ""
    return "; ".join(line for line in said.splitlines()[-4:] if line)
