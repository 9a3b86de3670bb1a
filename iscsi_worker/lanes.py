"""The lanes: threads that carry out what the loop has decided, one action at a time for each export."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import structlog

from iscsi_worker import metrics
from iscsi_worker.decisions import Action, Activate, Adopt, Drop, GiveUp, HandOver, Prepare, Publish, Take
from iscsi_worker.exports import Exports
from iscsi_worker.intents import Intents
from iscsi_worker.membership import Membership
from iscsi_worker.moves import Moves
from iscsi_worker.targets.base import Running
from iscsi_worker.view import Held, View
from iscsi_worker.watch import Watch
from sanderling import tracing
from sanderling.clock import Clock
from sanderling.coordination.base import is_about_coordination
from sanderling.errors import ClaimLost, Problem, SessionLost
from sanderling.measuring import timed
from sanderling.model.exports import UNKNOWN_CLIENT, ExportId
from sanderling.model.operations import Cause
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


class Grounds(NamedTuple):
    """What an action was decided from: the view, the session it was read with, what ran here of the export, and since when
    nobody is seen to serve what was served before."""

    view: View
    consul_session: str
    running: Running | None
    unserved_since: float | None


class Under(NamedTuple):
    """The exports with an action `busy` under way, and how many actions have `ended` so far."""

    busy: frozenset[ExportId]
    ended: int


class Lanes:
    """The loop calls; what it hands out ends on a thread of its own, which then calls `on_end`."""

    def __init__(
        self,
        settings: Worker,
        exports: Exports,
        moves: Moves,
        *,
        membership: Membership,
        intents: Intents,
        watch: Watch,
        on_end: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._settings, self._clock, self._on_end = settings, clock, on_end
        self._exports, self._moves = exports, moves
        self._membership, self._intents, self._watch = membership, intents, watch
        self._pool = ThreadPoolExecutor(settings.lanes, thread_name_prefix="lane")
        self._lock = threading.Lock()  # guards all below
        self._busy: set[ExportId] = set()
        self._ended = 0
        self._pending: dict[ExportId, float] = {}
        self._touched: set[ExportId] = set()

    def hand_out(self, action: Action, grounds: Grounds) -> None:
        """Have it carried out. Its export must not be busy."""
        with self._lock:
            self._busy.add(action.export)
        self._pool.submit(self._carry_out, action, grounds)

    def look(self) -> Under:
        """What is under way. Read first, so that what a lane ends from here on is decided the next time."""
        with self._lock:
            return Under(frozenset(self._busy), self._ended)

    def pending(self) -> frozenset[ExportId]:
        """Exports whose last action came to nothing; not to be tried again yet."""
        with self._lock:
            now = self._clock.monotonic()
            self._pending = {export: until for export, until in self._pending.items() if until > now}
            return frozenset(self._pending)

    @property
    def touched(self) -> list[ExportId]:
        """Exports whose keys actions have written and the loop has yet to notice."""
        with self._lock:
            return sorted(self._touched)

    def noticed(self, exports: list[ExportId]) -> None:
        """The view holds what was written to these before they were read from `touched`."""
        with self._lock:
            self._touched.difference_update(exports)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and all that was written has been seen."""
        with self._lock:
            return not self._busy and not self._touched

    def stop(self) -> None:
        """Wait for what is under way; what has not begun never will."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, action: Action, grounds: Grounds) -> None:
        with self._traced(action, grounds) as span:
            self._carry_out_as(span, action, grounds)

    def _carry_out_as(self, span: tracing.Span, action: Action, grounds: Grounds) -> None:
        export, later, concerns_all = action.export, None, not isinstance(action, Publish | Drop)
        try:
            with timed(metrics.ACTION_SECONDS, self._clock, _named(action)):
                done = self._act(action, grounds)
            later = None if done else self._settings.take_retry_s
            concerns_all = isinstance(action, Take | Adopt | GiveUp) if done else isinstance(action, HandOver)
        except SessionLost as problem:
            span.fail(problem)
            log.warning("session lost in the middle", export=str(export), problem=problem.detail)
        except Problem as problem:
            span.fail(problem)
            log.error("action failed", action=type(action).__name__, export=str(export), problem=problem.detail)
            if isinstance(action, HandOver) or not _is_anybodys(problem):
                self._refuse(action, problem.detail)
            later = self._settings.renew_interval_s
        except Exception as error:
            span.fail(error)
            log.exception("action failed", action=type(action).__name__, export=str(export))
            kind = type(error).__name__  # its text may hold a secret, and this is told to others
            self._refuse(action, f"a fault of ours: {kind}; the worker's log says where")
            later = self._settings.renew_interval_s
        finally:
            if concerns_all:
                self._membership.note([export.key])
            with self._lock:
                if later is not None:
                    self._pending[export] = self._clock.monotonic() + later
                if not isinstance(action, Prepare):  # which writes nothing, and whose key is followed
                    self._touched.add(export)
                self._busy.discard(export)
                self._ended += 1
            self._on_end()

    def _traced(self, action: Action, grounds: Grounds) -> contextlib.AbstractContextManager[tracing.Span]:
        """A part of the operation that asked for it by a command, or that published what is to be served now."""
        if isinstance(action, Publish):
            return tracing.span(_named(action))
        disk, held = grounds.view.disks.get(action.export.disk_id), grounds.view.exports.get(action.export)
        is_news = disk is not None and held is not None and held.export.revision < disk.revision
        cause = self._intents.cause(action.export) or (disk.cause if disk is not None and is_news else Cause())
        return tracing.span(
            _named(action),
            parent=cause.traceparent,
            operation_id=cause.operation_id,
            begins=True,
            export=str(action.export),
        )

    def _act(self, action: Action, grounds: Grounds) -> bool:
        view, session, running, unserved_since = grounds
        addresses = [path.address for path in running.paths] if running else []
        match action:
            case Take(export, disk, held):
                siblings = self._siblings_clients(held, view, export)
                return self._exports.take(
                    export, disk, held, unserved_since=unserved_since, consul_session=session, siblings=siblings
                )
            case Adopt(export, held, adopted, disk):
                siblings = self._siblings_clients(held, view, export)
                return self._exports.adopt(export, held, adopted, disk, consul_session=session, siblings=siblings)
            case GiveUp(export, held):
                self._exports.give_up(export, held, addresses, running, consul_session=session)
            case Drop(export):
                self._exports.drop(export, addresses, running)
            case Prepare(export, disk, held):
                self._moves.prepare(export, disk, held)
            case HandOver(export, held, handing, heir, prepared):
                assert running is not None, "decided without a process"
                return self._moves.hand_over(export, held, running, prepared, handing=handing, heir=heir, consul_session=session)
            case Activate(export, held, ready):
                certain = self._membership.is_certain  # a node that was frozen meanwhile must not draw initiators back to it
                return certain and self._moves.activate(
                    export, held, ready, unserved_since=unserved_since, consul_session=session
                )
            case Publish(export, held, connections):
                return self._exports.publish(export, held, connections, consul_session=session)
        return True

    def _siblings_clients(self, held: Held, view: View, export: ExportId) -> frozenset[str]:
        """Who must not be fenced with everybody else. It counts only where all are to be, and then as it is now."""
        return (self._watch.fresh() if held.export.client == UNKNOWN_CLIENT else view).siblings_clients(export)

    def _refuse(self, action: Action, reason: str) -> None:
        if isinstance(action, Take | Prepare | Activate):
            self._intents.refuse(action.export, reason)
        elif isinstance(action, HandOver):
            self._intents.keep(action.export, action.handing.operation_id, reason)


def _named(action: Action) -> str:
    return type(action).__name__.lower()


def _is_anybodys(problem: Problem) -> bool:
    """Whether any gateway would have met it: coordination did not answer, or the lock had gone to another meanwhile."""
    return is_about_coordination(problem) or isinstance(problem, ClaimLost)
