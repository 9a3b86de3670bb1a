"""The signals that a process waits for."""

import queue
import signal
import threading


class Told(threading.Event):
    """Set once one of these signals has come; `number` is the one that came first. Made in the main thread.

    A handler runs in the midst of whatever the main thread does, which may be its wait for this very event with the event's lock
    held: a handler that set it would wait for that lock for ever. So it leaves the signal in a queue whose `put` may be
    interrupted by itself (Python's documentation of `queue.SimpleQueue`), and a thread sets the event.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        super().__init__()
        self.number: int | None = None
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in numbers:
            signal.signal(number, lambda number, _frame: self._came.put(number))
        threading.Thread(target=self._follow, name="signals", daemon=True).start()

    def _follow(self) -> None:
        self.number = self._came.get()
        self.set()
