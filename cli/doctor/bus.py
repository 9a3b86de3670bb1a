"""RabbitMQ: that it can be reached, that the user may do what the processes do, and that nothing old stands in their way."""

import contextlib
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

from kombu.connection import Connection
from kombu.entity import Exchange, Queue

from cli.doctor.base import Check, Finding, Role, fail, ok
from rpc import topics
from rpc.connections import connection, failures
from sanderling.clock import Clock
from sanderling.settings import Settings

FIX: Final = "see that RabbitMQ runs and that [bus] url has the right host, user, password and virtual host"
RIGHTS: Final = "rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
SPEAKING: Final = frozenset({Role.API, Role.CONDUCTOR, Role.WORKER})
REFUSED, NOT_THERE, DIFFERS = 403, 404, 406  # AMQP's reply codes


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    if settings.bus.url.startswith("fake:"):
        return []
    broker, within_s = connection(settings.bus, name="sanderling doctor"), settings.bus.send_timeout_s
    return [Check("rabbitmq", lambda: look(broker, within_s=within_s), FIX, SPEAKING)]


def look(broker: Connection, *, within_s: float) -> Iterable[Finding]:
    """The broker's own words never leave here: they may repeat the address with its password."""
    with broker:
        try:
            broker.ensure_connection(max_retries=len(broker.alt) + 1, interval_start=0.1, interval_step=0.1, timeout=within_s)
        except failures(broker) as error:
            yield fail("rabbitmq", _why(error), FIX)
            return
        properties = getattr(broker.connection, "server_properties", {})
        yield ok("rabbitmq", f"version {properties.get('version', 'unknown')}")
        yield _round(broker)
        yield from _exchanges(broker)


def _why(error: Exception) -> str:
    if _code(error) == REFUSED:
        return "it does not let this user in, by this password, to this virtual host"
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
    return f"it cannot be reached: {said}"


def _code(error: Exception) -> int:
    return int(getattr(error, "reply_code", 0) or 0)


def _round(broker: Connection) -> Finding:
    """A quorum queue of one's own: made, written to, read, and taken away."""
    what, name = "rabbitmq rights", f"sanderling.doctor.{uuid.uuid4().hex}"
    queue = Queue(name, routing_key=name, durable=True, queue_arguments={"x-queue-type": "quorum"})
    try:
        with broker.channel() as channel:
            bound = queue(channel)
            bound.declare()
            try:
                broker.Producer(channel).publish({}, routing_key=name, serializer="json", delivery_mode=2)
                came = bound.get(no_ack=True) is not None
            finally:
                bound.delete()
    except failures(broker) as error:
        if _code(error) == REFUSED:
            return fail(what, "the user may not make, write and read queues", RIGHTS)
        fix = "use RabbitMQ 3.8 or newer with quorum queues, and see that enough of its nodes run"
        return fail(what, f"no quorum queue can be used ({type(error).__name__})", fix)
    said = "a quorum queue can be made, written to, read and deleted"
    return ok(what, said) if came else fail(what, "a message was taken and not handed out again", "look at RabbitMQ's log")


def _exchanges(broker: Connection) -> Iterable[Finding]:
    """What an old or foreign process declared in another way keeps every process of ours from using it."""
    for name in (topics.EXCHANGE, topics.NEWS):
        what = f"rabbitmq exchange {name}"
        try:
            _declare(broker, name, passive=True)
            _declare(broker, name, passive=False)  # only what is there: nothing is made here
        except failures(broker) as error:
            if _code(error) == NOT_THERE:
                yield ok(what, "not there yet; the first process that needs it makes it")
            elif _code(error) == DIFFERS:
                fix = (
                    "stop all processes, rabbitmq-plugins enable rabbitmq_management, rabbitmqadmin -V VHOST delete exchange "
                    f"name={name}, and start them again"
                )
                yield fail(what, "it is there, and not durable or of another type: nothing can be sent", fix)
            else:
                yield fail(what, f"it cannot be declared ({type(error).__name__})", RIGHTS)
        else:
            yield ok(what, "durable, type topic")


def _declare(broker: Connection, name: str, *, passive: bool) -> None:
    channel: Any = broker.channel()
    try:
        Exchange(name, type="topic", durable=True)(channel).declare(passive=passive)
    finally:
        with contextlib.suppress(*failures(broker)):
            channel.close()
