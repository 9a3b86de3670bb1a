"""A duty that goes round: one turn after the other in a thread of its own, for as long as the tenure holds."""

import threading
from abc import ABC, abstractmethod
from typing import Final

import structlog

from leader.duties import Tenure
from sanderling.clock import Clock
from sanderling.errors import DutyFailed, Problem, StaleTerm, Unavailable
from sanderling.settings import Leader

log = structlog.get_logger(__name__)

_JOIN_PART: Final = 0.5  # of the time that stopping may take


class Rounds(ABC):
    """What every duty of ours is. A part that is away is waited for, a fault of ours or a stale term hands leadership on.

    Stopping does not wait for a turn that asks a part which is silent: it can do no more than end in a write that is fenced.
    Until that turn has ended the duty does not start again, so that a part that hangs holds one thread and no more.
    """

    name: str

    def __init__(self, bounds: Leader, *, clock: Clock) -> None:
        self._bounds, self._clock = bounds, clock
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._at_it_since: float | None = None

    @abstractmethod
    def prepare(self, tenure: Tenure) -> None:
        """What has to succeed before this process may lead; it may block and raise."""

    @abstractmethod
    def turn(self, tenure: Tenure) -> float:
        """Do what is due; how long to wait for the next turn at most."""

    @abstractmethod
    def halt(self) -> None:
        """End what acts outside this thread; once this returns it acts no more."""

    def wake(self) -> None:
        """Do not wait for the next turn; returns at once."""
        self._woken.set()

    @property
    def hangs(self) -> bool:
        since = self._at_it_since
        return since is not None and self._clock.monotonic() - since > self._bounds.duty_turn_timeout_s

    def start(self, tenure: Tenure) -> None:
        if self._thread is not None and self._thread.is_alive():
            raise DutyFailed(f"the last turn of {self.name} has not ended yet")
        self._stopping, self._at_it_since = threading.Event(), None
        self.prepare(tenure)
        self._thread = threading.Thread(target=self._run, args=(tenure, self._stopping), name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self.wake()
        self.halt()
        if self._thread is not None:
            self._thread.join(self._bounds.duty_stop_timeout_s * _JOIN_PART)
        self._at_it_since = None

    def _run(self, tenure: Tenure, stopping: threading.Event) -> None:
        said = ""
        while tenure.holds() and not stopping.is_set():
            self._woken.clear()
            self._at_it_since = self._clock.monotonic()
            try:
                wait_s = self.turn(tenure)
                said = ""
            except StaleTerm as problem:
                tenure.fail(problem.detail, outranked_by=problem.context["term"])
                return
            except Unavailable as problem:
                if said != problem.detail:
                    log.warning("a duty waits for a part", duty=self.name, reason=problem.detail)
                    said = problem.detail
                wait_s = self._bounds.renew_interval_s
            except Problem as problem:
                tenure.fail(f"{self.name}: {problem.detail}")
                return
            except Exception:
                log.exception("a duty failed", duty=self.name, term=tenure.term)
                tenure.fail(f"{self.name} failed")
                return
            finally:
                if not stopping.is_set():
                    self._at_it_since = None
            if not stopping.is_set():
                self._clock.wait(self._woken, wait_s)
