"""A tenure: the duties of one term, held on a lease, stopped in bounded time by themselves when it is not renewed."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from leader.election import Standing
from sanderling import settings
from sanderling.clock import Clock

log = structlog.get_logger(__name__)


class Duty(Protocol):
    """Something that only a leader does. It runs in a thread of its own, so starting may block and may raise."""

    name: str

    def start(self, tenure: "Tenure") -> None:
        """Begin. Whatever lasts asks `tenure.holds()` before every act, and hands `tenure.term` on with it."""
        ...

    def stop(self) -> None:
        """End it, also when it was only half started. Once this returns nothing of it acts; raising ends the process."""
        ...


class LogDuty:
    """A duty that does nothing but say from when to when it ran, in CLOCK_MONOTONIC seconds."""

    def __init__(self, name: str, *, clock: Clock) -> None:
        self.name, self._clock = name, clock
        self._tenure: Tenure | None = None

    def start(self, tenure: "Tenure") -> None:
        self._tenure = tenure
        log.info("duty started", duty=self.name, term=tenure.term, at=self._clock.monotonic(), until=tenure.until)

    def stop(self) -> None:
        if self._tenure is not None:
            log.info("duty stopped", duty=self.name, term=self._tenure.term, at=self._clock.monotonic(), until=self._tenure.until)
            self._tenure = None


def end_process() -> None:
    """At once, and without any tidying up that could block."""
    os._exit(1)


class Tenure:
    """One leadership. The duties begin in order and end in reverse.

    Two threads: one carries the duties out, the other watches over the lease. A duty that does not stop within its bound, or
    fails to, takes the process with it: only then may another be sure that it acts no more.
    """

    def __init__(
        self,
        term: int,
        duties: Sequence[Duty],
        *,
        until: float,
        bounds: settings.Leader,
        clock: Clock,
        end_process: Callable[[], None] = end_process,
    ) -> None:
        self.term = term
        self._duties, self._until, self._bounds, self._clock = tuple(duties), until, bounds, clock
        self._end_process = end_process
        self._ending, self._ended = threading.Event(), threading.Event()
        self._failed = False

    def begin(self) -> None:
        """Start the duties; returns at once."""
        for work in (self._carry_out, self._watch_over_the_lease):
            threading.Thread(target=work, name=f"tenure-{self.term}", daemon=True).start()

    @property
    def until(self) -> float:
        """When the lease runs out, on the clock's monotonic scale."""
        return self._until

    def extend(self, until: float) -> None:
        """The lock was proved again by a look that began a lease before `until`. What has ended stays ended."""
        self._until = max(self._until, until)

    def holds(self) -> bool:
        return not self._ending.is_set() and self._clock.monotonic() < self._until

    @property
    def standing(self) -> Standing:
        if self._failed:
            return Standing.FAILED
        return Standing.LEADS if self.holds() else Standing.OVER

    def end(self) -> None:
        """Stop the duties. Once this returns none of them acts; they stop within the bound or the process ends."""
        self._ending.set()
        if not self._clock.wait(self._ended, self._bounds.duty_stop_timeout_s):
            log.critical("a duty does not stop: ending this process", term=self.term)
            self._end_process()

    def _carry_out(self) -> None:
        begun: list[Duty] = []
        try:
            for duty in self._duties:
                if not self.holds():
                    break
                begun.append(duty)
                duty.start(self)
        except Exception:
            log.exception("a duty did not start", duty=begun[-1].name, term=self.term)
            self._failed = True
            self._ending.set()
        self._ending.wait()
        try:
            for duty in reversed(begun):
                duty.stop()
        except Exception:
            log.exception("a duty did not stop: ending this process", term=self.term)
            self._end_process()
        else:
            self._ended.set()

    def _watch_over_the_lease(self) -> None:
        while (left_s := self._until - self._clock.monotonic()) > 0:
            if self._clock.wait(self._ending, left_s):
                break
        else:
            log.warning("the lease ran out: stopping the duties", term=self.term, until=self._until)
        self.end()
