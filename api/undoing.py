"""Undoing an assignment: its moves the other way round, if nothing has come between."""

from collections.abc import Iterator

from sqlalchemy.orm import Session

from api.assigning import Planned, gateway_rule, in_moves
from api.situations import Seen, show_export
from sanderling.errors import TransitionRefused
from sanderling.model.balance import PlannedMove
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import Operation
from sanderling.records import moves


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
            moves=obstacles[:100],
        )
    back = [PlannedMove(move.export, move.destination, move.source) for move in reversed(done)]
    request = {"planner": "undo", "assignment": assignment.id}
    return Planned(request, seen, in_moves(seen, back))


def _obstacles(seen: Seen, move: Move) -> Iterator[str]:
    if move.export not in seen.layout.owners:
        yield "it is not started any more"
        return
    owner = seen.layout.owners[move.export]
    if owner != move.destination:
        yield f"it is on {owner or 'no gateway'} now, not on {move.destination}"
    rule = gateway_rule(seen, move.source)
    if rule is not None:
        yield rule["rule"]
    if move.source in seen.layout.avoid.get(move.disk_id, ()):
        yield f"it avoids {move.source} now"
