"""What an operation waits for, as one look shows it. Pure; what could not be seen is said to be unknown, never guessed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from api.serving import Held, Serving
from sanderling import settings
from sanderling.model import plans
from sanderling.model.disks import Disk
from sanderling.model.exports import ExportId, ExportPhase, Gateway
from sanderling.model.moves import MOVES, Move
from sanderling.model.operations import OPERATIONS, Operation, OperationEvent, Step
from sanderling.records.claims import Standing

_NAMED_MAX: Final = 10  # of what may be as many as there are exports; what is left out is counted

_WITHOUT_IMAGES: Final = frozenset(
    {
        plans.MARK,
        plans.UNMARK,
        plans.MARK_DISK,
        plans.PLAN_DRAIN,
        plans.MOVE_PATHS,
        plans.CHECK_EMPTY,
        plans.RETRACT,
        plans.FORGET,
    }
)
_WITH_COORDINATION: Final = frozenset(
    {
        plans.PUBLISH,
        plans.PUBLISH_CHANGED,
        plans.AWAIT_SERVED,
        plans.AWAIT_RELEASED,
        plans.RETRACT,
        *(_WITHOUT_IMAGES - {plans.FORGET}),
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """One look. `away` says why a part could not be asked, by its name; what it would have told is None then.

    `openers` are the clients that have the disk's image open, `broker` is why wake-ups cannot be cast now, if they cannot.
    """

    operation: Operation
    standing: Standing
    now: datetime
    own: settings.Conductor
    away: Mapping[str, str] = field(default_factory=dict)
    broker: str = ""
    disk: Disk | None = None
    serving: Serving | None = None
    gateways: Sequence[Gateway] | None = None
    openers: Sequence[str] | None = None
    moves: Sequence[Move] = ()

    @property
    def is_undoing(self) -> bool:
        return OPERATIONS.allows(self.operation.state, OperationEvent.UNDONE)


class Cause(StrEnum):
    ENDED_WELL = "ended_well"
    ENDED_CANCELLED = "ended_cancelled"
    ENDED_UNDONE = "ended_undone"
    ENDED_BADLY = "ended_badly"
    QUEUED = "queued"
    NO_CONDUCTOR = "no_conductor"
    CONDUCTORS_AT_WORK = "conductors_at_work"
    BROKER_AWAY = "broker_away"
    CONDUCTOR_GONE = "conductor_gone"
    OVERDUE = "overdue"
    RETRY = "retry"
    COORDINATION_AWAY = "coordination_away"
    IMAGES_AWAY = "images_away"
    IMAGE_OPEN = "image_open"
    NO_GATEWAY = "no_gateway"
    EXPORT_REFUSED = "export_refused"
    EXPORT_FREE = "export_free"
    EXPORT_TAKING = "export_taking"
    EXPORT_OLD = "export_old"
    EXPORT_LOST = "export_lost"
    EXPORT_HELD = "export_held"
    EXPORT_HELD_BY_DEAD = "export_held_by_dead"
    EXPORT_TO_FENCE = "export_to_fence"
    MOVING = "moving"
    MOVES_WAIT = "moves_wait"
    LEFT_ON_GATEWAY = "left_on_gateway"
    CANCELLING = "cancelling"
    AT_WORK = "at_work"


class Wait(BaseModel):
    """One thing that is waited for, as it is now."""

    model_config = ConfigDict(frozen=True)

    cause: Cause
    detail: str


def for_a_conductor(facts: Facts) -> list[Wait]:
    """Nobody works on it: who could."""
    operation, standing, own = facts.operation, facts.standing, facts.own
    if standing.before:
        (first, kind), count = standing.before[0], len(standing.before)
        said = f"it is number {count} in line on {operation.resource_name}, where operation {first} ({kind}) is at work"
        return [Wait(cause=Cause.QUEUED, detail=said)]
    busy = ", ".join(f"{name} with {count}" for name, count in sorted(standing.claims.items()))
    if operation.claimed_by is not None and operation.claimed_until is not None:
        said = f"the claim of conductor {operation.claimed_by}, until {_at(operation.claimed_until)}, is in force no longer"
        others = f"at work are {busy}" if busy else "no other conductor is at work"
        return [Wait(cause=Cause.CONDUCTOR_GONE, detail=f"{said}; {others}")]
    found = []
    since = operation.created_at if operation.claimed_by is None else standing.told_at
    waited_s = (facts.now - since).total_seconds()
    if busy:
        line = f"{standing.ahead} wait before it" if standing.ahead else "it is next in line"
        found.append(Wait(cause=Cause.CONDUCTORS_AT_WORK, detail=f"no conductor has taken it yet; {line}; at work are {busy}"))
    elif waited_s > own.sweep_interval_s + own.claim_ttl_s:
        looks = f"though each looks every {own.sweep_interval_s:g} s"
        said = f"no conductor has taken it for {waited_s:.0f} s, {looks}, and none works on anything else"
        found.append(Wait(cause=Cause.NO_CONDUCTOR, detail=said))
    else:
        found.append(Wait(cause=Cause.CONDUCTORS_AT_WORK, detail=f"it was asked for {waited_s:.0f} s ago and is next in line"))
    if operation.cast_at is None and facts.broker:
        found.append(Wait(cause=Cause.BROKER_AWAY, detail=f"its wake-up cannot be cast: {facts.broker}"))
    return found


def for_time(facts: Facts, step: Step, deadline: datetime | None) -> list[Wait]:
    """The attempt under way, or the wait for the next, by the clock; with what the last one that failed said."""
    found = []
    last = f"the last attempt failed with {step.problem['code']}: {step.problem['detail']}" if step.problem else ""
    if deadline is not None and facts.now > deadline:
        late_s = (facts.now - deadline).total_seconds()
        found.append(Wait(cause=Cause.OVERDUE, detail=f"the attempt has not ended {late_s:.0f} s after its deadline"))
    if step.next_try_at is not None:
        following = f"the next begins at {_at(step.next_try_at)}"
        found.append(Wait(cause=Cause.RETRY, detail=f"{last}; {following}" if last else following))
    elif last:
        found.append(Wait(cause=Cause.RETRY, detail=f"{last}; another is under way"))
    return found


def for_parts(facts: Facts, step: str) -> list[Wait]:
    """Parts that the step needs and that do not answer now."""
    found = []
    if "coordination" in facts.away and step in _WITH_COORDINATION:
        found.append(Wait(cause=Cause.COORDINATION_AWAY, detail=f"Consul: {facts.away['coordination']}"))
    if "images" in facts.away and step not in _WITHOUT_IMAGES:
        found.append(Wait(cause=Cause.IMAGES_AWAY, detail=f"the image store: {facts.away['images']}"))
    return found


def for_step(facts: Facts, step: str) -> list[Wait]:
    """What this step waits for by its nature; empty when nothing that can be seen keeps it."""
    look = (_UNDONE if facts.is_undoing else _DONE).get(step)
    return list(look(facts)) if look is not None else []


def _unserved(facts: Facts) -> Iterator[Wait]:
    if facts.disk is None or facts.serving is None:
        return
    for index in facts.disk.export_indexes:
        export = ExportId(facts.disk.id, index)
        held = facts.serving.get(export)
        named = _named(facts.disk, index)
        if export not in facts.serving:
            yield Wait(cause=Cause.EXPORT_LOST, detail=f"{named}: its key is missing in Consul")
        elif held is None:
            yield Wait(cause=Cause.EXPORT_LOST, detail=f"{named}: its key in Consul cannot be read")
        elif not held.locked:
            yield _free(facts, export, named, held)
        elif held.export.phase is not ExportPhase.SERVING:
            yield Wait(cause=Cause.EXPORT_TAKING, detail=f"{named}: {held.export.node} holds it and is {held.export.phase}")
        elif held.export.revision < facts.disk.export_revision:
            said = f"serves it as of revision {held.export.revision}, {facts.disk.export_revision} is wanted"
            yield Wait(cause=Cause.EXPORT_OLD, detail=f"{named}: {held.export.node} {said}")


def _free(facts: Facts, export: ExportId, named: str, held: Held) -> Wait:
    """Why nobody has taken it, as far as the gateways say."""
    live = facts.gateways or ()
    fence = f"; {held.export.client} is fenced first" if held.export.needs_fence else ""
    refused = [f"{gateway.name}: {gateway.refused[str(export)]}" for gateway in live if str(export) in gateway.refused]
    if refused:
        return Wait(cause=Cause.EXPORT_REFUSED, detail=f"{named}: refused by {'; '.join(refused)}{fence}")
    if not live:
        return Wait(cause=Cause.NO_GATEWAY, detail=f"{named}: nobody has taken it, and no gateway is live{fence}")
    said = ", ".join(f"{gateway.name}{_hindrance(gateway)}" for gateway in live)
    return Wait(cause=Cause.EXPORT_FREE, detail=f"{named}: nobody has taken it; live gateways: {said}{fence}")


def _hindrance(gateway: Gateway) -> str:
    """What a gateway says of itself that keeps it from taking exports."""
    hindrances = [
        *(["giving up what it serves"] if gateway.withdrawing else []),
        *(["cut off from the image store"] if gateway.store.cut_off else []),
        *(f"cut off on {interface}" for interface in gateway.front.cut_off),
    ]
    return f" ({', '.join(hindrances)})" if hindrances else ""


def _unreleased(facts: Facts) -> Iterator[Wait]:
    if facts.serving is None:
        return
    live = {gateway.name for gateway in facts.gateways or ()}
    for export, held in facts.serving.items():
        named = _named(facts.disk, export.index)
        if held is None:
            yield Wait(cause=Cause.EXPORT_TO_FENCE, detail=f"{named}: its key cannot be read, so anybody may be serving it")
        elif held.locked and held.export.node not in live:
            said = f"{held.export.node} holds it and is not among the live gateways"
            yield Wait(cause=Cause.EXPORT_HELD_BY_DEAD, detail=f"{named}: {said}")
        elif held.locked:
            count = len(held.export.connections)
            said = f"{held.export.node} holds it and is {held.export.phase}, with {count} connections"
            yield Wait(cause=Cause.EXPORT_HELD, detail=f"{named}: {said}")
        elif held.export.needs_fence:
            yield Wait(cause=Cause.EXPORT_TO_FENCE, detail=f"{named}: its last client {held.export.client} is to be fenced")


def _opened(facts: Facts) -> Iterator[Wait]:
    if facts.openers:
        who = ", ".join(f"{client}{_whose(facts, client)}" for client in facts.openers[:_NAMED_MAX])
        yield Wait(cause=Cause.IMAGE_OPEN, detail=f"the disk's image is open: {who}{_more(facts.openers)}")


def _whose(facts: Facts, client: str) -> str:
    for export, held in (facts.serving or {}).items():
        if held is not None and held.export.client == client:
            return f" (export {export.index} of {held.export.node})"
    for gateway in facts.gateways or ():
        if client in gateway.running.values():
            return f" (a process of {gateway.name})"
    return ""


def _moves(facts: Facts) -> Iterator[Wait]:
    under_way = [move for move in facts.moves if move.state is not MOVES.start and move.state not in MOVES.rest]
    if under_way:
        said = "; ".join(_under_way(facts, move) for move in under_way[:_NAMED_MAX])
        yield Wait(cause=Cause.MOVING, detail=f"{said}{_more(under_way)}")
    waiting = sum(move.state is MOVES.start for move in facts.moves)
    if waiting:
        most = f"a gateway takes part in {facts.own.moves_per_gateway} at once, a disk in one"
        yield Wait(cause=Cause.MOVES_WAIT, detail=f"{waiting} moves have not begun: {most}")


def _under_way(facts: Facts, move: Move) -> str:
    gateways = {gateway.name: gateway for gateway in facts.gateways or ()}
    said = [f"{move.disk_name}/{move.index} from {move.source or 'nobody'} to {move.destination}"]
    if move.started_at is not None:
        waited_s = (facts.now - move.started_at).total_seconds()
        end = move.started_at + timedelta(seconds=facts.own.move_deadline_s)
        said.append(f"under way for {waited_s:.0f} s, until {_at(end)} at most before it is withdrawn")
    held = (facts.serving or {}).get(move.export)
    if held is not None:
        said.append(f"{held.export.node} has it, {held.export.phase}" if held.locked else "nobody has it at the moment")
    if facts.gateways is not None:
        said += [f"{name} is not live" for name in (move.source, move.destination) if name and name not in gateways]
    if move.source in gateways and (kept := gateways[move.source].kept.get(str(move.export))) is not None:
        said.append(f"{move.source} kept it: {kept.reason}")
    if move.destination in gateways and str(move.export) in gateways[move.destination].refused:
        said.append(f"{move.destination} refused it: {gateways[move.destination].refused[str(move.export)]}")
    return ", ".join(said)


def _left(facts: Facts) -> Iterator[Wait]:
    gateway = facts.operation.params.get("gateway")
    left = [str(export) for export, held in (facts.serving or {}).items() if held and held.locked and held.export.node == gateway]
    if left:
        said = f"{gateway} still serves {', '.join(sorted(left)[:_NAMED_MAX])}{_more(left)}"
        yield Wait(cause=Cause.LEFT_ON_GATEWAY, detail=said)


_DONE: Final[Mapping[str, Callable[[Facts], Iterator[Wait]]]] = {
    plans.AWAIT_SERVED: _unserved,
    plans.AWAIT_RELEASED: _unreleased,
    plans.RETRACT: _unreleased,
    plans.REMOVE_IMAGE: _opened,
    plans.ROLL_BACK_IMAGE: _opened,
    plans.CREATE_SNAPSHOT: _opened,
    plans.MOVE_PATHS: _moves,
    plans.CHECK_EMPTY: _left,
}
_UNDONE: Final[Mapping[str, Callable[[Facts], Iterator[Wait]]]] = {
    plans.PUBLISH: _unreleased,
    plans.CREATE_IMAGE: _opened,
}


def _named(disk: Disk | None, index: int) -> str:
    addresses = ", ".join(path.address for path in disk.export_paths(index)) if disk else ""
    return f"export {index} ({addresses})" if addresses else f"export {index}"


def _more(every: Sequence[Any]) -> str:
    return f" and {len(every) - _NAMED_MAX} more" if len(every) > _NAMED_MAX else ""


def _at(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
