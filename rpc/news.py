"""News: "there is a new event", told to every process that wants to know.

Best effort: whoever listens also looks by itself now and then. News carries nothing; the events are in the records.
"""

import contextlib
import threading
import uuid
from collections.abc import Callable

import structlog
from kombu.connection import Connection
from kombu.entity import Exchange, Queue

from rpc import topics
from rpc.bus import Serving
from rpc.connections import connection, failures
from sanderling import settings
from sanderling.clock import SystemClock

log = structlog.get_logger(__name__)

_EXCHANGE = Exchange(topics.NEWS, type="topic", durable=True)
_KEY = "event"
_RETRY_S = 1.0
_NOTHING_S = 0.01


def connect(configured: settings.Settings) -> "News":
    """The news of the broker that the settings name; it is reached for when there is something to tell."""
    return News(configured.bus)


class News:
    """Thread-safe. One thread tells; what is told while it is at work, or rests for news_gap_s, becomes one message."""

    def __init__(self, bus: settings.Bus) -> None:
        self._bus = bus
        self._clock = SystemClock()
        self._untold = threading.Event()
        self._closing = threading.Event()
        self._teller = threading.Thread(target=self._tell_on, name="news-teller", daemon=True)
        self._teller.start()

    def tell(self) -> None:
        """Let every listener look. Returns at once and never fails; while the broker is away news waits, as one."""
        self._untold.set()

    def listen(self, on_news: Callable[[], None]) -> Serving:
        """Call `on_news` for every message (many may have become one) and after every time the broker was found (again)."""
        return _Listener(self._bus, on_news)

    def close(self) -> None:
        """Stop telling, within `stop_timeout_s`; news not told yet is dropped."""
        self._closing.set()
        self._untold.set()
        self._teller.join(self._bus.stop_timeout_s)

    def _tell_on(self) -> None:
        while not self._closing.is_set():
            self._untold.wait()
            with connection(self._bus, name="sanderling news") as broker:
                try:
                    broker.connect()
                    self._tell_through(broker)
                except failures(broker) as error:
                    log.warning("news waits for the broker", error=str(error))
                    self._untold.set()
                    self._clock.wait(self._closing, _RETRY_S)

    def _tell_through(self, broker: Connection) -> None:
        producer = broker.Producer(exchange=_EXCHANGE)
        while not self._closing.is_set():
            if self._untold.wait(self._bus.heartbeat_s / 4):
                self._untold.clear()
                producer.publish({}, routing_key=_KEY, declare=[_EXCHANGE], delivery_mode=1)
                self._clock.wait(self._closing, min(self._bus.news_gap_s, self._bus.heartbeat_s / 4))
            else:
                with contextlib.suppress(TimeoutError):
                    broker.drain_events(timeout=_NOTHING_S)  # the broker's heartbeats count only once they are read
                broker.heartbeat_check()


class _Listener:
    """A queue of this process's own, which goes with its connection. The news in it is one: it holds a single message."""

    def __init__(self, bus: settings.Bus, on_news: Callable[[], None]) -> None:
        self._bus = bus
        self._on_news = on_news
        self._clock = SystemClock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen_on, name="news-listener", daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        self._clock.wait(self._ready, bus.send_timeout_s)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self._bus.stop_timeout_s)

    def _listen_on(self) -> None:
        while not self._stopping.is_set():
            with connection(self._bus, name="sanderling news") as broker:
                try:
                    self._listen_through(broker)
                except failures(broker) as error:
                    log.warning("news not heard", error=str(error))
                    self._clock.wait(self._stopping, _RETRY_S)

    def _listen_through(self, broker: Connection) -> None:
        broker.connect()
        name = f"{topics.NEWS}.{uuid.uuid4().hex}"
        queue = Queue(name, _EXCHANGE, _KEY, durable=False, exclusive=True, auto_delete=True, max_length=1)
        with broker.Consumer(queue, callbacks=[lambda _body, _message: self._heard()], no_ack=True):
            self._ready.set()
            self._heard()
            while not self._stopping.is_set():
                try:
                    broker.drain_events(timeout=min(0.5, self._bus.heartbeat_s / 4))
                except TimeoutError:
                    broker.heartbeat_check()

    def _heard(self) -> None:
        try:
            self._on_news()
        except Exception:
            log.exception("listener of news failed")
