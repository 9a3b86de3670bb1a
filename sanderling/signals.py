"""The signals that a process waits for."""

import signal
import socket
import threading
from collections.abc import Callable, Mapping


class Told(threading.Event):
    """Set once one of these signals has come; `number` is the one that came first. Made in the main thread.

    `calls` are signals that end no wait, and what is to be done at each; it is done in a thread of this event's own.

    Python runs handlers in the main thread alone, and only when that next runs Python code: a signal that comes between its last
    such moment and its sleep in a wait is not heard before another one comes. So nothing is left to a handler. The interpreter
    writes the number of each signal to a socket as it arrives (`signal.set_wakeup_fd`), and a thread reads it there.
    """

    def __init__(self, *numbers: signal.Signals, calls: Mapping[signal.Signals, Callable[[], None]] | None = None) -> None:
        super().__init__()
        self.number: int | None = None
        self._ends, self._calls = frozenset(numbers), dict(calls or {})
        self._heard, self._arriving = socket.socketpair()
        self._arriving.setblocking(False)
        signal.set_wakeup_fd(self._arriving.fileno(), warn_on_full_buffer=False)
        for number in (*numbers, *self._calls):
            signal.signal(number, _no_more)
        threading.Thread(target=self._follow, name="signals", daemon=True).start()

    def _follow(self) -> None:
        while True:
            for number in self._heard.recv(64):
                if number in self._ends and self.number is None:
                    self.number = number
                    self.set()
                if number in self._calls:
                    self._calls[signal.Signals(number)]()


def _no_more(*_: object) -> None:
    """A handler, so that the signal is neither ignored nor the end of the process."""
