"""A collector of traces of the tests' own: it takes what OpenTelemetry's exporter sends and keeps the spans."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class SeenSpan:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    error: str | None
    began_ns: int
    ended_ns: int


class Collector:
    """Listens while it is entered; `spans` are those of all requests so far. `raw` is all that was sent, as it was sent."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._lock = threading.Lock()
        self._spans: list[SeenSpan] = []
        self.raw = b""
        collector = self

        class Taking(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._take(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Taking)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1/traces"

    @property
    def spans(self) -> list[SeenSpan]:
        with self._lock:
            return list(self._spans)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.raw += body
            for each in request.resource_spans:
                service = str(_values(each.resource.attributes)["service.name"])
                self._spans += [_seen(service, span) for scope in each.scope_spans for span in scope.spans]


def tree(spans: Iterable[SeenSpan]) -> str:
    """The spans of one trace as text, each below its parent, in the order in which they began."""
    known = sorted(spans, key=lambda span: span.began_ns)
    ids = {span.span_id for span in known}
    lines: list[str] = []

    def add(span: SeenSpan, depth: int) -> None:
        took_ms = (span.ended_ns - span.began_ns) / 1e6
        lines.append(f"{'  ' * depth}{span.service.removeprefix('sanderling-')}: {span.name}  {took_ms:.1f} ms")
        for child in known:
            if child.parent_id == span.span_id:
                add(child, depth + 1)

    for root in known:
        if root.parent_id not in ids:
            add(root, 0)
    return "\n".join(lines)


def _seen(service: str, span: Any) -> SeenSpan:
    return SeenSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
        error=span.status.message if span.status.code == 2 else None,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
    )


def _values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
