"""Moving exports from gateway to gateway, as recorded moves: commanded over the bus, seen to their end in coordination."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from conductor import moving
from conductor.moving import Begin, Decision, End, Held, Repeat, UnderWay, View, Withdraw
from conductor.steps.base import Action, Context
from conductor.steps.reading import exports_in, live_gateways, readable_export
from rpc import topics
from rpc.messages import ExportCommand
from sanderling import layouts, tracing
from sanderling.coordination.base import Entry, Listing
from sanderling.errors import MoveFailed, SecretUnreadable, SettingsRefused, Unavailable
from sanderling.model import balance
from sanderling.model.disks import DiskState
from sanderling.model.exports import Epoch, ExportId
from sanderling.model.moves import MOVES, Move, MoveEvent, MoveState
from sanderling.model.operations import OperationKind
from sanderling.records import marks, operations
from sanderling.records import moves as recorded
from sanderling.records.tables import DiskRow

log = structlog.get_logger(__name__)

_WATCH_S: Final = 1.0  # how long what is not written under exports/ may go unnoticed: a refusal, a cancel
_LOOK_EVERY_S: Final = 0.05  # at most, where exports change all the time
_NAMED_MAX: Final = 10  # that a problem names; the operation's moves, and the list of paths, have all


def move_paths(context: Context) -> None:
    """Make the operation's moves, many at once, each to its end. `MoveFailed` counts and names those that failed.

    What cannot be read or sent for a while costs time only; every move has its deadline. A cancel lets no more begin.
    """
    with context.stores.records.read() as session:
        moves = recorded.of(session, context.operation.id)
    under_way: Mapping[int, UnderWay] = {}
    index = 0
    while any(move.state not in MOVES.rest for move in moves):
        context.check("its moves to end")
        try:
            wait_s = min(_WATCH_S, context.own.move_repeat_s, context.left_s)
            listing = context.stores.coordination.watch("exports/", index=index, timeout_s=wait_s)
            view, index = _seen(context, listing, moves), listing.index
        except Unavailable as problem:
            log.warning("cannot see how the moves go", reason=problem.detail)
            context.pause(_WATCH_S)
            continue
        now = context.stores.clock.monotonic()
        decisions = moving.decide(moves, under_way, view, now=now, own=context.own, operation_id=context.operation.id)
        changed = {move.position: move for move in _recorded(context, decisions)}
        moves = [changed.get(move.position, move) for move in moves]
        _send(context, decisions)
        under_way = moving.after(under_way, decisions, now=now)
        context.pause(_LOOK_EVERY_S)
    failed = [move for move in moves if move.state is MoveState.FAILED]
    if failed and context.operation.kind is OperationKind.DRAIN_GATEWAY:
        failed = _left(context, failed)
    if failed:
        raise MoveFailed(
            f"{len(failed)} of {len(moves)} moves failed: {_named(failed)}",
            failed=[{"disk": move.disk_name, "index": move.index, "to": move.destination} for move in failed[:_NAMED_MAX]],
        )


def _left(context: Context, failed: Sequence[Move]) -> list[Move]:
    """Those that leave a started disk's export at the drained gateway; a disk that was stopped meanwhile is in nobody's way."""
    held = set(_held_by(context.operation.params["gateway"], context.stores.coordination.list("exports/")))
    with context.stores.records.read() as session:
        started = _started(session)
    return [move for move in failed if move.export in held and move.disk_id in started]


def plan_drain(context: Context) -> None:
    """Record a move for each export that the gateway serves and another one may have. There may be none."""
    gateway, records = context.operation.params["gateway"], context.stores.records
    with records.read() as session:
        if recorded.of(session, context.operation.id):
            return  # recorded by the attempt before
        situation = layouts.read(session, context.stores.coordination)
    served = [export for export, owner in situation.layout.owners.items() if owner == gateway]
    planned = balance.average(situation.layout, served)
    with context.effect("record"), records.begin() as session:
        operations.hold(session, context.operation.id, claim_epoch=context.operation.claim_epoch)
        recorded.insert(session, context.operation.id, [situation.move(n, move) for n, move in enumerate(planned)])


def check_empty(context: Context) -> None:
    """Return once the gateway serves nothing. What no other one may take is named at once, what is left else at the deadline."""
    gateway, coordination = context.operation.params["gateway"], context.stores.coordination
    listing = coordination.list("exports/")
    while left := _held_by(gateway, listing):
        if stuck := _stuck(context, gateway, left):
            raise _not_empty(context, gateway, stuck, "may take", "add a gateway that may, then drain again")
        if context.left_s <= 0:
            raise _not_empty(context, gateway, left, "has taken", "drain again")
        context.check()
        listing = coordination.watch("exports/", index=listing.index, timeout_s=min(_WATCH_S, context.left_s))
        context.pause(_LOOK_EVERY_S)


def _stuck(context: Context, gateway: str, left: Iterable[ExportId]) -> list[ExportId]:
    """Those of the exports that no other gateway may be given."""
    with context.stores.records.read() as session:
        layout = layouts.read(session, context.stores.coordination).layout
    others = layout.usable - {gateway}
    return [one for one in left if one in layout.owners and others <= layout.avoid.get(one.disk_id, frozenset())]


def _not_empty(context: Context, gateway: str, left: Sequence[ExportId], whose: str, fix: str) -> MoveFailed:
    return MoveFailed(
        f"{gateway} still serves {len(left)} exports that no other gateway {whose}: {_disks(context, left)}; {fix}, or "
        f"undrain {gateway}, which stays marked as drained until then",
        left=[str(export) for export in left[:_NAMED_MAX]],
    )


def _seen(context: Context, listing: Listing, moves: Iterable[Move]) -> View:
    wanted = {move.export.key for move in moves if move.state not in MOVES.rest}
    exports = {}
    for export, entry in exports_in(entry for entry in listing.entries if entry.key in wanted).items():
        held = _held(entry)
        if held is not None:
            exports[export] = held
    gateways = live_gateways(context.stores.coordination.list("nodes/").entries)
    with context.stores.records.read() as session:
        started = _started(session)
        operation, marked = operations.get(session, context.operation.id), marks.read(session)
    named = {gateway.name: gateway for gateway in gateways}
    return View(exports, named, started, operation.cancel_requested, marked.avoid, marked.drained)


def _started(session: Session) -> frozenset[str]:
    """The disks that are served, and are not about to stop."""
    query = select(DiskRow.id).where(DiskRow.started.is_(True), DiskRow.state == DiskState.STARTED.value)
    return frozenset(session.scalars(query))


def _held(entry: Entry) -> Held | None:
    value = readable_export(entry)
    return None if value is None else Held(value, value.node if entry.consul_session else "")


def _held_by(gateway: str, listing: Listing) -> list[ExportId]:
    entries = exports_in(listing.entries).items()
    return [export for export, entry in entries if (held := _held(entry)) is not None and held.owner == gateway]


def _recorded(context: Context, decisions: Sequence[Decision]) -> list[Move]:
    """The moves whose states the decisions change, as they then are."""
    ends = [(one.move, one.event, one.reason) for one in decisions if isinstance(one, End)]
    begins = [(one.move, MoveEvent.START, "") for one in decisions if isinstance(one, Begin)]
    return _record(context, "end", ends) + _record(context, "begin", begins)


def _record(context: Context, effect: str, changes: Sequence[tuple[Move, MoveEvent, str]]) -> list[Move]:
    if not changes:
        return []
    operation, records = context.operation, context.stores.records
    with context.effect(effect), records.begin() as session:
        operations.hold(session, operation.id, claim_epoch=operation.claim_epoch)
        now, actor, after = records.now(), str(operation.claimed_by), []
        for move, event, reason in changes:
            problem = MoveFailed(reason).to_wire() if reason else None
            after.append(recorded.apply(session, operation.id, move.position, event, now=now, actor=actor, problem=problem))
    context.tell()
    return after


def _send(context: Context, decisions: Sequence[Decision]) -> None:
    """Cast what the decisions command. What cannot be signed, or sent, now is sent again with the next repetition."""
    casts = [cast for one in decisions for cast in _casts(context, one)]
    if not casts:
        return
    with context.effect("command"):
        try:
            for server, method, command in casts:
                signed = context.stores.signing.signed(method, command, server=server)
                context.stores.bus.cast(topics.ISCSI_WORKER, method, signed, server=server)
        except (Unavailable, SecretUnreadable, SettingsRefused) as problem:
            log.warning("cannot command moves for now", reason=problem.detail)


def _casts(context: Context, decision: Decision) -> list[tuple[str, str, ExportCommand]]:
    if isinstance(decision, End) or decision.epoch is None:
        return []
    move = decision.move
    if isinstance(decision, Begin | Repeat):
        take = (move.destination, "export.path_host", _command(context, move, decision.epoch))
        give = (move.source, "export.clean", _command(context, move, decision.epoch, destination=move.destination))
        return [take, give] if move.source else [take]
    assert isinstance(decision, Withdraw)
    stay = (move.source, "export.clean", _command(context, move, decision.epoch, destination=move.source))
    return [stay] if move.source else []


def _command(context: Context, move: Move, epoch: Epoch, *, destination: str = "") -> ExportCommand:
    """One to hand an export on to the gateway that has it is never carried out, and takes the place of the one before."""
    return ExportCommand(
        operation_id=context.operation.id,
        traceparent=tracing.current(),
        disk_id=move.disk_id,
        index=move.index,
        generation=epoch.generation,
        counter=epoch.counter,
        destination=destination,
    )


def _named(failed: Sequence[Move]) -> str:
    named = [
        f"{move.disk_name}/{move.index} to {move.destination} ({move.problem['detail'] if move.problem else 'no reason'})"
        for move in failed[:_NAMED_MAX]
    ]
    return "; ".join(named) + (f"; and {len(failed) - _NAMED_MAX} more" if len(failed) > _NAMED_MAX else "")


def _disks(context: Context, exports: Sequence[ExportId]) -> str:
    named = exports[:_NAMED_MAX]
    with context.stores.records.read() as session:
        query = select(DiskRow.id, DiskRow.name).where(DiskRow.id.in_({export.disk_id for export in named}))
        names = {row.id: row.name for row in session.execute(query)}
    return ", ".join(f"{names.get(export.disk_id, export.disk_id)}/{export.index}" for export in named)


MOVE_PATHS = Action(move_paths, effects=("begin", "command", "end"))
PLAN_DRAIN = Action(plan_drain, effects=("record",))
CHECK_EMPTY = Action(check_empty)
