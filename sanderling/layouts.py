"""What a plan of moves is made from: who serves what, as one read of coordination and one of the records tell it together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from sanderling.coordination.base import Coordination, Entry
from sanderling.coordination.values import value_of
from sanderling.model.balance import Layout, PlannedMove
from sanderling.model.disks import Disk
from sanderling.model.exports import Export, ExportId, Gateway
from sanderling.model.moves import Move
from sanderling.records import disks, marks


@dataclass(frozen=True, slots=True)
class Situation:
    """`exports` holds every started export's value as far as it can be read; `disks` every started disk by its id.

    `avoid` is what people have marked; the layout's holds also the disks that a gateway cannot serve for want of a network.
    """

    layout: Layout
    avoid: Mapping[str, frozenset[str]]
    exports: Mapping[ExportId, Export]
    disks: Mapping[str, Disk]
    gateways: Mapping[str, Gateway]

    def move(self, position: int, planned: PlannedMove) -> Move:
        """The move as an operation stores it."""
        disk = self.disks[planned.export.disk_id]
        return Move(
            position=position,
            disk_id=disk.id,
            disk_name=disk.name,
            index=planned.export.index,
            addresses=tuple(path.address for path in disk.export_paths(planned.export.index)),
            source=planned.source or "",
            destination=planned.destination,
        )


def read(session: Session, coordination: Coordination) -> Situation:
    """The situation now; `Unavailable` when coordination cannot be read."""
    return of(session, coordination.list("exports/").entries, coordination.list("nodes/").entries)


def of(session: Session, exports: Iterable[Entry], gateways: Iterable[Entry]) -> Situation:
    """The situation in these entries of `exports/` and `nodes/`; a value that cannot be read is an export without owner.

    Who is cut off from the image store gets as little as who is drained; who is cut off in front, no disk with a path there, and
    of a shared one no path.
    """
    started = {disk.id: disk for disk in disks.started(session)}
    marked = marks.read(session)
    live = {gateway.name: gateway for entry in gateways if entry.consul_session and (gateway := value_of(entry, Gateway))}
    values, owners = dict[ExportId, Export](), dict[ExportId, str | None]()
    for disk in started.values():
        owners |= dict.fromkeys((ExportId(disk.id, index) for index in disk.export_indexes), None)
    for entry in exports:
        export = ExportId.from_key(entry.key)
        value = value_of(entry, Export) if export in owners else None
        if export is not None and value is not None:
            values[export] = value
            owners[export] = value.node if entry.consul_session else None
    serving = frozenset(name for name, gateway in live.items() if not gateway.withdrawing)
    aside = marked.drained | {name for name, gateway in live.items() if gateway.store.cut_off}
    avoid = _with_cut_off(marked.avoid, started, live)
    layout = Layout(owners=owners, gateways=serving, drained=aside, pins=marked.pins, avoid=avoid)
    return Situation(layout, marked.avoid, values, started, live)


def _with_cut_off(
    avoid: Mapping[str, frozenset[str]], started: Mapping[str, Disk], live: Mapping[str, Gateway]
) -> Mapping[str, frozenset[str]]:
    cut_off = {name: gateway.front.cut_off for name, gateway in live.items() if gateway.front.cut_off}
    if not cut_off:
        return avoid
    kept_from = dict(avoid)
    for disk in started.values():
        needed = {path.interface for path in disk.paths}
        unfit = {name for name, interfaces in cut_off.items() if not needed.isdisjoint(interfaces)}
        if unfit:
            kept_from[disk.id] = kept_from.get(disk.id, frozenset()) | unfit
    return kept_from
