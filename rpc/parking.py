"""Poison: messages that no handler could take, counted and kept once in a bounded queue for people to look at."""

import json
from collections.abc import Callable
from typing import Any

import structlog
from kombu.entity import Queue
from prometheus_client import Counter

from rpc import topics
from rpc.connections import connection, failures
from sanderling.clock import SystemClock
from sanderling.settings import Bus

log = structlog.get_logger(__name__)

Park = Callable[[str, str, Any, str, str], None]

POISON = Counter("sanderling_bus_poison", "Messages that were refused or whose handler failed", ["topic", "reason"])


def queue(bus: Bus) -> Queue:
    """The parking queue: durable, and when it is full the oldest goes."""
    arguments = {"x-queue-type": "quorum", "x-max-length": bus.parked_max, "x-overflow": "drop-head"}
    return Queue(topics.PARKED, routing_key=topics.PARKED, durable=True, queue_arguments=arguments)


def parking(bus: Bus) -> Park:
    """What takes poison (topic, method, payload, reason, detail): counts it, logs it, parks it once, and never raises."""

    def park(topic: str, method: str, payload: Any, reason: str, detail: str) -> None:
        POISON.labels(topic, reason).inc()
        log.error("message parked", topic=topic, method=method, reason=reason, detail=detail)
        record = {"topic": topic, "method": method, "reason": reason, "detail": detail}
        record |= {"payload": _cut(payload, bus.payload_max_bytes), "at": SystemClock().wall().isoformat()}
        with connection(bus, name="sanderling parking") as broker:
            where = queue(bus)
            try:
                broker.connect()
                broker.Producer().publish(
                    record,
                    serializer="json",
                    delivery_mode=2,
                    routing_key=where.name,
                    declare=[where],
                )
            except failures(broker) as error:
                log.warning("message not parked", topic=topic, method=method, error=str(error))

    return park


def _cut(payload: Any, most: int) -> Any:
    """The payload, or the beginning of its text when it is too long or no JSON."""
    try:
        text = json.dumps(payload)
    except (TypeError, ValueError, RecursionError):
        return str(type(payload))
    return payload if len(text) <= most else text[:most]
