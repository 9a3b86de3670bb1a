"""The bus on oslo.messaging: the same code for rabbit:// and, within one process, fake://.

oslo.messaging waits for a broker without end in several places that no option bounds (a first call, a listener's start and
stop), so whatever may wait runs in a daemon thread and is waited for no longer than the settings say.
"""

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import oslo_messaging
import structlog
from oslo_config import cfg
from prometheus_client import Counter

from rpc import topics
from rpc.bus import Bus, Endpoint, Handler, Serving
from rpc.connections import transport_url
from rpc.dispatch import Dispatch
from rpc.listening import Listening, ReportServer, RpcServer
from rpc.messages import Message, Ping, Pong
from rpc.parking import parking
from sanderling import settings, tls
from sanderling.bounded import Bounded, Late
from sanderling.clock import SystemClock
from sanderling.errors import Problem, TooLarge, Unavailable

log = structlog.get_logger(__name__)

UNSENT = Counter("sanderling_bus_unsent", "Messages that the broker did not take in time")
_CALLS_MOST = 32  # sends and calls under way at once; one more waits, within its own bound


def connect(configured: settings.Settings) -> Bus:
    """The bus that the settings name. It reaches for the broker with the first message, not here; what can be told of its
    certificates before is told now, as `SettingsRefused`.
    """
    bus = configured.bus
    tls.check("bus", ca_file=bus.ca_file, cert_file=bus.cert_file, key_file=bus.key_file, now=SystemClock().wall())
    return OsloBus(configured.bus, publisher=configured.sanderling.node)


