"""What oslo.messaging's servers run their handlers in, with a bound of ours."""

import threading
from collections.abc import Callable
from typing import Any


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
