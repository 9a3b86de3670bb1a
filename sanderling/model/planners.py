"""The planners there are, by name: `average`, and whatever is installed under the entry point group `sanderling.planners`."""

from collections.abc import Collection, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol

from sanderling.errors import InvalidInput, Problem
from sanderling.model.balance import Layout, PlannedMove, average
from sanderling.model.exports import ExportId

GROUP: Final = "sanderling.planners"


class PlanRefused(Problem):
    """A planner cannot be loaded, failed, or proposed what cannot be carried out; `planner` and `faults` say what."""

    code, status, title = "plan-refused", 502, "The planner's plan cannot be carried out"


class Planner(Protocol):
    def __call__(self, layout: Layout, chosen: Collection[ExportId] | None = None, /) -> list[PlannedMove]:
        """The moves, in order, that this planner proposes; only of `chosen` exports, if those are given."""
        ...


def planner(name: str, installed: Iterable[EntryPoint] | None = None) -> Planner:
    """The planner of that name, or InvalidInput, which names the known ones.

    What an installed one proposes is checked, and whatever it raises is PlanRefused, which names it.
    """
    if name == "average":
        return average
    found = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    if name not in found:
        known = ", ".join(sorted({"average", *found}))
        raise InvalidInput.of("planner", f"there is none called {name!r}", f"use one of: {known}")
    try:
        foreign: Planner = found[name].load()
    except Exception as fault:
        raise PlanRefused(f"the planner {name} cannot be loaded: {fault!r}", planner=name, faults=[repr(fault)]) from fault

    def plan(layout: Layout, chosen: Collection[ExportId] | None = None, /) -> list[PlannedMove]:
        try:
            moves = list(foreign(layout, chosen))
        except Exception as fault:
            raise PlanRefused(f"the planner {name} failed: {fault!r}", planner=name, faults=[repr(fault)]) from fault
        return checked(layout, moves, chosen, name=name)

    return plan


def checked(
    layout: Layout, moves: Iterable[PlannedMove], chosen: Collection[ExportId] | None = None, *, name: str = "given"
) -> list[PlannedMove]:
    """The moves, if each can be carried out on this layout; PlanRefused names every one that cannot."""
    checked_moves, seen, faults = list(moves), set[ExportId](), []
    for move in checked_moves:
        if not _is_move(move):
            faults.append(f"{move!r} is no PlannedMove of an ExportId")
            continue
        if fault := _fault(layout, move, chosen, again=move.export in seen):
            faults.append(f"{move.export}: {fault}")
        seen.add(move.export)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PlanRefused(f"the planner {name} proposed what cannot be: {faults[0]}{more}", planner=name, faults=faults)
    return checked_moves


def _is_move(given: object) -> bool:
    """Whether a planner that nobody type-checked has given a move."""
    if not isinstance(given, PlannedMove) or not isinstance(given.export, ExportId):
        return False
    return all(isinstance(name, str) for name in (given.export.disk_id, given.destination))


def _fault(layout: Layout, move: PlannedMove, chosen: Collection[ExportId] | None, *, again: bool) -> str | None:
    export, source, destination = move
    if export not in layout.owners:
        return "there is no such export"
    if again:
        return "it is moved twice"
    if chosen is not None and export not in chosen:
        return "it was not chosen"
    if source != layout.owners[export]:
        return f"it is on {layout.owners[export]}, not on {source}"
    if source == destination:
        return f"it is on {destination} already"
    return _unfit(layout, export, destination)


def _unfit(layout: Layout, export: ExportId, destination: str) -> str | None:
    if destination not in layout.gateways:
        return f"there is no live gateway {destination}"
    if destination in layout.drained:
        return f"the gateway {destination} is drained"
    if destination in layout.avoid.get(export.disk_id, ()):
        return f"its disk avoids {destination}"
    return None
