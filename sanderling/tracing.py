"""One trace for one action, from HTTP through the bus to the worker: W3C trace context for all, spans where tracing is on.

While it is off nothing of OpenTelemetry's SDK is loaded, and the id of the trace goes along all the same: into logs, messages and
the records. OpenTelemetry's own notion of the current span is not used: what counts is the traceparent, which crosses threads and
processes as the same string.
"""

import contextlib
import re
import secrets
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol

import structlog

from sanderling.errors import Problem
from sanderling.settings import Settings

Value = str | int | float | bool
Kind = Literal["INTERNAL", "SERVER"]

_SHAPE: Final = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-[\x20-\x7e]{0,200})?"
)
LOG_MOST: Final = 2000
_current: ContextVar[str] = ContextVar("traceparent", default="")
_tracer: Any = None  # OpenTelemetry's, while tracing is on


class Span(Protocol):
    def say(self, **attributes: Value) -> None:
        """Add to what is known of it. Never a secret, and nothing that a caller may choose at any length."""
        ...

    def rename(self, name: str) -> None: ...

    def fail(self, error: BaseException) -> None:
        """It came to nothing, because of this. What leaves the block by itself is noted by itself."""
        ...


def accepted(given: str) -> str | None:
    """The traceparent that a caller sent, as we pass it on; None when it is not one by the rules of W3C Trace Context.

    A version that is not known yet is read as far as it is known, and passed on as ours.
    """
    found = _SHAPE.fullmatch(given)
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    return f"00-{found['trace']}-{found['span']}-{'01' if int(found['flags'], 16) & 1 else '00'}"


def current() -> str | None:
    """The traceparent to send along with what is done here and now."""
    return _current.get() or None


@contextlib.contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    operation_id: str = "",
    kind: Kind = "INTERNAL",
    begins: bool = False,
    **attributes: Value,
) -> Iterator[Span]:
    """A part of the action under way, or of the one that `parent` names; its log lines name the trace and the operation.

    One that `begins` an action has a trace in any case, also while tracing is off; another is no part of any without a parent. A
    parent that is no traceparent counts as none.
    """
    above = accepted(parent or "") or _current.get()
    if operation_id:
        attributes["operation_id"] = operation_id
    recorded = _start(name, above, kind, attributes) if _tracer is not None and (above or begins) else None
    shown: Span = _UNRECORDED if recorded is None else _Recorded(recorded)
    present = above or (_new() if begins else "")
    if recorded is not None:
        present = _traceparent(recorded.get_span_context())
    token = _current.set(present)
    known = {"trace_id": present.split("-")[1] if present else "", "operation_id": operation_id}
    try:
        with structlog.contextvars.bound_contextvars(**{key: value for key, value in known.items() if value}):
            yield shown
    except Exception as error:  # a stream that its reader leaves is no failure
        shown.fail(error)
        raise
    finally:
        _current.reset(token)
        if recorded is not None:
            recorded.end()


@contextlib.contextmanager
def sent(settings: Settings, *, process: str) -> Iterator[None]:
    """Record spans meanwhile and send them on, if tracing is on; at the end what is left is sent, bounded."""
    own = settings.tracing
    if own.enabled == "off":
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  only where it is on
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    global _tracer  # noqa: PLW0603  as a log has one place to go to, so has a trace
    ratio = TraceIdRatioBased(own.sample_ratio)
    provider = TracerProvider(
        sampler=ParentBased(ratio, remote_parent_sampled=ratio),  # a caller may ask for less, and not for more
        resource=Resource.create({"service.name": f"sanderling-{process}", "service.instance.id": settings.sanderling.node}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(own.endpoint, certificate_file=own.ca_file or None, timeout=own.send_timeout_s)
    batch = min(512, own.queue_max)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=own.queue_max,
            max_export_batch_size=batch,
            schedule_delay_millis=own.send_interval_s * 1000,
        )
    )
    _tracer = provider.get_tracer("sanderling")
    try:
        yield
    finally:
        _tracer = None
        ending = threading.Thread(target=provider.shutdown, name="tracing", daemon=True)
        ending.start()
        ending.join(own.send_timeout_s)


class _Unrecorded:
    def say(self, **attributes: Value) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass


_UNRECORDED: Final = _Unrecorded()


class _Recorded:
    def __init__(self, span: Any) -> None:
        self._span = span

    def say(self, **attributes: Value) -> None:
        self._span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, error: BaseException) -> None:
        """What a problem says of itself is meant to be read; of anything else only the kind is told."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        kind, said = (error.code, error.detail) if isinstance(error, Problem) else (type(error).__name__,) * 2
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, said))
        if isinstance(error, Problem) and "log" in error.context:  # the last words of a program of somebody else's
            self._span.set_attribute("sanderling.log", str(error.context["log"])[-LOG_MOST:])


def _start(name: str, above: str, kind: Kind, attributes: dict[str, Value]) -> Any:
    from opentelemetry import trace  # noqa: PLC0415

    context = trace.set_span_in_context(trace.INVALID_SPAN)
    if above:
        _, trace_id, span_id, flags = above.split("-")
        known = trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(known))
    return _tracer.start_span(name, context=context, kind=trace.SpanKind[kind], attributes=_named(attributes))


def _named(attributes: dict[str, Value]) -> dict[str, Value]:
    return {name if "." in name else f"sanderling.{name}": value for name, value in attributes.items()}


def _new() -> str:
    """Not sampled: nobody records it."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def _traceparent(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
