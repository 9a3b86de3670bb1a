"""The latest view of the coordination store: one blocking query for the whole process, and single keys at once when asked."""

import threading
from collections.abc import Callable, Collection
from typing import Final

import structlog

from iscsi_worker.view import View, parse
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination, Entry
from sanderling.errors import Unavailable
from sanderling.settings import Settings

log = structlog.get_logger(__name__)

ATTENDED_MAX: Final = 32
ATTENTION_TURN_S: Final = 1.0


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
        self._looked: dict[str, tuple[Entry, float]] = {}  # single keys, and when they were asked for
        self._attended: dict[str, float] = {}
        self._stopped = threading.Event()

    @property
    def latest(self) -> View | None:
        """The newest view so far; None before the first."""
        return self._view

    def fresh(self) -> View:
        """A view that holds everything that was written before this call; `Unavailable` when the store does not answer."""
        began = self._clock.monotonic()
        return self._accept(parse(self._coordination.list(""), self._view), began)

    def look(self, key: str) -> View:
        """A view that holds what was written to this key before this call; `Unavailable` when the store does not answer."""
        known = self._view
        if known is None:
            return self.fresh()
        began = self._clock.monotonic()
        entry = self._coordination.get(key)
        with self._lock:
            assert self._view is not None, "a view is never forgotten"
            if entry is not None:
                self._looked[key] = entry, began
            self._view = _with(self._view, key, entry)
            return self._view

    def attend(self, key: str, *, for_s: float) -> None:
        """Follow this one key for a while, so that its changes are seen at once however many others there are.

        What is more than `ATTENDED_MAX` at a time is left to the watch of everything.
        """
        until = self._clock.monotonic() + for_s
        with self._lock:
            is_new = key not in self._attended
            if is_new and len(self._attended) >= ATTENDED_MAX:
                return
            self._attended[key] = until
        if is_new:
            threading.Thread(target=self._attend, args=(key,), name=f"attend {key}", daemon=True).start()

    def neglect(self, *, but: Collection[str]) -> None:
        """Follow no single key any more but these, so that others can be; within `ATTENTION_TURN_S`."""
        with self._lock:
            self._attended = {key: until if key in but else 0.0 for key, until in self._attended.items()}

    def stop(self) -> None:
        """Follow no single key any more, within `ATTENTION_TURN_S`."""
        self._stopped.set()

    def _attend(self, key: str) -> None:
        index = 0
        while not self._stopped.is_set() and (left_s := self._attention_left(key)) > 0:
            try:
                listing = self._coordination.watch(key, index=index, timeout_s=min(left_s, ATTENTION_TURN_S))
                if listing.index != index:
                    self.look(key)
                    self._on_change()
                index = listing.index
            except Unavailable as problem:
                log.warning("cannot follow", key=key, problem=problem.detail)
                self._clock.wait(self._stopped, self._settings.iscsi_worker.take_retry_s)
            except Exception:
                log.exception("following failed", key=key)
                self._clock.wait(self._stopped, self._settings.iscsi_worker.take_retry_s)

    def _attention_left(self, key: str) -> float:
        with self._lock:
            left_s = self._attended[key] - self._clock.monotonic()
            if left_s <= 0:
                del self._attended[key]
            return left_s

    def follow(self, stopping: threading.Event) -> None:
        """Watch everything until told to stop; an unreachable store is asked again after a pause.

        Each change means reading all keys: after it the watch rests for as long as there are many of them.
        """
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
                own = self._settings.iscsi_worker
                rest_s = min(own.watch_rest_most_s, len(listing.entries) * own.watch_rest_per_key_s)
                self._clock.wait(stopping, rest_s)

    def _accept(self, view: View, began: float) -> View:
        """Take it unless it may be older than the one we have: its call began earlier and its index is lower.

        An index alone does not tell: it goes back when the store was made anew.
        """
        with self._lock:
            if self._view is None or view.index >= self._view.index or began >= self._accepted_at:
                self._looked = {key: (entry, asked) for key, (entry, asked) in self._looked.items() if asked > began}
                for key, (entry, _) in self._looked.items():
                    view = _with(view, key, entry)
                self._view, self._accepted_at = view, self._clock.monotonic()
            return self._view


def _with(view: View, key: str, entry: Entry | None) -> View:
    """The view with the key as in this entry, unless the view has a newer one."""
    known = view.read.get(key)
    is_older = known is not None and entry is not None and known[0].modify_index > entry.modify_index
    return view if is_older else view.changed(key, entry)
