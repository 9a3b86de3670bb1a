"""What to do next about each move of an operation: pure, from what coordination and the records say and what was sent so far.

A command may be lost, so it is repeated; and it may arrive late, so a move is recorded as failed only when it can no longer
happen: the command is withdrawn first, and what a worker may still be doing about it is waited for.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sanderling.model.exports import Epoch, Export, ExportId, ExportPhase, Gateway
from sanderling.model.moves import MOVES, Move, MoveEvent
from sanderling.settings import Conductor


@dataclass(frozen=True, slots=True)
class Held:
    """An export's value, and who holds its lock: nobody when that is empty."""

    value: Export
    owner: str

    @property
    def served_by(self) -> str:
        return self.owner if self.value.phase is ExportPhase.SERVING else ""


@dataclass(frozen=True, slots=True)
class View:
    """One look. An export whose key is missing or cannot be read is left out of `exports`; `gateways` are those that live.

    `started` are the ids of the disks that should be served; `avoid` the gateways that people want a disk kept from,
    `drained` those that are to get nothing.
    """

    exports: Mapping[ExportId, Held]
    gateways: Mapping[str, Gateway]
    started: Collection[str]
    is_cancelled: bool = False
    avoid: Mapping[str, Collection[str]] = field(default_factory=dict)
    drained: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Why no more is tried, and until when it may still turn out to have happened."""

    reason: str
    until: float


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What was sent for one move and when. Commands are good for one `epoch`; None while that is not known."""

    since: float
    sent: float
    epoch: Epoch | None
    given_up: GivenUp | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Record that the move is under way, and command it if there is an epoch to name."""

    move: Move
    epoch: Epoch | None


@dataclass(frozen=True, slots=True)
class Repeat:
    """Command it once more."""

    move: Move
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the source to keep the export. It may be too late for that."""

    move: Move
    epoch: Epoch | None
    given_up: GivenUp


@dataclass(frozen=True, slots=True)
class End:
    """Record that the move is at rest; `reason` says why it failed."""

    move: Move
    event: MoveEvent
    reason: str = ""


Decision = Begin | Repeat | Withdraw | End


def decide(
    moves: Sequence[Move],
    under_way: Mapping[int, UnderWay],
    view: View,
    *,
    now: float,
    own: Conductor,
    operation_id: str,
) -> list[Decision]:
    """At most one decision per move. `under_way` goes by position; a move recorded as such that is not there has lost its
    conductor, and is commanded again.

    A gateway takes part in no more than `moves_per_gateway` moves at once, and a disk in one. Called again and again, it ends
    every move, whatever the view shows.
    """
    return list(_decided(moves, under_way, view, now, own, operation_id))


def after(under_way: Mapping[int, UnderWay], decisions: Sequence[Decision], *, now: float) -> dict[int, UnderWay]:
    """What is under way once these decisions have been carried out."""
    then = dict(under_way)
    for decision in decisions:
        position = decision.move.position
        match decision:
            case Begin(_, epoch):
                then[position] = UnderWay(now, now, epoch)
            case Repeat(_, epoch):
                then[position] = replace(then[position], epoch=epoch, sent=now)
            case Withdraw(_, _, given_up):
                then[position] = replace(then[position], sent=now, given_up=given_up)
            case End():
                then.pop(position, None)
    return then


def _decided(
    moves: Sequence[Move], under_way: Mapping[int, UnderWay], view: View, now: float, own: Conductor, operation_id: str
) -> Iterator[Decision]:
    load, disks, waiting = Counter[str](), set[str](), list[Move]()
    for move in moves:
        if move.state is MOVES.start:
            waiting.append(move)
        elif move.state not in MOVES.rest:
            decision = _watched(move, under_way.get(move.position), view, now, own, operation_id)
            if decision is not None:
                yield decision
            if not isinstance(decision, End):
                load.update(_gateways(move))
                disks.add(move.disk_id)
    for move in waiting:
        begun = _not_begun(move, view)
        if isinstance(begun, Begin):
            if move.disk_id in disks or any(load[name] >= own.moves_per_gateway for name in _gateways(move)):
                continue
            load.update(_gateways(move))
            disks.add(move.disk_id)
        yield begun


