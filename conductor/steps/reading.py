"""Reading keys of coordination that anybody may have written: what cannot be read is logged, and never stops the rest."""

from collections.abc import Iterable
from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from sanderling.coordination.base import Entry
from sanderling.model.disks import Disk
from sanderling.model.exports import UNKNOWN_CLIENT, Export, ExportId, Gateway

Value = TypeVar("Value", bound=BaseModel)
log = structlog.get_logger(__name__)


def disk_of(entry: Entry) -> Disk | None:
    return _read(entry, Disk)


def export_of(entry: Entry) -> Export:
    """The value; one that cannot be read says that anybody may be running this export."""
    return _read(entry, Export) or Export(generation=0, client=UNKNOWN_CLIENT)


def readable_export(entry: Entry) -> Export | None:
    """The value as it is; None when it cannot be read."""
    return _read(entry, Export)


def is_usable(entry: Entry) -> bool:
    """Whether the export's key is held, or free and such that a worker can take it."""
    return entry.consul_session is not None or _read(entry, Export) is not None


def exports_in(entries: Iterable[Entry]) -> dict[ExportId, Entry]:
    """The entries whose keys name exports; others are nobody's and left alone."""
    found = {}
    for entry in entries:
        _, disk_id, index = (*entry.key.split("/", 2), "", "")[:3]
        export = ExportId(disk_id, int(index)) if index.isdecimal() else None
        if export is not None and export.key == entry.key:
            found[export] = entry
        else:
            log.error("key names no export", key=entry.key)
    return found


def live_gateways(entries: Iterable[Entry]) -> list[Gateway]:
    return [gateway for entry in entries if entry.consul_session and (gateway := _read(entry, Gateway))]


def _read(entry: Entry, kind: type[Value]) -> Value | None:
    try:
        return kind.model_validate_json(entry.value)
    except ValidationError as error:
        log.error("key cannot be read", key=entry.key, errors=error.error_count())
        return None
