"""The latest view of the coordination store: what the journals of changes name is looked at, everything now and then.

Everything is read at the start, when a journal's session has ended or part of one was missed, and at intervals that grow with the
number of keys: moves of other gateways, which concern nobody else, are found out then.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

import structlog

from iscsi_worker.view import Read, View, parse
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination, Entry, Listing
from sanderling.coordination.changes import PREFIX, Changes
from sanderling.errors import Unavailable
from sanderling.garbage import give_back
from sanderling.settings import Settings

log = structlog.get_logger(__name__)

ATTENDED_MAX: Final = 32
ATTENTION_TURN_S: Final = 1.0
LOOKED_AT_MOST: Final = 16  # single keys; reading all of them at once is less work than more of these
GIVEN_BACK_FROM: Final = 10_000  # keys; reading fewer leaves little behind


class Watch:
    """Keeps the newest view there has been; calls `on_change` when there is something to see: with the keys, or None for any."""

    def __init__(
        self,
        settings: Settings,
        coordination: Coordination,
        *,
        on_change: Callable[[Collection[str] | None], None],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._coordination = coordination
        self._on_change = on_change
        self._clock = clock
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._view: View | None = None
        self._accepted_at = 0.0
        self._index = 0  # of the journals
        self._journals = View()  # nothing but them, as they were when last followed up
        self._all_read_at = 0.0
        self._looked: dict[str, tuple[Entry | None, float]] = {}  # single keys, and when they were asked for
        self._attended: dict[str, float] = {}
        self._stopped = threading.Event()

    @property
    def latest(self) -> View | None:
        """The newest view so far; None before the first."""
        return self._view

    def fresh(self) -> View:
        """A view that holds everything that was written before this call; `Unavailable` when the store does not answer."""
        return self._all_read(self._clock.monotonic())

    def _all_read(self, since: float) -> View:
        """A view for which everything began to be read after that moment. One reads at a time: two take the memory of both."""
        with self._alone():
            if self._view is not None and self._all_read_at > since:
                return self._view
            began = self._clock.monotonic()
            view = self._accept(parse(self._coordination.list(""), self._view), began)
            self._all_read_at = began
        if len(view.read) >= GIVEN_BACK_FROM:
            give_back()
        return view

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """`Unavailable` when another is still reading after renew_interval_s: who asks must not hang, and may ask again."""
        if not self._reading.acquire(timeout=self._settings.iscsi_worker.renew_interval_s):
            raise Unavailable("everything is being read already; ask again", dependency="consul")
        try:
            yield
        finally:
            self._reading.release()

    def look(self, *keys: str) -> View:
        """A view that holds what was written to these keys before this call; `Unavailable` when the store does not answer."""
        view = self._view or self._all_read(-math.inf)
        if len(keys) > LOOKED_AT_MOST:
            return self.fresh()
        for key in keys:
            began = self._clock.monotonic()
            entry = self._coordination.get(key)
            if entry is not None and _is_older(view, entry):
                return self.fresh()  # the store is another than it was, or somebody else was faster
            view = self._seen(key, entry, began)
        return view

    def saw(self, key: str, listing: Listing) -> None:
        """Take in what a watch of this key has just answered."""
        entry = next((entry for entry in listing.entries if entry.key == key), None)
        if entry is None or self._view is None:
            self.look(key)
        else:
            self._seen(key, entry, self._clock.monotonic())

    def _seen(self, key: str, entry: Entry | None, began: float) -> View:
        with self._lock:
            assert self._view is not None, "a view is never forgotten"
            if entry is None or not _is_older(self._view, entry):
                self._looked[key] = entry, began
                self._view = self._view.changed(key, entry)
            return self._view

    def attend(self, key: str, *, for_s: float) -> None:
        """Follow this one key for a while, so that its changes are seen at once however many others there are.

        What is more than `ATTENDED_MAX` at a time is found when everything is read again.
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
        known = self._view.read.get(key) if self._view else None
        index = known.modify_index if known else 0  # so that the first answer has news, too
        while not self._stopped.is_set() and (left_s := self._attention_left(key)) > 0:
            try:
                listing = self._coordination.watch(key, index=index, timeout_s=min(left_s, ATTENTION_TURN_S))
                if listing.index != index:
                    all_read_at = self._all_read_at
                    self.saw(key, listing)
                    self._tell([key], all_read_at)
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
        """Follow the journals until told to stop; an unreachable store is asked again after a pause.

        After a change it rests for as long as what was read is much.
        """
        own = self._settings.iscsi_worker
        while not stopping.is_set():
            try:
                read = self.turn()
            except Unavailable as problem:
                log.warning("cannot watch", problem=problem.detail)
                self._clock.wait(stopping, own.renew_interval_s)
                continue
            except Exception:
                log.exception("watching failed")
                self._clock.wait(stopping, own.renew_interval_s)
                continue
            if read:
                self._clock.wait(stopping, min(own.watch_rest_most_s, read * own.watch_rest_per_key_s))

    def turn(self) -> int:
        """Wait for a change, for as long as is set, and look at it; how many keys were read for it.

        The first time everything is read, which is no change: 0, as when nothing is new, where `on_change` was not called either.
        """
        known = self._view
        if known is None:
            self._all_read(-math.inf)
            self._on_change(None)
            return 0
        listing = self._coordination.watch(PREFIX, index=self._index, timeout_s=self._settings.coordination.watch_timeout_s)
        read = self._follow_up(self._view or known, listing)
        self._index = listing.index  # last: what could not be followed up is found again at once
        return read

    def _follow_up(self, known: View, listing: Listing) -> int:
        self._journals = parse(listing, self._journals)
        journals = self._journals.journals
        if journals == known.journals:
            return 0
        keys = _missed(known, journals)
        if keys is None or len(keys) > LOOKED_AT_MOST:
            return self._all_anew(known)
        all_read_at = self._all_read_at
        self.look(*keys)
        with self._lock:
            view = self._view or known
            for entry in listing.entries:
                if view.read.get(entry.key) != Read.of(entry):
                    view = view.changed(entry.key, entry)
            self._view = view
        self._tell(keys, all_read_at)
        return len(listing.entries) + len(keys)

    def _tell(self, keys: Collection[str], all_read_at: float) -> None:
        """Of these, if everything was not read again since `all_read_at` for their sake."""
        self._on_change(keys if self._all_read_at == all_read_at else None)

    def sweep(self) -> None:
        """Read everything again if it is time for that: what nobody told of is found so. To be called at every renewal."""
        known, own = self._view, self._settings.iscsi_worker
        if known is None:
            return  # whoever needs the first view reads it
        every_s = min(own.read_all_most_s, len(known.read) * own.read_all_per_key_s)
        if self._clock.monotonic() - self._all_read_at >= every_s:
            try:
                self._all_anew(known)
            except Unavailable as problem:
                log.warning("cannot read everything again", problem=problem.detail)

    def _all_anew(self, known: View) -> int:
        view = self.fresh()
        if view.index == known.index:
            return 0
        self._on_change(None)
        return len(view.read)

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
    return view if entry is not None and _is_older(view, entry) else view.changed(key, entry)


def _is_older(view: View, entry: Entry) -> bool:
    known = view.read.get(entry.key)
    return known is not None and known.modify_index > entry.modify_index


def _missed(known: View, journals: Mapping[str, tuple[Changes, str | None]]) -> list[str] | None:
    """The keys that journals name since then; None when that is not all: one has ended, or named more than it keeps."""
    keys: dict[str, None] = {}
    for key, (_, session) in known.journals.items():
        if key not in journals or (session is not None and journals[key][1] != session):
            return None
    for key, (changes, _) in journals.items():
        since = changes.after(known.journals[key][0] if key in known.journals else None)
        if since is None:
            return None
        keys |= dict.fromkeys(since)
    return list(keys)
