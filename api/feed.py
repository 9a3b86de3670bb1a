"""The history as it happens: one thread looks for new events and wakes this process's event streams, which read the table."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import structlog
from starlette.concurrency import run_in_threadpool

from rpc.bus import Serving
from rpc.news import News
from sanderling.clock import Clock
from sanderling.errors import Exhausted, Problem, Unavailable
from sanderling.records import events
from sanderling.records.database import Records
from sanderling.records.events import Event
from sanderling.settings import Api

log = structlog.get_logger(__name__)
Wake = Callable[[], None]
Read = Callable[[int], list[Event]]


class Feed:
    """News from other processes wakes it, and so does the interval: news may be lost, the table is not."""

    def __init__(self, options: Api, *, records: Records, news: News, clock: Clock) -> None:
        self._options, self._records, self._news, self._clock = options, records, news, clock
        self._look, self._stopping = threading.Event(), threading.Event()
        self._lock, self._wakes = threading.Lock(), set[Wake]()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._listening: Serving | None = None
        self._seen = 0

    @property
    def subscribers(self) -> int:
        return len(self._wakes)

    def start(self) -> None:
        self._listening = self._news.listen(self.look)
        self._thread.start()

    def look(self) -> None:
        """There may be a new event; returns at once."""
        self._look.set()

    def close_streams(self) -> None:
        """End every stream, so that the server need not wait for readers that stay for ever."""
        self._stopping.set()
        self._look.set()
        self._wake_all()

    def stop(self) -> None:
        self.close_streams()
        if self._listening is not None:
            self._listening.stop()
        self._thread.join(timeout=self._options.stop_timeout_s)

    def admit(self) -> None:
        """`Exhausted` when as many streams are open as this process bears."""
        if self.subscribers >= self._options.subscribers_max:
            raise Exhausted(f"{self._options.subscribers_max} event streams are open; close one, or read pages with ?after=")

    async def follow(self, after: int, read: Read) -> AsyncIterator[Event]:
        """Events after that id, for as long as the process runs."""
        changed = asyncio.Event()
        with self._subscribed(asyncio.get_running_loop(), changed):
            while not self._stopping.is_set():
                changed.clear()
                found = await self._found(read, after)
                for event in found:
                    yield event
                    after = event.id
                if not found and not self._stopping.is_set():
                    await changed.wait()

    async def _found(self, read: Read, after: int) -> list[Event]:
        """None while the records cannot be read: the thread that looks wakes everybody once they can be, at its next look."""
        try:
            return await run_in_threadpool(read, after)
        except Unavailable:
            self._seen = -1
            return []

    @contextlib.contextmanager
    def _subscribed(self, loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> Iterator[None]:
        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(changed.set)

        with self._lock:
            self._wakes.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wakes.discard(wake)

    def _wake_all(self) -> None:
        with self._lock:
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.subscribers:
                    with self._records.read() as session:
                        newest = events.newest(session)
                    if newest != self._seen:
                        self._seen = newest
                        self._wake_all()
            except Problem as problem:
                self._seen = -1
                log.warning("cannot look for events", reason=problem.detail)
            except Exception:
                log.exception("looking for events failed")
            self._clock.wait(self._look, self._options.events_interval_s)
            self._look.clear()
