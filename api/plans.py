"""A plan of moves: what was asked for, what was seen then and whether that holds, shown with what each move risks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from api.situations import NAMED_MAX, Seen, changes, show_distribution, show_score
from sanderling.errors import PlanOutdated
from sanderling.model import balance
from sanderling.model.balance import PlannedMove
from sanderling.model.moves import Move
from sanderling.records import gaps
from sanderling.records.gaps import Gaps
from sanderling.records.plans import StoredPlan

SAID_MAX: Final = 3  # changes in the one sentence; `changes` has more


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what it was made from. `request` is what was asked for."""

    request: Mapping[str, Any]
    seen: Seen
    moves: tuple[Move, ...]
    notes: Sequence[str] = field(default=())


def stored(seen: Seen, plan: StoredPlan) -> Planned:
    """The plan again, for what it was made from still holds; `PlanOutdated` names what does not."""
    found = changes(plan.layout, seen.layout)
    if found:
        said = ", ".join(_said(change) for change in found[:SAID_MAX])
        more = f" and {len(found) - SAID_MAX} more" if len(found) > SAID_MAX else ""
        raise PlanOutdated(
            f"{len(found)} of the facts that plan {plan.id} was made from have changed: {said}{more}; plan again",
            plan_id=plan.id,
            changes=found[:NAMED_MAX],
            more=max(0, len(found) - NAMED_MAX),
        )
    return Planned(plan.request, seen, plan.moves, () if plan.moves else ("nothing to do: the plan moves nothing",))


def _said(change: Mapping[str, Any]) -> str:
    about = next(value for name, value in change.items() if name not in {"what", "was", "is"})
    return f"{change['what']} {about} was {change['was']} and is {change['is']}"


def in_moves(seen: Seen, planned: Sequence[PlannedMove]) -> tuple[Move, ...]:
    return tuple(seen.situation.move(position, move) for position, move in enumerate(planned))


def document(
    planned: Planned, measured: Gaps, *, plan_id: str | None, dry_run: bool, drained: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The plan as HTTP shows it: moves in order, each with its risk, and what comes of them, with these gateways drained too."""
    seen, gap = planned.seen, _expected_gap(measured)
    moves = [PlannedMove(move.export, move.source or None, move.destination) for move in planned.moves]
    after = balance.after(replace(seen.layout, drained=seen.layout.drained | drained), moves)
    return {
        "dry_run": dry_run,
        "plan_id": plan_id,
        "request": planned.request,
        "moves": [_show_move(seen, move, gap) for move in planned.moves],
        "before": show_distribution(balance.distribution(seen.layout)),
        "after": show_distribution(balance.distribution(after)),
        "score": show_score(seen, balance.score(after)),
        "notes": list(planned.notes),
    }


def _show_move(seen: Seen, move: Move, gap: Mapping[str, Any] | None) -> dict[str, Any]:
    """`together` is whether several paths move as one, because one process serves them."""
    return {
        "position": move.position,
        "disk": move.disk_name,
        "disk_id": move.disk_id,
        "index": move.index,
        "paths": list(move.addresses),
        "together": len(move.addresses) > 1,
        "from": move.source or None,
        "to": move.destination,
        "risk": _risk(seen, move),
        "expected_gap_s": gap if move.source else None,
    }


def _expected_gap(measured: Gaps) -> dict[str, Any] | None:
    """How long the operations of a path are held, by the moves there have been; None before the first."""
    found = measured.moves
    if not found:
        return None
    return {"p50": gaps.quantile(found, 0.5), "p99": gaps.quantile(found, 0.99), "measured": len(found)}


def _risk(seen: Seen, move: Move) -> str:
    disk = seen.situation.disks[move.disk_id]
    others = len(disk.export_indexes) - 1
    if not move.source:
        return f"none: nobody serves it now, and initiators of disk {disk.name} are waiting"
    if others:
        return f"operations on this path wait meanwhile; disk {disk.name} has {others} other path{'s' * (others > 1)}"
    return f"all operations on disk {disk.name} wait meanwhile; if it fails {move.source} goes on serving"
