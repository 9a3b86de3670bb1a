"""How a process measures, and where Prometheus reads it: a listener of its own for those that serve no HTTP otherwise."""

import contextlib
from collections.abc import Iterator

from prometheus_client import Histogram, start_http_server

from sanderling.clock import Clock
from sanderling.errors import Problem, SettingsRefused


@contextlib.contextmanager
def timed(histogram: Histogram, clock: Clock, *labels: str) -> Iterator[None]:
    """Observe how long the block takes. The last label is its result: `done`, or the code of the problem that it raised."""
    began, result = clock.monotonic(), "done"
    try:
        yield
    except BaseException as error:
        result = error.code if isinstance(error, Problem) else type(error).__name__.strip("_").lower()
        raise
    finally:
        histogram.labels(*labels, result).observe(clock.monotonic() - began)


@contextlib.contextmanager
def served(host: str, port: int, *, group: str) -> Iterator[None]:
    """Answer `GET /metrics` on this port meanwhile, on none if it is 0; `SettingsRefused` when it is not to be had."""
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsRefused(
            f"[{group}] metrics_port: cannot listen on {host} port {port}: {reason}; choose another, or 0 for none"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
