"""Which operations this conductor drives: those it is woken for, and those a sweep finds that nobody works on.

A wake-up only makes it sooner. Whatever is lost, doubled or dropped here, the sweep finds in the records.
"""

import queue
import threading
from collections.abc import Callable

import structlog

from conductor import metrics
from conductor.drives import Drive
from conductor.failpoints import Failpoints
from conductor.steps.base import Stores
from sanderling.errors import Problem
from sanderling.records import operations
from sanderling.settings import Settings

log = structlog.get_logger(__name__)


class Runner:
    """A fixed number of threads, each driving one operation at a time, and a bounded queue before them.

    `tell` says that there are new events; it must not wait.
    """

    def __init__(
        self, settings: Settings, stores: Stores, *, tell: Callable[[], None], failpoints: Failpoints | None = None
    ) -> None:
        self._own, self._stores, self._tell = settings.conductor, stores, tell
        self._name = settings.sanderling.node
        self._failpoints = failpoints or Failpoints()
        self._queue_max = self._own.workers * 8
        self._queue: queue.Queue[str | None] = queue.Queue(self._queue_max + self._own.workers)  # room for the ends of it
        self._lock = threading.Lock()
        self._known: set[str] = set()  # queued or driven here
        self._drives: dict[Drive, float] = {}  # since when
        self._stopping = threading.Event()
        self._idle = threading.Event()  # the queue ran dry: look for more now
        self._threads = [threading.Thread(target=self._sweep, name="sweep", daemon=True)]
        self._threads += [threading.Thread(target=self._work, name=f"drive {n}", daemon=True) for n in range(self._own.workers)]

    def start(self) -> None:
        metrics.DRIVEN.set_function(lambda: len(self._drives))
        metrics.CLAIM_AGE.set_function(self._oldest_s)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every operation go where it stands, within about a claim's time; another conductor may take it at once."""
        self._stopping.set()
        self._idle.set()
        with self._lock:
            drives = list(self._drives)
        for drive in drives:
            drive.halt()
        for _ in range(self._own.workers):
            self._queue.put_nowait(None)
        deadline = self._stores.clock.monotonic() + self._own.claim_ttl_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._stores.clock.monotonic()))

    def wake(self, operation_id: str) -> None:
        """Drive this operation soon, unless it is under way here or too many wait already."""
        with self._lock:
            if operation_id in self._known or len(self._known) >= self._queue_max or self._stopping.is_set():
                return
            self._known.add(operation_id)
        self._queue.put_nowait(operation_id)

    def _sweep(self) -> None:
        while not self._stopping.is_set():
            self._idle.clear()
            try:
                with self._stores.records.read() as session:
                    now, ttl_s = self._stores.records.now(), self._own.claim_ttl_s
                    found = operations.due(session, now=now, ttl_s=ttl_s, limit=self._queue_max)
                metrics.SWEPT.inc(len(found))
                for operation_id in found:
                    self.wake(operation_id)
            except Problem as problem:
                log.warning("the sweep found nothing out", reason=problem.detail)
            except Exception:
                log.exception("a sweep failed")
            self._stores.clock.wait(self._idle, self._own.sweep_interval_s)

    def _oldest_s(self) -> float:
        with self._lock:
            now = self._stores.clock.monotonic()
            return now - min(self._drives.values(), default=now)

    def _work(self) -> None:
        while (operation_id := self._queue.get()) is not None:
            drive = Drive(self._name, self._own, self._stores, tell=self._tell, failpoints=self._failpoints)
            with self._lock:
                if self._stopping.is_set():
                    return
                self._drives[drive] = self._stores.clock.monotonic()
            try:
                ended = drive.run(operation_id)
            except Problem as problem:
                log.warning("not claimed; a sweep will", operation_id=operation_id, code=problem.code, reason=problem.detail)
            except Exception:
                log.exception("driving failed; a sweep will go on", operation_id=operation_id)
            else:
                if ended and self._queue.empty():
                    self._idle.set()
            finally:
                with self._lock:
                    self._drives.pop(drive, None)
                    self._known.discard(operation_id)
