"""Questions to Consul and Ceph inside a request: answered within a bound, or the part is said to be away."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from sanderling.clock import Clock
from sanderling.errors import Unavailable

T = TypeVar("T")
A = TypeVar("A")

AT_ONCE: Final = 16


class Asked(Generic[T]):
    """A part that others wait for. A question without an answer in time goes on in its own thread, and counts until it ends."""

    def __init__(self, name: str, part: T, *, timeout_s: float, clock: Clock) -> None:
        self._name, self._part, self._timeout_s, self._clock = name, part, timeout_s, clock
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._answered: dict[Callable[[T], Any], tuple[float, Any]] = {}

    def lately(self, question: Callable[[T], A], *, within_s: float) -> A:
        """What `question`, a function of a module, was answered no longer ago than that; asked again otherwise, as by `ask`."""
        now = self._clock.monotonic()
        known = self._answered.get(question)
        if known is None or now - known[0] >= within_s:
            known = self._answered[question] = (now, self.ask(question))
        return known[1]

    def ask(self, question: Callable[[T], A]) -> A:
        """The answer, or what the question raised; `Unavailable` when there is none within the bound."""
        deadline = self._clock.monotonic() + self._timeout_s
        if not self._free.acquire(timeout=self._timeout_s):
            raise self._silent()
        answers: queue.SimpleQueue[tuple[A | None, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._put, args=(question, answers), name=f"ask {self._name}", daemon=True).start()
        try:
            answer, error = answers.get(timeout=max(0.0, deadline - self._clock.monotonic()))
        except queue.Empty:
            raise self._silent() from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # None is an answer where A allows it

    def _put(self, question: Callable[[T], A], answers: "queue.SimpleQueue[tuple[A | None, BaseException | None]]") -> None:
        try:
            answers.put((question(self._part), None))
        except BaseException as error:  # noqa: BLE001  raised again where the answer is awaited
            answers.put((None, error))
        finally:
            self._free.release()

    def _silent(self) -> Unavailable:
        return Unavailable(f"{self._name} did not answer within {self._timeout_s} s; try again later", dependency=self._name)
