"""What one read of the coordination store says: disks that should be served, exports with their owners, live gateways."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from sanderling.coordination.base import Entry, Listing
from sanderling.model.disks import Disk
from sanderling.model.exports import Export, ExportId, Gateway
from sanderling.model.marks import MARKS_KEY, Marks

Value = TypeVar("Value", bound=BaseModel)
Key = TypeVar("Key")
Fact = TypeVar("Fact")
log = structlog.get_logger(__name__)

_KINDS: Final[Mapping[str, type[BaseModel]]] = {"disks": Disk, "exports": Export, "nodes": Gateway, MARKS_KEY: Marks}


@dataclass(frozen=True, slots=True)
class Held:
    """An export's key: its value, the session that locks it (None: free), and the index to compare when changing it."""

    export: Export
    consul_session: str | None
    modify_index: int


@dataclass(frozen=True, slots=True)
class View:
    """`gateways` holds live ones only: those whose key is locked by their consul session, which `sessions` names.

    `read` keeps what each entry was understood as, so that the next view need only look at those that differ.
    """

    index: int = 0
    disks: Mapping[str, Disk] = field(default_factory=dict)
    exports: Mapping[ExportId, Held] = field(default_factory=dict)
    gateways: Mapping[str, Gateway] = field(default_factory=dict)
    sessions: Mapping[str, str] = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)
    read: Mapping[str, tuple[Entry, BaseModel | None]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def owners(self) -> dict[ExportId, str]:
        """The gateway of every export that is held."""
        return {export: held.export.node for export, held in self.exports.items() if held.consul_session}

    def siblings_clients(self, export: ExportId) -> frozenset[str]:
        """The clients of the disk's other exports that are held, and those that stand ready to be: they share its image by
        intent and must not be fenced."""
        serving = {
            held.export.client
            for other, held in self.exports.items()
            if other.disk_id == export.disk_id and other != export and held.consul_session
        }
        return frozenset(serving) | frozenset(
            prepared.client
            for gateway in self.gateways.values()
            for name, prepared in gateway.prepared.items()
            if name.rpartition("/")[0] == export.disk_id and name != str(export)
        )

    def changed(self, key: str, entry: Entry | None) -> "View":
        """This view with one key as it was read since; None for a key that is gone."""
        listed = parse(Listing((entry,) if entry else (), self.index))
        read = {**_without(self.read, key), **listed.read}
        noun, _, rest = key.partition("/")
        match noun:
            case "disks":
                return replace(self, disks={**_without(self.disks, rest), **listed.disks}, read=read)
            case "exports":
                disk_id, _, number = rest.rpartition("/")
                export = ExportId(disk_id, int(number) if number.isdecimal() else -1)
                return replace(self, exports={**_without(self.exports, export), **listed.exports}, read=read)
            case "nodes":
                gateways = {**_without(self.gateways, rest), **listed.gateways}
                sessions = {**_without(self.sessions, rest), **listed.sessions}
                return replace(self, gateways=gateways, sessions=sessions, read=read)
            case _ if key == MARKS_KEY:
                return replace(self, marks=listed.marks, read=read)
            case _:
                return self


def _without(known: Mapping[Key, Fact], key: Key) -> dict[Key, Fact]:
    rest = dict(known)
    rest.pop(key, None)
    return rest


def parse(listing: Listing, before: View | None = None) -> View:
    """The view in a listing of everything. A key that cannot be read is logged and left out: it must not stop the rest.

    What is as it was in the view `before` is taken from there.
    """
    known = before.read if before else {}
    disks, exports, gateways = dict[str, Disk](), dict[ExportId, Held](), dict[str, Gateway]()
    sessions, marks = dict[str, str](), Marks()
    read: dict[str, tuple[Entry, BaseModel | None]] = {}
    for entry in listing.entries:
        noun, _, rest = entry.key.partition("/")
        if noun not in _KINDS:
            continue
        seen = known.get(entry.key)
        value = seen[1] if seen is not None and seen[0] == entry else _read(entry, _KINDS[noun])
        read[entry.key] = (entry, value)
        match value:
            case Disk():
                disks[rest] = value
            case Export():
                disk_id, _, number = rest.rpartition("/")
                if number.isdecimal():
                    exports[ExportId(disk_id, int(number))] = Held(value, entry.consul_session, entry.modify_index)
            case Gateway() if entry.consul_session:
                gateways[value.name], sessions[value.name] = value, entry.consul_session
            case Marks():
                marks = value
    return View(listing.index, disks, exports, gateways, sessions, marks, read)


def _read(entry: Entry, kind: type[Value]) -> Value | None:
    try:
        return kind.model_validate_json(entry.value)
    except ValidationError as error:
        log.error("key cannot be read", key=entry.key, errors=error.error_count())
        return None
