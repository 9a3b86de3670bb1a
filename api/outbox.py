"""The outbox of a process: one thread that casts what requests have committed, so that no request waits for the broker."""

import contextlib
import threading
from collections import deque
from collections.abc import Sequence

import structlog

from rpc import topics
from rpc.bus import Bus
from rpc.messages import Wake
from sanderling.clock import Clock
from sanderling.errors import Problem, Unavailable
from sanderling.records import operations
from sanderling.records.database import Records
from sanderling.records.operations import Outgoing
from sanderling.settings import Api

log = structlog.get_logger(__name__)


class Outbox:
    """Wakes conductors. A cast that fails is tried again later; one that is lost costs the conductors' next sweep.

    What was cast is noted in the records for many operations at once, since that is a write like any other. Until then another
    process may cast it once more, and so does the next one where this one dies: what they wake for has been claimed, or can be.

    It is told of what this process has just committed; what else waits, such as what could not be cast, is found in the records.
    """

    def __init__(self, options: Api, *, records: Records, bus: Bus, clock: Clock) -> None:
        self._options, self._records, self._bus, self._clock = options, records, bus, clock
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._sent, self._note_at = set[str](), 0.0
        self._told, self._look_at = deque[Outgoing](maxlen=options.outbox_batch), 0.0
        self.reason = ""
        """Why nothing can be cast now; empty when the latest turn went well."""

    def start(self) -> None:
        self._thread.start()

    def wake(self, outgoing: Outgoing) -> None:
        """This was committed and is to be cast; returns at once."""
        self._told.append(outgoing)
        if len(self._told) == self._told.maxlen:
            self._look_at = 0.0  # the oldest fall out, and are found in the records
        self._woken.set()

    def stop(self) -> None:
        """Cast no more. What is left is found by the next process, or by a conductor's sweep."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout=self._options.stop_timeout_s)

    def drain(self) -> int:
        """Cast what waits, one batch; how many. `Unavailable` when the broker or the records are away."""
        batch = self._options.outbox_batch
        fresh = self._waiting()
        try:
            for outgoing in fresh:
                wake = Wake(operation_id=outgoing.id, traceparent=outgoing.traceparent)
                self._bus.cast(topics.CONDUCTOR, "operation.wake", wake)
                if not self._sent:
                    self._note_at = self._clock.monotonic() + self._options.outbox_interval_s
                self._sent.add(outgoing.id)
        finally:
            if len(self._sent) >= batch or self._clock.monotonic() >= self._note_at:
                self._note()
        return len(fresh)

    def _waiting(self) -> Sequence[Outgoing]:
        """One batch at most of what is to be cast: what was told, or what the records hold where that is due."""
        batch, now = self._options.outbox_batch, self._clock.monotonic()
        if self._told and now < self._look_at:
            told = [self._told.popleft() for _ in range(len(self._told))]
            return [outgoing for outgoing in told if outgoing.id not in self._sent]
        self._look_at = now + self._options.outbox_interval_s
        self._told.clear()  # it was committed before it was told
        with self._records.read() as session:
            found = operations.outbox(session, limit=batch + len(self._sent))
        fresh = [outgoing for outgoing in found if outgoing.id not in self._sent][:batch]
        if len(fresh) == batch:
            self._look_at = now  # there may be more
        return fresh

    def _note(self) -> None:
        if self._sent:
            with self._records.begin() as session:
                operations.mark_cast(session, sorted(self._sent), now=self._clock.wall())
            self._sent.clear()

    def _run(self) -> None:
        wait_s = self._options.outbox_interval_s
        while not self._stopping.is_set():
            self._clock.wait(self._woken, wait_s)
            self._woken.clear()
            wait_s = self._turn(wait_s)
        with contextlib.suppress(Problem):
            self._note()

    def _turn(self, waited_s: float) -> float:
        """One turn; how long to wait for the next at most. While the broker is away, requests do not hurry it."""
        try:
            while self.drain() == self._options.outbox_batch and not self._stopping.is_set():
                pass
            self.reason = ""
        except Unavailable as problem:
            self.reason = problem.detail
            log.warning("outbox waits", reason=problem.detail)
            self._clock.wait(self._stopping, waited_s)
            return min(waited_s * 2, self._options.outbox_retry_most_s)
        except Problem as problem:
            log.error("outbox failed", reason=problem.detail)
        except Exception:
            log.exception("outbox failed")
        return self._options.outbox_interval_s
