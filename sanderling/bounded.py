"""Bounds for a library that offers none of its own: on how long it may take, and on how much it does at once."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from sanderling.clock import SystemClock

T = TypeVar("T")


class Late(Exception):
    """Nothing came of it in time."""


class Bounded:
    """Runs an act in a daemon thread. An act that does not end in time is left behind; at most `most` are under way."""

    def __init__(self, most: int) -> None:
        self._room = threading.BoundedSemaphore(most)
        self._clock = SystemClock()

    def run(self, act: Callable[[], T], *, name: str, within_s: float) -> T:
        """What the act returned or raised; `Late` when neither happened in time. It may still take effect later."""
        deadline = self._clock.monotonic() + within_s
        if not self._room.acquire(timeout=within_s):
            raise Late
        outcome: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put((act(),))
            except BaseException as error:  # noqa: BLE001  handed to the waiting thread, whatever it is
                outcome.put(error)
            finally:
                self._room.release()

        threading.Thread(target=work, name=name, daemon=True).start()
        try:
            result = outcome.get(timeout=max(0.0, deadline - self._clock.monotonic()))
        except queue.Empty:
            raise Late from None
        if isinstance(result, BaseException):
            raise result
        return result[0]
