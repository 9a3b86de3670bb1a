"""Time as an argument: what waits is handed a clock, so that a test of an hour takes no time."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """`monotonic` never jumps and decides every deadline; `wall` is for people and records, and decides only
    what it cannot make unsafe: whether a token or a signed command still holds.
    """

    def monotonic(self) -> float:
        """Seconds since an arbitrary point on this host (CLOCK_MONOTONIC)."""
        ...

    def wall(self) -> datetime:
        """The time of day, with its zone (UTC)."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set or the time has passed; True if it is set."""
        ...


class SystemClock:
    """The host's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(max(0.0, timeout_s))


class ManualClock:
    """A clock that a test advances; waiting advances it, so nothing takes real time."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0

    def monotonic(self) -> float:
        return self._elapsed

    def wall(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if not event.is_set():
            self.advance(max(0.0, timeout_s))
        return event.is_set()

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "a monotonic clock does not go back"
        self._elapsed += seconds
