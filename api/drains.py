"""What draining a gateway would do: what moves where, and what it would leave without a gateway, now or after one more loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from api.plans import Planned, document, in_moves
from api.situations import NAMED_MAX, Seen, show_export
from sanderling.errors import ConfirmationNeeded
from sanderling.model import balance
from sanderling.model.balance import Layout, PlannedMove
from sanderling.model.exports import ExportId
from sanderling.records.gaps import Gaps


@dataclass(frozen=True, slots=True)
class Effect:
    """`unplaced` would stay on the gateway, for nobody else may have them; `exposed` would be down after one more loss, and
    would not be as things are."""

    gateway: str
    moves: Sequence[PlannedMove]
    unplaced: Sequence[ExportId]
    exposed: Sequence[ExportId]

    @property
    def is_safe(self) -> bool:
        return not self.unplaced and not self.exposed


def effect(layout: Layout, gateway: str) -> Effect:
    """Of draining that gateway now."""
    drained = replace(layout, drained=layout.drained | {gateway})
    owned = {export for export, owner in layout.owners.items() if owner == gateway}
    moves = balance.average(drained, owned) if owned else []
    unplaced = owned - {move.export for move in moves}
    exposed = _at_risk(balance.after(drained, moves)) - _at_risk(layout) - unplaced
    return Effect(gateway, moves, sorted(unplaced), sorted(exposed))


def refuse_unless(confirmed: bool, seen: Seen, found: Effect) -> None:
    """`ConfirmationNeeded`, naming the disks, when the drain is not safe and has not been confirmed."""
    if confirmed or found.is_safe:
        return
    parts = []
    if found.unplaced:
        parts.append(f"nobody else may have {_disks(seen, found.unplaced)}, which would stay on it")
    if found.exposed:
        parts.append(f"one more loss would then take {_disks(seen, found.exposed)} down")
    raise ConfirmationNeeded(
        f"draining {found.gateway}: {'; '.join(parts)}; confirm it with the gateway's name, if you mean it",
        confirm=found.gateway,
        **_named(seen, found),
    )


def show(seen: Seen, found: Effect, measured: Gaps) -> dict[str, Any]:
    """The drain as a plan; it is not kept, for a drain plans anew when it begins."""
    planned = Planned({"drain": found.gateway}, seen, in_moves(seen, found.moves))
    shown = document(planned, measured, plan_id=None, dry_run=True, drained=frozenset({found.gateway}))
    return shown | {"needs_confirm": not found.is_safe} | _named(seen, found)


def _at_risk(layout: Layout) -> frozenset[ExportId]:
    """Exports that the loss of some single gateway would leave unserved."""
    return frozenset(unserved.export for losses in balance.score(layout).losses.values() for unserved in losses)


def _named(seen: Seen, found: Effect) -> dict[str, Any]:
    return {
        "unplaced": [show_export(seen, export) for export in found.unplaced[:NAMED_MAX]],
        "exposed": [show_export(seen, export) for export in found.exposed[:NAMED_MAX]],
    }


def _disks(seen: Seen, exports: Sequence[ExportId]) -> str:
    names = list(dict.fromkeys(seen.disk_name(export.disk_id) for export in exports))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"disk{'s' * (len(names) > 1)} {', '.join(names[:5])}{more}"
