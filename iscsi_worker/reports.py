"""What this worker saw, sent to the conductor for the history: never waited for, bounded, kept while the broker is away."""

import queue
import threading
import uuid
from typing import Any

import structlog

from iscsi_worker import metrics
from rpc.bus import Bus
from rpc.messages import ExportReport
from sanderling import tracing
from sanderling.clock import Clock
from sanderling.errors import Unavailable
from sanderling.model.exports import Epoch, ExportId
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


class Reports:
    """A bounded queue and the one thread that empties it; the oldest report is dropped, and logged, when it is full."""

    def __init__(self, bus: Bus, node: str, settings: Worker, *, clock: Clock) -> None:
        self._bus, self._node, self._settings, self._clock = bus, node, settings, clock
        self._queue: queue.Queue[ExportReport | None] = queue.Queue(settings.reports_max)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)

    def start(self) -> None:
        metrics.REPORTS_WAITING.set_function(self._queue.qsize)
        self._thread.start()

    def stop(self, *, timeout_s: float) -> None:
        """Send what is left if the broker takes it within the time."""
        if not self._thread.is_alive():
            return
        self._put(None)
        self._thread.join(timeout_s / 2)
        self._stopping.set()
        self._thread.join(timeout_s / 2)

    def say(self, export: ExportId, epoch: Epoch, seen: str, **detail: Any) -> None:
        metrics.count_report(seen, detail)
        self._put(
            ExportReport(
                traceparent=tracing.current(),
                report_id=str(uuid.uuid4()),
                node=self._node,
                disk_id=export.disk_id,
                index=export.index,
                generation=epoch.generation,
                counter=epoch.counter,
                seen=seen,
                detail=detail,
            )
        )

    def _put(self, report: ExportReport | None) -> None:
        while True:
            try:
                self._queue.put_nowait(report)
            except queue.Full:
                dropped = self._queue.get_nowait()
                metrics.REPORTS_DROPPED.inc()
                log.warning("report dropped: the broker has been away for too long", report=dropped and dropped.model_dump())
            else:
                return

    def _run(self) -> None:
        while not self._stopping.is_set():
            report = self._queue.get()
            if report is None:
                return
            while not self._sent(report):
                if self._clock.wait(self._stopping, self._settings.report_retry_s):
                    return

    def _sent(self, report: ExportReport) -> bool:
        try:
            self._bus.notify(f"export.{report.seen}", report)
        except Unavailable as problem:
            log.debug("report waits", problem=problem.detail)
            return False
        return True
