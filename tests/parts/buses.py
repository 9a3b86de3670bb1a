"""Buses for tests: settings with short bounds, what was parked, and the wait for what a handler got."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import rpc.oslo
from cli.lab.parts.daemons import waited
from rpc.bus import Bus
from rpc.connections import connection
from rpc.parking import queue
from sanderling import settings


def configured(url: str, **changes: Any) -> settings.Settings:
    """Settings of a bus with bounds that suit a test."""
    quick = {"probe_interval_s": 0.3, "requeue_delay_s": 0.1, "heartbeat_s": 4, "stop_timeout_s": 8.0}
    return replace(settings.Settings(), bus=settings.Bus(url=url, **(quick | changes)))


@dataclass
class Buses:
    """One broker and the buses of a test, which are closed at its end."""

    url: str
    made: list[Bus] = field(default_factory=list)

    def connect(self, **changes: Any) -> Bus:
        bus = rpc.oslo.connect(configured(self.url, **changes))
        self.made.append(bus)
        return bus

    def parked(self, topic: str) -> list[dict[str, Any]]:
        """What was parked of one topic since the last look; that of other topics is thrown away."""
        bus = configured(self.url).bus
        with connection(bus, name="test") as broker:
            where, found = queue(bus)(broker.default_channel), []
            where.declare()
            while message := where.get(no_ack=True):
                found.append(message.payload)
        return [record for record in found if record["topic"] == topic]

    def close(self) -> None:
        with ThreadPoolExecutor(max(1, len(self.made))) as pool:
            list(pool.map(lambda bus: bus.close(), self.made))


class Got:
    """A handler that keeps what it got and returns `reply`."""

    def __init__(self, reply: Any = None) -> None:
        self._reply = reply
        self._lock = threading.Lock()
        self.messages: list[Any] = []

    def __call__(self, message: Any) -> Any:
        with self._lock:
            self.messages.append(message)
        return self._reply

    def wait(self, count: int, *, within_s: float = 20.0) -> list[Any]:
        waited(lambda: len(self.messages) >= count, within_s=within_s, what=f"{count} messages (got {len(self.messages)})")
        return self.messages