class OsloBus:
    """Thread-safe; one per process, made after any fork. Senders and servers have transports of their own, so that a
    connection that waits for the broker without end on behalf of a server never holds up a sender.
    """

    def __init__(self, bus: settings.Bus, *, publisher: str) -> None:
        self._bus = bus
        self._publisher = publisher
        self._sending = oslo_messaging.get_rpc_transport(cfg.CONF, transport_url(bus))
        self._serving = oslo_messaging.get_rpc_transport(cfg.CONF, transport_url(bus))
        self._reports = oslo_messaging.get_notification_transport(cfg.CONF, transport_url(bus))
        self._bounded = Bounded(_CALLS_MOST)
        self._park = parking(bus)
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._listening: list[Listening] = []

    def cast(self, topic: str, method: str, message: Message, *, server: str | None = None) -> None:
        self._send(topic, method, message, server=server)

    def fanout(self, topic: str, method: str, message: Message) -> None:
        self._send(topic, method, message, fanout=True)

    def call(self, topic: str, method: str, message: Message, *, server: str | None = None, timeout_s: float) -> dict[str, Any]:
        client, name = self._client(topic, method, server=server, timeout=timeout_s)
        payload = self._payload(message)
        envelope = self._within(timeout_s, f"{method} to {topic}", lambda: client.call({}, name, message=payload))
        if isinstance(envelope, dict) and isinstance(envelope.get("problem"), dict):
            raise Problem.from_wire(envelope["problem"])
        if not isinstance(envelope, dict) or not isinstance(envelope.get("ok"), dict):
            raise Unavailable(f"{topic} answered {method} with something that is no envelope", dependency="bus")
        return dict(envelope["ok"])

    def notify(self, event_type: str, message: Message) -> None:
        report = {
            "message_id": str(uuid.uuid4()),
            "publisher_id": self._publisher,
            "timestamp": self._clock.wall().isoformat(),
            "priority": "INFO",
            "event_type": event_type,
            "payload": self._payload(message),
        }
        target = oslo_messaging.Target(exchange=topics.EXCHANGE, topic=f"{topics.REPORTS}.info")
        # not through oslo's Notifier: it logs a send that failed and returns as if it had not
        send = self._reports._send_notification
        self._within(
            self._bus.send_timeout_s, event_type, lambda: send(target, {}, report, version=2.0, retry=self._bus.send_retries)
        )

    def serve(self, topic: str, server: str, endpoints: Sequence[Endpoint]) -> Serving:
        ping = Endpoint("bus", {"ping": (Ping, lambda _: Pong(server=server))})
        methods = {f"{each.namespace}.{name}": method for each in (ping, *endpoints) for name, method in each.methods.items()}
        dispatch = self._dispatch(topic, methods)
        target = oslo_messaging.Target(exchange=topics.EXCHANGE, topic=topic, server=server)
        return self._kept(
            f"{topic}.{server}",
            lambda: RpcServer(self._serving, target, dispatch, handlers=self._bus.handlers),
            ask=lambda: self.cast(topic, "bus.ping", Ping(), server=server),
        )

    def listen(self, handlers: Mapping[str, tuple[type[Message], Handler]]) -> Serving:
        dispatch = self._dispatch(topics.REPORTS, handlers)
        target = oslo_messaging.Target(exchange=topics.EXCHANGE, topic=topics.REPORTS)
        pause_s, handlers_most = self._bus.requeue_delay_s, self._bus.handlers
        return self._kept(
            topics.REPORTS, lambda: ReportServer(self._reports, target, dispatch, handlers=handlers_most, pause_s=pause_s)
        )

    def close(self) -> None:
        """Stop what listens and let go of the broker, within twice `stop_timeout_s`."""
        with self._lock:
            listening, self._listening = self._listening, []
        self._all([each.stop for each in listening])
        self._all([transport.cleanup for transport in (self._sending, self._serving, self._reports)])

    def _all(self, acts: Sequence[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=act, daemon=True) for act in acts]
        for each in threads:
            each.start()
        deadline = self._clock.monotonic() + self._bus.stop_timeout_s
        for each in threads:
            each.join(max(0.0, deadline - self._clock.monotonic()))

    def _dispatch(self, topic: str, methods: Mapping[str, tuple[type[Message], Handler]]) -> Dispatch:
        return Dispatch(topic, methods, park=self._park, payload_max_bytes=self._bus.payload_max_bytes)

    def _kept(self, name: str, build: Callable[[], Any], *, ask: Callable[[], None] | None = None) -> Serving:
        listening = Listening(name, build, bus=self._bus, ask=ask)
        with self._lock:
            self._listening.append(listening)
        listening.start()
        return listening

    def _client(self, topic: str, method: str, *, timeout: float | None = None, **where: Any) -> tuple[Any, str]:
        namespace, _, name = method.rpartition(".")
        target = oslo_messaging.Target(exchange=topics.EXCHANGE, topic=topic, namespace=namespace, version="1.0", **where)
        serializer = oslo_messaging.JsonPayloadSerializer()
        retry = self._bus.send_retries
        return oslo_messaging.get_rpc_client(self._sending, target, timeout=timeout, serializer=serializer, retry=retry), name

    def _send(self, topic: str, method: str, message: Message, **where: Any) -> None:
        client, name = self._client(topic, method, **where)
        payload = self._payload(message)
        self._within(self._bus.send_timeout_s, f"{method} to {topic}", lambda: client.cast({}, name, message=payload))

    def _payload(self, message: Message) -> dict[str, Any]:
        size = len(message.model_dump_json())
        if size > self._bus.payload_max_bytes:
            raise TooLarge(f"the message has {size} bytes; {self._bus.payload_max_bytes} are allowed")
        return message.model_dump(mode="json")

    def _within(self, timeout_s: float, what: str, act: Callable[[], Any]) -> Any:
        try:
            return self._bounded.run(act, name="bus-send", within_s=timeout_s)
        except Late:
            UNSENT.inc()
            raise Unavailable(f"the message bus did not answer within {timeout_s:g} s", dependency="bus") from None
        except Exception as error:  # what oslo.messaging, kombu, amqp and ssl raise when a broker is away has no common base
            UNSENT.inc()
            log.debug("not sent", what=what, error=repr(error))
            raise Unavailable(f"the message bus did not take {what}", dependency="bus") from error
