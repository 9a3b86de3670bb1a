"""The signals that a process waits for."""

import signal
import socket
import threading
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger(__name__)


class Told(threading.Event):
    """Set once one of these signals has come; `number` is the one that came first. Made in the main thread.

    `calls` are signals that end no wait, and what is to be done at each: something brief, in a thread of this event's own. A
    process has one such event: a second one would take over what the interpreter tells of.

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
                    try:
                        self._calls[signal.Signals(number)]()
                    except Exception:  # the next signal may be the one to end
                        log.exception("a signal was not carried out", number=number)


def _no_more(*_: object) -> None:
    """A handler, so that the signal is neither ignored nor the end of the process."""
