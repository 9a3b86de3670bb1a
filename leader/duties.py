"""A tenure: the duties of one term, held on a lease, stopped in bounded time by themselves when it is not renewed."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from leader.election import Standing
from sanderling import settings
from sanderling.clock import Clock
from sanderling.errors import Problem

log = structlog.get_logger(__name__)


class Duty(Protocol):
    """Something that only a leader does. It runs in a thread of its own, so starting may block and may raise."""

    name: str

    @property
    def hangs(self) -> bool:
        """Whether it has been at one thing for longer than that may take; the leader then hands on."""
        ...

    def start(self, tenure: "Tenure") -> None:
        """Begin. Whatever lasts asks `tenure.holds()` before every act, and hands `tenure.term` on with it."""
        ...

    def stop(self) -> None:
        """End it, also when it was only half started. Once this returns nothing of it acts; raising ends the process.

        A write to the records that waits its turn may still come, before the next leader's first or not at all: it is fenced by
        the term.
        """
        ...


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
        self._begun: list[Duty] = []
        self._starting_since: float | None = None
        self.outranked_by = 0
        """The later term that refused this one's writes, if one did."""

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

    def fail(self, why: str, *, outranked_by: int = 0) -> None:
        """A duty cannot be carried out here: leadership is to be handed on. Returns at once."""
        if not self._failed:
            log.error("a duty failed: handing leadership on", term=self.term, why=why)
        self._failed, self.outranked_by = True, max(self.outranked_by, outranked_by)

    @property
    def standing(self) -> Standing:
        self._look_for_hangs()
        if self._failed:
            return Standing.FAILED
        return Standing.LEADS if self.holds() else Standing.OVER

    def end(self) -> None:
        """Stop the duties. Once this returns none of them acts; they stop within the bound or the process ends."""
        self._ending.set()
        if not self._clock.wait(self._ended, self._bounds.duty_stop_timeout_s):
            log.critical("a duty does not stop: ending this process", term=self.term)
            self._end_process()

    def _look_for_hangs(self) -> None:
        since, bound_s = self._starting_since, self._bounds.duty_start_timeout_s
        if since is not None and self._clock.monotonic() - since > bound_s:
            self.fail(f"{self._begun[-1].name} did not start within {bound_s:g} s")
        for duty in self._begun:
            if duty.hangs:
                self.fail(f"{duty.name} hangs")

    def _carry_out(self) -> None:
        try:
            for duty in self._duties:
                if not self.holds():
                    break
                self._begun.append(duty)
                self._starting_since = self._clock.monotonic()
                duty.start(self)
                self._starting_since = None
                log.info("duty started", duty=duty.name, term=self.term, at=self._clock.monotonic(), until=self._until)
        except Problem as problem:
            self.fail(f"{self._begun[-1].name} did not start: {problem.detail}", outranked_by=problem.context.get("term", 0))
            self._ending.set()
        except Exception:
            log.exception("a duty did not start", duty=self._begun[-1].name, term=self.term)
            self.fail(f"{self._begun[-1].name} did not start")
            self._ending.set()
        self._ending.wait()
        try:
            for duty in reversed(self._begun):
                duty.stop()
                log.info("duty stopped", duty=duty.name, term=self.term, at=self._clock.monotonic(), until=self._until)
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
