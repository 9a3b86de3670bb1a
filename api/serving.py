"""Who serves what now, as coordination has it. What cannot be read is unknown, never guessed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import ValidationError

from api.context import Context
from sanderling.coordination.base import Coordination, Entry
from sanderling.errors import Unavailable
from sanderling.model.disks import Access
from sanderling.model.exports import Export, ExportId, Gateway
from sanderling.records.tables import DiskRow, PathRow

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """An export as coordination has it: its value, and the consul session that locks it, if one does."""

    export: Export
    consul_session: str | None

    @property
    def locked(self) -> bool:
        return self.consul_session is not None


Serving = Mapping[ExportId, Held | None]  # None: the value cannot be read


def exports(context: Context, *, disk_id: str | None = None) -> Serving:
    """Every export, or those of one disk; `Unavailable` when coordination cannot be read."""
    prefix = f"exports/{disk_id}/" if disk_id else "exports/"
    entries = context.coordination.ask(lambda coordination: coordination.list(prefix).entries)
    return {export: _held(entry) for entry in entries if (export := ExportId.from_key(entry.key)) is not None}


def exports_if_known(context: Context, *, disk_id: str | None = None) -> Serving | None:
    """Like `exports`, or None when coordination cannot be read."""
    try:
        return exports(context, disk_id=disk_id)
    except Unavailable as problem:
        log.warning("who serves is not known", reason=problem.detail)
        return None


def gateways(context: Context) -> list[Gateway]:
    """The live gateways whose values can be read; `Unavailable` when coordination cannot be read."""

    def read(coordination: Coordination) -> tuple[Entry, ...]:
        return coordination.list("nodes/").entries

    found = (_gateway(entry) for entry in context.coordination.ask(read) if entry.consul_session)
    return [gateway for gateway in found if gateway is not None]


def connected(serving: Serving) -> list[str]:
    """Initiators with a connection to one of the exports."""
    return sorted({c.initiator_iqn for held in serving.values() if held and held.locked for c in held.export.connections})


def show_path(disk: DiskRow, path: PathRow, serving: Serving | None) -> dict[str, Any]:
    """A path with the gateway that has it now and what that says of it."""
    gateway, status = _usage(disk, path, serving)
    held = (serving or {}).get(export_of(disk, path))
    return {
        "index": path.index,
        "address": path.address,
        "prefix_len": path.prefix_len,
        "subnet": path.subnet,
        "interface": path.interface,
        "gateway": gateway,
        "status": status,
        "consul_session": held.consul_session if held else None,
    }


def export_of(disk: DiskRow, path: PathRow) -> ExportId:
    return ExportId(disk.id, 0 if disk.access == Access.EXCLUSIVE.value else path.index)


def _usage(disk: DiskRow, path: PathRow, serving: Serving | None) -> tuple[str | None, str]:
    """`status` is unknown, stopped (nobody should serve it), down (nobody does), or the owner's word for what it is doing."""
    export = export_of(disk, path)
    if serving is None or (export in serving and serving[export] is None):
        return None, "unknown"
    held = serving.get(export)
    if held is None or not held.locked:
        return None, "down" if disk.started else "stopped"
    return held.export.node, held.export.phase.value


def _held(entry: Entry) -> Held | None:
    try:
        return Held(Export.model_validate_json(entry.value), entry.consul_session)
    except ValidationError:
        log.warning("an export's value cannot be read", key=entry.key)
        return None


def _gateway(entry: Entry) -> Gateway | None:
    try:
        return Gateway.model_validate_json(entry.value)
    except ValidationError:
        log.warning("a gateway's value cannot be read", key=entry.key)
        return None
