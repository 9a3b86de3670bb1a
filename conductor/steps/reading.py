"""Reading keys of coordination that anybody may have written: what cannot be read is logged, and never stops the rest."""

from collections.abc import Iterable

import structlog

from sanderling.coordination.base import Entry
from sanderling.coordination.values import value_of
from sanderling.model.disks import Disk
from sanderling.model.exports import UNKNOWN_CLIENT, Export, ExportId, Gateway

log = structlog.get_logger(__name__)


def disk_of(entry: Entry) -> Disk | None:
    return value_of(entry, Disk)


def export_of(entry: Entry) -> Export:
    """The value; one that cannot be read says that anybody may be running this export."""
    return value_of(entry, Export) or Export(generation=0, client=UNKNOWN_CLIENT)


def readable_export(entry: Entry) -> Export | None:
    """The value as it is; None when it cannot be read."""
    return value_of(entry, Export)


def is_usable(entry: Entry) -> bool:
    """Whether the export's key is held, or free and such that a worker can take it."""
    return entry.consul_session is not None or value_of(entry, Export) is not None


def exports_in(entries: Iterable[Entry]) -> dict[ExportId, Entry]:
    """The entries whose keys name exports; others are nobody's and left alone."""
    found = {}
    for entry in entries:
        export = ExportId.from_key(entry.key)
        if export is not None:
            found[export] = entry
        else:
            log.error("key names no export", key=entry.key)
    return found


def live_gateways(entries: Iterable[Entry]) -> list[Gateway]:
    return [gateway for entry in entries if entry.consul_session and (gateway := value_of(entry, Gateway))]
