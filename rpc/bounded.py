"""Bounds for a library that offers none of its own: on how long it may take, and on how much it does at once."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from sanderling.clock import SystemClock
from sanderling.errors import Unavailable

T = TypeVar("T")


class Bounded:
    """Runs an act in a daemon thread. An act that does not end in time is left behind; at most `most` are under way."""

    def __init__(self, most: int) -> None:
        self._room = threading.BoundedSemaphore(most)
        self._clock = SystemClock()

    def run(self, act: Callable[[], T], *, within_s: float) -> T:
        """What the act returned or raised; `Unavailable` when neither happened in time. It may still take effect later."""
        deadline = self._clock.monotonic() + within_s
        late = Unavailable(f"the message bus did not answer within {within_s:g} s", dependency="bus")
        if not self._room.acquire(timeout=within_s):
            raise late
        outcome: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put((act(),))
            except BaseException as error:  # noqa: BLE001  handed to the waiting thread, whatever it is
                outcome.put(error)
            finally:
                self._room.release()

        threading.Thread(target=work, name="bus-send", daemon=True).start()
        try:
            result = outcome.get(timeout=max(0.0, deadline - self._clock.monotonic()))
        except queue.Empty:
            raise late from None
        if isinstance(result, BaseException):
            raise result
        return result[0]


class Handlers:
    """The executor that oslo.messaging's servers work with: at most `max_workers` handlers at once, in daemon threads.

    Its own queues without bound, and at exit it joins its threads, of which one may be waiting for a broker without end.
    """

    def __init__(self, max_workers: int) -> None:
        self._most = max_workers
        self._room = threading.BoundedSemaphore(max_workers)

    @property
    def saturated(self) -> bool:
        free = self._room.acquire(blocking=False)
        if free:
            self._room.release()
        return not free

    def submit(self, act: Callable[..., None], *args: Any) -> None:
        """Begin when a handler is free; until then the thread that reads from the broker waits here."""
        self._room.acquire()
        threading.Thread(target=self._work, args=(act, args), name="bus-handler", daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:
        """Wait until no handler is at work. No more are begun: the server has stopped reading."""
        for _ in range(self._most if wait else 0):
            self._room.acquire()

    def _work(self, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            act(*args)
        finally:
            self._room.release()
