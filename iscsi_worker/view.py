"""What the coordination store says: disks that should be served, exports with their owners, live gateways.

A view never changes. One that differs by a key costs about that key to make, however many there are.
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from immutables import Map
from pydantic import BaseModel

from sanderling.coordination.base import Entry, Listing
from sanderling.coordination.changes import Changes
from sanderling.coordination.values import value_of
from sanderling.model.disks import Disk
from sanderling.model.exports import Export, ExportId, Gateway
from sanderling.model.marks import MARKS_KEY, Marks

Ids = Map[ExportId, None]
_NO_FIELDS: Final[set[str]] = set()

_KINDS: Final[Mapping[str, type[BaseModel]]] = {
    "disks": Disk,
    "exports": Export,
    "nodes": Gateway,
    "changes": Changes,
    MARKS_KEY: Marks,
}


class Read(NamedTuple):
    """What tells whether a key is as it was when it was read: its value's hash stands for the value."""

    modify_index: int
    consul_session: str | None
    value_hash: int

    @classmethod
    def of(cls, entry: Entry) -> "Read":
        return cls(entry.modify_index, _shared(entry.consul_session), hash(entry.value))


@dataclass(frozen=True, slots=True)
class Held:
    """An export's key: its value, the session that locks it (None: free), and the index to compare when changing it."""

    export: Export
    consul_session: str | None
    modify_index: int


@dataclass(frozen=True, slots=True)
class View:
    """`gateways` holds live ones only: those whose key is locked by their consul session, which `sessions` names.

    `journals` are the journals of changes by key, each with the session that locks it. `read` tells of each key as it was read,
    so that the next view need only look at those that differ.
    """

    index: int = 0
    disks: Mapping[str, Disk] = field(default_factory=Map)
    exports: Mapping[ExportId, Held] = field(default_factory=Map)
    gateways: Mapping[str, Gateway] = field(default_factory=Map)
    sessions: Mapping[str, str] = field(default_factory=Map)
    journals: Mapping[str, tuple[Changes, str | None]] = field(default_factory=Map)
    marks: Marks = field(default_factory=Marks)
    read: Mapping[str, Read] = field(default_factory=Map, repr=False, compare=False)
    by_session: Mapping[str | None, Ids] = field(default_factory=Map, repr=False, compare=False)

    def held_by(self, consul_session: str | None) -> Collection[ExportId]:
        """The exports that this session locks; those that are free for None."""
        return self.by_session.get(consul_session, ())

    @property
    def loads(self) -> dict[str, int]:
        """How many exports each live gateway holds."""
        return {name: len(self.held_by(self.sessions[name])) for name in self.gateways}

    def siblings(self, export: ExportId) -> dict[ExportId, Held]:
        """The other exports of its disk that are held."""
        disk = self.disks.get(export.disk_id)
        known = {ExportId(export.disk_id, index) for index in disk.export_indexes} if disk else self.exports
        others = {other: self.exports[other] for other in known if other.disk_id == export.disk_id and other in self.exports}
        return {other: held for other, held in others.items() if other != export and held.consul_session}

    def siblings_clients(self, export: ExportId) -> frozenset[str]:
        """The clients of the disk's other exports that are held, and those that stand ready to be: they share its image by
        intent and must not be fenced."""
        serving = {held.export.client for held in self.siblings(export).values()}
        return frozenset(serving) | frozenset(
            prepared.client
            for gateway in self.gateways.values()
            for name, prepared in gateway.prepared.items()
            if name.rpartition("/")[0] == export.disk_id and name != str(export)
        )

    def changed(self, key: str, entry: Entry | None) -> "View":
        """This view with one key as it was read since; None for a key that is gone."""
        change = _Change(self)
        change.forget(key)
        if entry is not None:
            change.put(entry)
        return change.view(self.index)


def parse(listing: Listing, before: View | None = None) -> View:
    """The view in a listing of everything. A key that cannot be read is logged and left out: it must not stop the rest.

    What is as it was in the view `before` is taken from there.
    """
    change = _Change(before or View())
    known, present = change.before.read, set()
    for entry in listing.entries:
        present.add(entry.key)
        seen = known.get(entry.key)
        if seen != Read.of(entry):
            change.forget(entry.key)
            change.put(entry)
    for key in known:
        if key not in present:
            change.forget(key)
    return change.view(listing.index)


class _Change:
    """A view in the making."""

    def __init__(self, before: View) -> None:
        self.before = before
        self._marks = before.marks
        self._disks_differ = False
        exports: Map[ExportId, Held] = Map(before.exports)
        self._disks, self._exports = Map(before.disks).mutate(), exports.mutate()
        self._gateways, self._sessions = Map(before.gateways).mutate(), Map(before.sessions).mutate()
        self._journals, self._read = Map(before.journals).mutate(), Map(before.read).mutate()
        self._by_session: dict[str | None, Any] = {}  # only what is touched, as mutations

    def view(self, index: int) -> View:
        by_session = Map(self.before.by_session).mutate()
        for session, ids in self._by_session.items():
            if len(ids):
                by_session[session] = ids.finish()
            else:
                by_session.pop(session, None)
        return View(
            index=index,
            disks=self._disks.finish() if self._disks_differ else self.before.disks,
            exports=self._exports.finish(),
            gateways=self._gateways.finish(),
            sessions=self._sessions.finish(),
            journals=self._journals.finish(),
            marks=self._marks,
            read=self._read.finish(),
            by_session=by_session.finish(),
        )

    def put(self, entry: Entry) -> None:
        """Take the entry in; its key must not be there."""
        noun, _, rest = entry.key.partition("/")
        kind = _KINDS.get(noun)
        if kind is None:
            return
        value, read = value_of(entry, kind), Read.of(entry)
        self._read[entry.key] = read
        match value:
            case Disk():
                _lighten(value, value.cause, *value.paths)
                self._disks[rest], self._disks_differ = value, True
            case Export():
                _lighten(value)
                export = ExportId.named(rest)
                if export is not None:
                    self._exports[export] = Held(value, read.consul_session, entry.modify_index)
                    self._ids(read.consul_session)[export] = None
            case Gateway() if entry.consul_session:
                self._gateways[rest], self._sessions[rest] = value, entry.consul_session
            case Changes():
                self._journals[entry.key] = (value, entry.consul_session)
            case Marks():
                self._marks = value

    def forget(self, key: str) -> None:
        """Take out whatever was known of this key."""
        if self._read.pop(key, None) is None:
            return
        noun, _, rest = key.partition("/")
        match noun:
            case "disks":
                self._disks_differ = self._disks.pop(rest, None) is not None or self._disks_differ
            case "exports":
                export = ExportId.named(rest)
                held = self._exports.pop(export, None) if export is not None else None
                if held is not None:
                    del self._ids(held.consul_session)[export]
            case "nodes":
                self._gateways.pop(rest, None)
                self._sessions.pop(rest, None)
            case "changes":
                self._journals.pop(key, None)
            case _:
                self._marks = Marks()

    def _ids(self, consul_session: str | None) -> Any:
        if consul_session not in self._by_session:
            self._by_session[consul_session] = self.before.by_session.get(consul_session, Map()).mutate()
        return self._by_session[consul_session]


def _lighten(*models: BaseModel) -> None:
    """Keep no set of the fields that a model's text had: such sets were a third of what very many disks took."""
    for model in models:
        object.__setattr__(model, "__pydantic_fields_set__", _NO_FIELDS)


def _shared(consul_session: str | None) -> str | None:
    return None if consul_session is None else sys.intern(consul_session)
