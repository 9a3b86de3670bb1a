"""Servers that stay: they start when the broker is there, and are built again when they have gone deaf."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from oslo_messaging import NotificationResult
from oslo_messaging.notify.listener import NotificationServer
from oslo_messaging.rpc.server import RPCServer
from prometheus_client import Counter

from rpc.dispatch import Dispatch
from rpc.handlers import Handlers
from sanderling.clock import SystemClock
from sanderling.errors import Unavailable
from sanderling.settings import Bus

log = structlog.get_logger(__name__)

DEAF = Counter("sanderling_bus_deaf", "Servers built again because they no longer heard their own messages", ["server"])


class RpcServer(RPCServer):  # type: ignore[misc]
    """Hands what arrives to `Dispatch`, with at most `handlers` at work.

    oslo.messaging acknowledges a message when it reads it; reading stops while all handlers are at work, so that the rest
    stays in the broker.
    """

    def __init__(self, transport: Any, target: Any, dispatch: Dispatch, *, handlers: int) -> None:
        super().__init__(transport, target, _RpcDispatcher(dispatch))
        self._handlers = handlers
        self._executor_cls = Handlers
        self.heard = threading.Event()

    @property
    def saturated(self) -> bool:
        """All handlers are at work, so nothing is being read."""
        return bool(self._work_executor.saturated)

    def begin(self) -> None:
        self.start(override_pool_size=self._handlers)

    def end(self) -> None:
        """Read no more, wait for the handlers at work, and let go of the broker."""
        self.stop()
        self.wait()

    def _on_incoming(self, incoming: Sequence[Any]) -> None:
        self.heard.set()
        super()._on_incoming(incoming)


class ReportServer(NotificationServer):  # type: ignore[misc]
    """Takes reports, at most `prefetch` of them unacknowledged; one that is to come again waits `pause_s` first."""

    saturated = False

    def __init__(self, transport: Any, target: Any, dispatch: Dispatch, *, handlers: int, pause_s: float) -> None:
        self._ended = threading.Event()
        super().__init__(transport, [target], _ReportDispatcher(dispatch, self._ended, pause_s), allow_requeue=True)
        self._handlers = handlers
        self._executor_cls = Handlers
        self.heard = threading.Event()

    def begin(self) -> None:
        self.start(override_pool_size=self._handlers)

    def end(self) -> None:
        """Read no more, wait for the handlers at work, and let go of the broker."""
        self._ended.set()
        self.stop()
        self.wait()


class _RpcDispatcher:
    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def dispatch(self, incoming: Any) -> Any:
        sent = incoming.message
        args = sent.get("args")
        payload = args.get("message") if isinstance(args, dict) else None
        return self._dispatch.answer(f"{sent.get('namespace')}.{sent.get('method')}", payload)


class _ReportDispatcher:
    supported_priorities = ("info",)

    def __init__(self, dispatch: Dispatch, ended: threading.Event, pause_s: float) -> None:
        self._dispatch = dispatch
        self._ended = ended
        self._pause_s = pause_s

    def dispatch(self, incoming: Any) -> Any:
        sent = incoming.message
        if self._dispatch.report(sent.get("event_type"), sent.get("payload")):
            return NotificationResult.HANDLED
        SystemClock().wait(self._ended, self._pause_s)
        return NotificationResult.REQUEUE


class Listening:
    """A server and the thread that keeps it. Every `probe_interval_s` it sends its server a message; when
    `probe_failures_max` in a row brought nothing, though the broker took them and a handler was free, it builds a new one.
    """

    def __init__(self, name: str, build: Callable[[], Any], *, bus: Bus, ask: Callable[[], None] | None) -> None:
        self._name = name
        self._build = build
        self._bus = bus
        self._ask = ask
        self._clock = SystemClock()
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"bus-{name}", daemon=True)

    def start(self) -> None:
        """Begin; returns once it listens, or after `send_timeout_s` when the broker is away, to listen when it is back."""
        self._thread.start()
        if not self._clock.wait(self._ready, self._bus.send_timeout_s):
            log.warning("the broker is away; listening begins when it is back", server=self._name)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self._bus.stop_timeout_s)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            server = self._build()
            try:
                server.begin()
            except Exception:
                log.exception("listening failed", server=self._name)
                self._clock.wait(self._stopping, self._bus.probe_interval_s)
                continue
            self._ready.set()
            self._watch(server)
            if self._stopping.is_set():
                server.end()
            else:
                threading.Thread(target=server.end, daemon=True).start()

    def _watch(self, server: Any) -> None:
        """Returns when the server is to stop, or has gone deaf."""
        asked, failures = False, 0
        while failures < self._bus.probe_failures_max:
            if self._clock.wait(self._stopping, self._bus.probe_interval_s):
                return
            failures = failures + 1 if asked and not server.heard.is_set() and not server.saturated else 0
            server.heard.clear()
            asked = self._asks()
        log.error("deaf: listening again", server=self._name)
        DEAF.labels(self._name).inc()

    def _asks(self) -> bool:
        if self._ask is None:
            return False
        try:
            self._ask()
        except Unavailable:
            return False  # the broker is away: the driver finds it again by itself
        return True
