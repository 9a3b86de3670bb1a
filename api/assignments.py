"""What is asked to be moved, or moved back: checked against what is there, and made a plan."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from sqlalchemy.orm import Session

from api.plans import Planned, in_moves
from api.situations import NAMED_MAX, Seen, show_export
from sanderling.errors import InvalidInput, TransitionRefused
from sanderling.model import balance
from sanderling.model.balance import PlannedMove
from sanderling.model.exports import ExportId
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import Operation
from sanderling.model.planners import planner as planner_named
from sanderling.records import disks, moves

MANUAL: Final = "manual"
NOTHING: Final = "nothing to do: every path is where it is to be"


def automatic(session: Session, seen: Seen, planner: str, addresses: Sequence[str] | None) -> Planned:
    """What the planner makes of everything, or, with addresses, of the exports that serve these."""
    request = {"planner": planner, "paths": list(addresses) if addresses is not None else None}
    plan = planner_named(planner)
    chosen = None if addresses is None else _exports_at(session, seen, addresses)
    moves = plan(seen.layout, chosen)
    left = _left(seen, moves, seen.layout.owners if chosen is None else chosen)
    return _planned(request, seen, moves, _together(seen, chosen or (), addresses or ()), left=left)


def manual(session: Session, seen: Seen, addresses: Sequence[str], gateway: str) -> Planned:
    """Just these paths, and those that move together with them, to that gateway. What is there already stays."""
    chosen = _exports_at(session, seen, addresses)
    _refuse_gateway(seen, gateway, chosen, addresses)
    there = [export for export in chosen if seen.layout.owners[export] == gateway]
    notes = [f"disk {seen.disk_name(export.disk_id)}: {_paths(seen, export)} is on {gateway} already" for export in there]
    pins = {export.disk_id: pin for export in chosen if (pin := seen.layout.pins.get(export.disk_id, gateway)) != gateway}
    notes += [f"disk {seen.disk_name(disk_id)} is pinned to {pin}: balancing may move it back" for disk_id, pin in pins.items()]
    request = {"planner": MANUAL, "paths": list(addresses), "gateway": gateway}
    moves = balance.manual(seen.layout, chosen, gateway)
    return _planned(request, seen, moves, [*notes, *_together(seen, chosen, addresses)])


def reverse(session: Session, seen: Seen, assignment: Operation) -> Planned:
    """The plan that brings back what the assignment has moved; `TransitionRefused` says why that cannot be.

    It can be for the newest one that moved something, once it has ended, while each path is still where it was moved to.
    """
    if not assignment.ended:
        raise TransitionRefused(
            f"assignment {assignment.id} has not ended; cancel it, or wait for its end", operation_id=assignment.id
        )
    newest = moves.newest_that_moved(session)
    done = [move for move in moves.of(session, assignment.id) if move.state is MoveState.SUCCEEDED and move.source]
    if not done:
        raise TransitionRefused(f"assignment {assignment.id} moved nothing away from a gateway", operation_id=assignment.id)
    if newest != assignment.id:
        raise TransitionRefused(f"assignment {newest} came after it; only the last one can be undone", newest=newest)
    obstacles = [show_export(seen, move.export) | {"reason": reason} for move in done for reason in _obstacles(seen, move)]
    if obstacles:
        first = obstacles[0]
        raise TransitionRefused(
            f"{len(obstacles)} of {len(done)} moves cannot be undone, the first of disk {first['disk']}: {first['reason']}; "
            "move what you want to move by a new assignment",
            moves=obstacles[:NAMED_MAX],
        )
    back = [PlannedMove(move.export, move.destination, move.source) for move in reversed(done)]
    request = {"planner": "undo", "assignment": assignment.id}
    return Planned(request, seen, in_moves(seen, back))


def _exports_at(session: Session, seen: Seen, addresses: Sequence[str]) -> list[ExportId]:
    """The exports that serve these addresses; `InvalidInput` names each that is no path of a started disk."""
    started = {
        path.address: ExportId(disk.id, index)
        for disk in seen.situation.disks.values()
        for index in disk.export_indexes
        for path in disk.export_paths(index)
    }
    errors, found = list[dict[str, str]](), dict[ExportId, None]()
    for position, address in enumerate(addresses):
        where = {"field": f"paths[{position}]"}
        if address in addresses[:position]:
            errors.append(where | {"rule": f"names {address} a second time", "fix": "name each path once"})
        elif address in started:
            found[started[address]] = None
        else:
            errors.append(where | _no_path(session, address))
    if errors:
        raise InvalidInput.of_all(errors)
    return list(found)


def _planned(
    request: dict[str, Any], seen: Seen, moves: Sequence[PlannedMove], notes: Sequence[str], *, left: Sequence[str] = ()
) -> Planned:
    given = {name: value for name, value in request.items() if value is not None}
    return Planned(given, seen, in_moves(seen, moves), [*notes, *left, *(() if moves or left else (NOTHING,))])


def _no_path(session: Session, address: str) -> dict[str, str]:
    for row in disks.paths(session, limit=1, address=address):
        name = row.disk.name
        return {
            "rule": f"is a path of disk {name}, which is {row.disk.state}",
            "fix": f"start disk {name} first, or leave it out",
        }
    return {"rule": f"{address} is not the address of any path", "fix": "give addresses that GET /v1/paths lists"}


def _refuse_gateway(seen: Seen, gateway: str, chosen: Sequence[ExportId], addresses: Sequence[str]) -> None:
    """`InvalidInput` unless the gateway may be given all of the exports."""
    rule = _gateway_rule(seen, gateway)
    if rule is not None:
        raise InvalidInput.of_all([{"field": "gateway", **rule}])
    errors = [error for export in chosen for error in _unfit(seen, gateway, export, addresses)]
    if errors:
        raise InvalidInput.of_all(errors)


def _gateway_rule(seen: Seen, gateway: str) -> dict[str, str] | None:
    """Why nothing may be sent to this gateway, with what to do about it; None when it may be given exports."""
    layout = seen.layout
    others = f"choose one of: {', '.join(sorted(layout.usable)) or 'none is online'}"
    if gateway not in seen.known:
        return {"rule": f"no gateway is called {gateway[:64]}", "fix": others}
    if gateway in seen.drained:
        return {"rule": f"{gateway} is drained", "fix": f"undrain it first, or {others}"}
    if gateway in layout.drained:
        return {"rule": f"{gateway} is cut off from the image store", "fix": f"mend that, or {others}"}
    if gateway in seen.situation.gateways and gateway not in layout.gateways:
        return {"rule": f"{gateway} is giving up what it serves and stops", "fix": others}
    if gateway not in layout.gateways:
        return {"rule": f"{gateway} is offline", "fix": others}
    return None


def _unfit(seen: Seen, gateway: str, export: ExportId, addresses: Sequence[str]) -> Iterator[dict[str, str]]:
    """What keeps this export from this gateway, by the first of the addresses that named it."""
    disk, there = seen.situation.disks[export.disk_id], seen.situation.gateways[gateway]
    paths = disk.export_paths(export.index)
    where = next(number for number, address in enumerate(addresses) if address in {path.address for path in paths})
    if gateway in seen.situation.avoid.get(disk.id, ()):
        yield {
            "field": f"paths[{where}]",
            "rule": f"disk {disk.name} avoids {gateway}",
            "fix": f"take the mark away (PUT /v1/disks/{disk.name}/marks), or choose another gateway",
        }
    elsewhere = {name for other in seen.situation.gateways.values() for name in other.interfaces}
    for path in paths:
        if path.interface in there.front.cut_off:
            yield {
                "field": f"paths[{where}]",
                "rule": f"{gateway} is cut off on {path.interface}, which {path.address} needs",
                "fix": f"mend that, or choose another gateway for disk {disk.name}",
            }
        elif path.interface in elsewhere and path.interface not in there.interfaces:
            yield {
                "field": f"paths[{where}]",
                "rule": f"{gateway} has no working interface {path.interface}, which {path.address} needs",
                "fix": f"mend it, or choose another gateway for disk {disk.name}",
            }


def _obstacles(seen: Seen, move: Move) -> Iterator[str]:
    if move.export not in seen.layout.owners:
        yield "it is not started any more"
        return
    owner = seen.layout.owners[move.export]
    if owner != move.destination:
        yield f"it is on {owner or 'no gateway'} now, not on {move.destination}"
    rule = _gateway_rule(seen, move.source)
    if rule is not None:
        yield rule["rule"]
    if move.source in seen.situation.avoid.get(move.disk_id, ()):
        yield f"it avoids {move.source} now"
    elif move.source in seen.layout.avoid.get(move.disk_id, ()):
        yield f"{move.source} is cut off on a network of its paths now"


def _together(seen: Seen, chosen: Collection[ExportId], addresses: Sequence[str]) -> list[str]:
    """A note for each disk of which more moves than was named."""
    notes = []
    for export in chosen:
        disk = seen.situation.disks[export.disk_id]
        beside = [path.address for path in disk.export_paths(export.index) if path.address not in addresses]
        if beside:
            notes.append(f"disk {disk.name} is exclusive, its paths move together: {', '.join(beside)} too")
    return notes


def _left(seen: Seen, moves: Sequence[PlannedMove], chosen: Collection[ExportId]) -> list[str]:
    """A note when the plan leaves exports without a gateway, or on one that is drained or avoided: nobody else may have them."""
    layout = balance.after(seen.layout, moves)

    def is_misplaced(export: ExportId) -> bool:
        owner = layout.owners[export]
        return owner is None or owner in layout.drained or owner in layout.avoid.get(export.disk_id, ())

    left = sorted(filter(is_misplaced, chosen))
    if not left:
        return []
    reason = "every gateway that is in use is to be avoided or cut off" if seen.layout.usable else "no gateway is in use"
    exports = "1 export stays" if len(left) == 1 else f"{len(left)} exports stay"
    return [f"{exports} where nobody should serve, the first of disk {seen.disk_name(left[0].disk_id)}: {reason}"]


def _paths(seen: Seen, export: ExportId) -> str:
    return ", ".join(path.address for path in seen.situation.disks[export.disk_id].export_paths(export.index))
