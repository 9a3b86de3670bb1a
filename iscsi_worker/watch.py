"""The latest view of the coordination store: one blocking query for the whole process, and a read at once when asked."""

import threading
from collections.abc import Callable

import structlog

from iscsi_worker.view import View, parse
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.errors import Unavailable
from sanderling.settings import Settings

log = structlog.get_logger(__name__)


class Watch:
    """Keeps the newest view there has been; calls `on_change` after each one that differs."""

    def __init__(self, settings: Settings, coordination: Coordination, *, on_change: Callable[[], None], clock: Clock) -> None:
        self._settings = settings
        self._coordination = coordination
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None
        self._accepted_at = 0.0

    @property
    def latest(self) -> View | None:
        """The newest view so far; None before the first."""
        return self._view

    def fresh(self) -> View:
        """A view that holds everything that was written before this call; `Unavailable` when the store does not answer."""
        began = self._clock.monotonic()
        return self._accept(parse(self._coordination.list(""), self._view), began)

    def follow(self, stopping: threading.Event) -> None:
        """Watch until told to stop; an unreachable store is asked again after a pause."""
        while not stopping.is_set():
            known = self._view
            began = self._clock.monotonic()
            try:
                listing = (
                    self._coordination.watch("", index=known.index, timeout_s=self._settings.coordination.watch_timeout_s)
                    if known
                    else self._coordination.list("")
                )
            except Unavailable as problem:
                log.warning("cannot watch", problem=problem.detail)
                self._clock.wait(stopping, self._settings.iscsi_worker.renew_interval_s)
                continue
            except Exception:
                log.exception("watching failed")
                self._clock.wait(stopping, self._settings.iscsi_worker.renew_interval_s)
                continue
            after = self._accept(parse(listing, known), began)
            if known is None or after.index != known.index:
                self._on_change()

    def _accept(self, view: View, began: float) -> View:
        """Take it unless it may be older than the one we have: its call began earlier and its index is lower.

        An index alone does not tell: it goes back when the store was made anew.
        """
        with self._lock:
            if self._view is None or view.index >= self._view.index or began >= self._accepted_at:
                self._view, self._accepted_at = view, self._clock.monotonic()
            return self._view