def _gateways(move: Move) -> set[str]:
    return {move.source, move.destination} - {""}


def _not_begun(move: Move, view: View) -> Begin | End:
    if view.is_cancelled:
        return End(move, MoveEvent.CANCEL)
    held = view.exports.get(move.export)
    if move.disk_id not in view.started:
        return End(move, MoveEvent.FAIL, f"disk {move.disk_name} is no longer started")
    if move.destination in view.avoid.get(move.disk_id, ()):
        return End(move, MoveEvent.FAIL, f"disk {move.disk_name} is to avoid {move.destination} now; plan again")
    if move.destination in view.drained:
        return End(move, MoveEvent.FAIL, f"{move.destination} is drained now; plan again")
    if held is None:
        return End(move, MoveEvent.FAIL, "coordination does not say who serves it")
    if held.owner not in {"", move.source, move.destination}:
        return End(move, MoveEvent.FAIL, f"{held.owner} has it now, not {move.source or 'nobody'}; plan again")
    if held.owner != move.destination and not _is_there(move.destination, view):
        return End(move, MoveEvent.FAIL, f"{move.destination} is not there to take it; {_served(held)}")
    return Begin(move, held.value.epoch)


def _watched(move: Move, state: UnderWay | None, view: View, now: float, own: Conductor, operation_id: str) -> Decision | None:
    held = view.exports.get(move.export)
    if move.disk_id not in view.started:
        return End(move, MoveEvent.FAIL, f"disk {move.disk_name} was stopped meanwhile")
    if held is not None and held.served_by == move.destination:
        return End(move, MoveEvent.SUCCEED)
    epoch = held.value.epoch if held is not None else None
    if state is None:
        return Begin(move, epoch)
    if held is not None and held.served_by and (held.served_by != move.source or held.value.epoch != (state.epoch or epoch)):
        return End(move, MoveEvent.FAIL, f"{move.destination} does not serve it; {_served(held)}")
    is_time = now - state.sent >= own.move_repeat_s
    if state.given_up is None:
        reason = _reason_to_give_up(move, state, held, view, now, own, operation_id)
        if reason:
            return Withdraw(move, state.epoch, GivenUp(reason, now + own.move_settle_s))
        may_command = epoch is not None and state.epoch in {None, epoch}
        return Repeat(move, epoch) if epoch is not None and may_command and is_time else None
    is_taking = held is not None and held.owner == move.destination
    if now >= state.given_up.until + (own.move_settle_s if is_taking else 0.0):
        return End(move, MoveEvent.FAIL, f"{state.given_up.reason}; {_served(held)}")
    return Withdraw(move, state.epoch, state.given_up) if is_time else None


def _reason_to_give_up(
    move: Move, state: UnderWay, held: Held | None, view: View, now: float, own: Conductor, operation_id: str
) -> str:
    """Empty while there is none. Whatever it is, a command that crossed with it may still be carried out."""
    source, destination = view.gateways.get(move.source), view.gateways.get(move.destination)
    kept = source.kept.get(str(move.export)) if source else None
    if kept is not None and kept.operation_id == operation_id:
        return f"{move.source} kept it: {kept.reason}"
    if destination is not None and str(move.export) in destination.refused:
        return f"{move.destination} refused it: {destination.refused[str(move.export)]}"
    if (held is None or held.owner != move.destination) and not _is_there(move.destination, view):
        return f"{move.destination} is gone"
    if now - state.since >= own.move_deadline_s:
        return f"not moved within {own.move_deadline_s:g} s"
    return ""


def _is_there(name: str, view: View) -> bool:
    gateway = view.gateways.get(name)
    return gateway is not None and not gateway.withdrawing


def _served(held: Held | None) -> str:
    if held is None:
        return "coordination does not say who serves it"
    return f"{held.served_by} serves it" if held.served_by else "nobody serves it at the moment"
