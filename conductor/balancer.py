"""Spreads paths evenly again after gateways came or went, as an operation like anybody else's.

Not at once, and not without end: the same gateways must have been there for a while, and the moves in a span of time are
counted, so that gateways that come and go do not make paths wander. Two conductors may do this at once: of two operations that
move paths the records let one through.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from conductor.steps.base import Stores
from sanderling import layouts, tracing
from sanderling.errors import Busy, Problem
from sanderling.model import balance, plans
from sanderling.model.balance import Layout, PlannedMove
from sanderling.model.moves import MOVES, Move, MoveState
from sanderling.records import assignments, moves, operations
from sanderling.settings import Conductor, Settings

log = structlog.get_logger(__name__)

BALANCER: Final = "balancer"  # who asked for its operations


@dataclass(frozen=True, slots=True)
class Steady:
    """What must stay the same for a while before anything is moved: the gateways, the marks, and since when they are so."""

    seen: tuple[object, ...]
    since: float


def watch(before: Steady | None, layout: Layout, *, now: float) -> Steady:
    """Since when the gateways and marks are as they are in this layout."""
    seen = (layout.gateways, layout.drained, dict(layout.pins), dict(layout.avoid))
    return before if before is not None and before.seen == seen else Steady(seen, now)


def decide(
    layout: Layout, steady: Steady, lately: Collection[Move], *, busy_disks: Collection[str], now: float, own: Conductor
) -> Sequence[PlannedMove]:
    """The moves to make now. `lately` are those asked for within the span in which they are counted.

    An export without owner is left to the workers, one whose disk has an operation to that, and one whose move failed or was
    cancelled lately where it is.
    """
    allowed = own.balance_moves_max - len(lately)
    if now - steady.since < own.balance_cool_down_s or allowed <= 0:
        return ()
    tried = {move.export for move in lately if move.state in MOVES.rest and move.state is not MoveState.SUCCEEDED}
    served = [export for export, owner in layout.owners.items() if owner is not None]
    chosen = [export for export in served if export.disk_id not in busy_disks and export not in tried]
    return balance.average(layout, chosen)[:allowed]


class Balancer:
    """Looks once in each interval. `wake` drives the operation that it asks for."""

    def __init__(self, settings: Settings, stores: Stores, *, tell: Callable[[], None], wake: Callable[[str], None]) -> None:
        self._own, self._stores, self._tell, self._wake = settings.conductor, stores, tell, wake
        self._steady: Steady | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="balancer", daemon=True)

    def start(self) -> None:
        """Begin, unless it is turned off."""
        if self._own.balance == "on":
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._own.balance_interval_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.turn()
            except Busy:
                log.info("somebody else moves paths")
            except Problem as problem:
                log.warning("cannot look at the spread of paths", code=problem.code, reason=problem.detail)
            except Exception:
                log.exception("balancing failed")
            self._stores.clock.wait(self._stopping, self._own.balance_interval_s)

    def turn(self) -> None:
        """Look once, and ask for the moves that are due. `Busy` when others were faster."""
        records, now = self._stores.records, self._stores.clock.monotonic()
        window = records.now() - timedelta(seconds=self._own.balance_window_s)
        with records.read() as session:
            situation = layouts.read(session, self._stores.coordination)
            busy = operations.open_resources(session)
            lately = moves.asked_since(session, window, requested_by=BALANCER)
        self._steady = watch(self._steady, situation.layout, now=now)
        if plans.ASSIGNMENTS in busy:
            return
        planned = decide(situation.layout, self._steady, lately, busy_disks=busy, now=now, own=self._own)
        if not planned:
            return
        asked = [situation.move(position, move) for position, move in enumerate(planned)]
        with tracing.span("balance", begins=True):
            with records.begin() as session:
                operation = assignments.submit(
                    session,
                    moves=asked,
                    conductor=self._own,
                    requested_by=BALANCER,
                    now=records.now(),
                    traceparent=tracing.current(),
                )
            log.info("balancing", operation_id=operation.id, moves=len(asked), lately=len(lately))
        self._tell()
        self._wake(operation.id)
