"""What this process measures of itself, and the middleware that names each request's trace in logs and counts it."""

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanderling import tracing
from sanderling.clock import Clock

TRACEPARENT: Final = "sanderling.traceparent"  # in the ASGI scope


class Metrics:
    """One registry per app, so that two apps in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sanderling_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "sanderling_http_request_seconds", "Time to the first byte of the answer", ["method", "route"], registry=self.registry
        )
        self.waiting = Gauge("sanderling_outbox_waiting", "Operations whose wake-up is not noted as cast", registry=self.registry)
        self.open = Gauge("sanderling_operations_open", "Operations that have not ended", ["state"], registry=self.registry)
        self.oldest = Gauge(
            "sanderling_operations_oldest_seconds", "Age of the oldest operation in this state", ["state"], registry=self.registry
        )
        self.longest_waiting = Gauge(
            "sanderling_outbox_oldest_seconds",
            "Age of the oldest operation whose wake-up is not noted as cast",
            registry=self.registry,
        )
        self.disks = Gauge("sanderling_disks", "Disks in the index", ["state"], registry=self.registry)
        self.gaps = Gauge(
            "sanderling_gap_seconds",
            "How long the operations of a path waited, in the newest moves and failovers that were reported",
            ["kind", "share"],
            registry=self.registry,
        )
        self.exports = Gauge("sanderling_gateway_exports", "Exports that a gateway serves", ["gateway"], registry=self.registry)
        self.exposed = Gauge(
            "sanderling_unserved_after_one_loss",
            "Exports that nobody could serve after the worst loss of one gateway, or can even now; NaN when not known",
            registry=self.registry,
        )
        self.streams = Gauge("sanderling_event_streams", "Event streams open in this process", registry=self.registry)

    def text(self) -> bytes:
        """The Prometheus exposition format: what is the app's, and what is the process's."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class Observed:
    """Binds the W3C trace of the request, the caller's or a new one, and counts the answer by route, never by raw path."""

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Clock) -> None:
        self._app, self._metrics, self._clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"traceparent"]
        parent = given[0].decode("latin-1") if len(given) == 1 else None
        method = scope["method"] if scope["method"] in _METHODS else "other"
        began = self._clock.monotonic()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = _route(scope)
                self._metrics.requests.labels(method, route, message["status"]).inc()
                self._metrics.seconds.labels(method, route).observe(self._clock.monotonic() - began)
                message["headers"] = [*message.get("headers", []), (b"traceparent", scope[TRACEPARENT].encode())]
                span.rename(f"{method} {route}")
                span.say(**{"http.route": route, "http.response.status_code": message["status"]})
            await send(message)

        with tracing.span(method, parent=parent, kind="SERVER", begins=True, **{"http.request.method": method}) as span:
            scope[TRACEPARENT] = tracing.current()
            await self._app(scope, receive, counted)


_METHODS: Final = {"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"}


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))
