"""Noticing that this node is cut off from the image store while others reach it, so that those can serve what it cannot.

Each worker asks its image store again and again, and publishes whether that answers. A node whose own store has been silent for
a while, although a live peer says that its own answers, is cut off. While the store is away for all nobody says so, and nothing
moves; nor does it for a store that hangs for a moment.
"""

import math
import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from iscsi_worker.standing import Standing
from iscsi_worker.view import View
from sanderling.clock import Clock
from sanderling.errors import Problem
from sanderling.model.exports import Store
from sanderling.settings import Worker

log = structlog.get_logger(__name__)

FAILURES_LEAST = 2  # in a row: one may have been asked for before this process was stopped and resumed


class Touched(Protocol):
    """What is asked of the image store: as `Images.touch`."""

    def touch(self) -> None: ...


class Pulse:
    """When the image store answered. `ask` is called at each interval by a thread of its own, and may hang there."""

    def __init__(self, images: Touched, settings: Worker, *, clock: Clock) -> None:
        self._images, self._settings, self._clock = images, settings, clock
        self._lock = threading.Lock()  # guards all below
        self._asked_at: float | None = None  # what is under way
        self._known_at: float | None = None  # when the last answer was asked for: the store answered then, or later
        self._heard_at = clock.monotonic()
        self._steady_since = -math.inf  # since when every answer came, and soon
        self._failures = 0

    def ask(self) -> None:
        """Ask once."""
        began = self._clock.monotonic()
        with self._lock:
            self._asked_at = began
        try:
            self._images.touch()
        except Problem as problem:
            self._ended(None)
            log.warning("the image store does not answer", problem=problem.detail, in_a_row=self._failures)
        except BaseException:
            self._ended(None)
            raise
        else:
            self._ended(began)

    def _ended(self, began: float | None) -> None:
        with self._lock:
            self._asked_at = None
            if began is None:
                self._failures += 1
                return
            now, before = self._clock.monotonic(), began if self._known_at is None else self._known_at
            late = began - before > self._settings.store_believed_s or now - began > self._settings.store_ask_timeout_s / 2
            if self._failures or late:
                self._steady_since = now
            self._failures, self._known_at, self._heard_at = 0, began, now

    def heard(self) -> None:
        """The store has answered somebody else on this node: an export that is served is not cut off, whatever else is."""
        with self._lock:
            self._heard_at = self._clock.monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the store answered a moment ago."""
        with self._lock:
            known_at = self._known_at
        return known_at is not None and self._clock.monotonic() - known_at < self._settings.store_believed_s

    @property
    def is_steady(self) -> bool:
        """Whether it has done so for a while; who never was without an answer need not wait for that."""
        with self._lock:
            steady_s, failures = self._clock.monotonic() - self._steady_since, self._failures
        return not failures and self.is_fresh and steady_s >= self._settings.store_believed_s

    @property
    def is_silent(self) -> bool:
        """Whether it has not answered for so long that nobody should wait for it; to let its asker hang is no answer."""
        with self._lock:
            now, bound_s = self._clock.monotonic(), self._settings.store_silent_s
            failing = self._failures >= FAILURES_LEAST or (self._asked_at is not None and now - self._asked_at >= bound_s)
            return failing and now - self._heard_at >= bound_s


class ImageStore:
    """`turn` is called at each interval by a thread of its own; `said` may be read by any."""

    def __init__(
        self,
        node: str,
        settings: Worker,
        pulse: Pulse,
        *,
        view: Callable[[], View | None],
        certain: Callable[[], bool],
        on_change: Callable[[], None],
        clock: Clock,
    ) -> None:
        """`certain` tells whether what the view says of peers can be as old as a lease."""
        self._node, self._settings, self._pulse = node, settings, pulse
        self._view, self._certain, self._on_change, self._clock = view, certain, on_change, clock
        self._said = Store()
        self._standing = Standing()
        self._others_since: float | None = None  # since when peers have said, without a break, that their store answers

    @property
    def said(self) -> Store:
        """What this gateway publishes."""
        return self._said

    def turn(self) -> None:
        """Conclude, and tell the worker's loop when that changes anything."""
        before = self._standing
        self._standing = before.after(
            self._is_alone(),
            now=self._clock.monotonic(),
            hold_s=self._settings.store_hold_s,
            hold_most_s=self._settings.store_hold_most_s,
        )
        if self._standing.cut_off and not before.cut_off:
            log.error("cut off from the image store", stands_back_s=self._standing.hold_s)
        elif before.cut_off and not self._standing.cut_off:
            log.info("answered again by the image store")
        answers = self._pulse.is_fresh if self._said.answers else self._pulse.is_steady
        said = Store(answers=answers, cut_off=self._standing.cut_off)
        if said != self._said:
            self._said = said
            self._on_change()

    def _is_alone(self) -> bool:
        """Whether the store is silent here, and peers have said for long enough that it answers them.

        What a peer says is old when this node does not know its own place: then it counts anew from when it does.
        """
        now, view = self._clock.monotonic(), self._view()
        peers = view.gateways.items() if view is not None and self._certain() else ()
        if not any(name != self._node and peer.store.answers and not peer.withdrawing for name, peer in peers):
            self._others_since = None
            return False
        if self._others_since is None:
            self._others_since = now
        return self._pulse.is_silent and now - self._others_since >= self._settings.store_believed_s
