"""The couriers of one tenure, as their leader sees them: each gets one order at a time, and is ended when it does not answer."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final

import structlog

from leader import courier
from leader.courier import Answer, Order
from sanderling.clock import Clock
from sanderling.settings import Settings

log = structlog.get_logger(__name__)

START_S: Final = 30.0  # that a courier may take to be ready, on top of a delivery
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


class Couriers:
    """At most `[notifications] couriers` processes, started when they are first needed. For one thread, but `end` for any."""

    def __init__(self, settings: Settings, *, on_answer: Callable[[], None], clock: Clock) -> None:
        self._settings, self._on_answer, self._clock = settings, on_answer, clock
        self._bound_s = courier.lasts_s(settings) + START_S
        self._lock = threading.Lock()
        self._all: list[_Courier] = []
        self._ended = False

    @property
    def at_work(self) -> set[str]:
        """The ids of the rules whose orders are being carried out."""
        return {one.rule_id for one in self._all if one.rule_id}

    def order(self, order: Order) -> bool:
        """Have it carried out; False when every courier is at work."""
        with self._lock:
            if self._ended:
                return False
            one = next((one for one in self._all if not one.rule_id), None)
            if one is None and len(self._all) < self._settings.notifications.couriers:
                one = _Courier(self._settings, self._on_answer)
                self._all.append(one)
            if one is None:
                return False
            one.order(order, due=self._clock.monotonic() + self._bound_s)
            return True

    def answers(self) -> list[Answer]:
        """What came since the last call. A courier that died, or does not answer in time, is ended; its order is `away`."""
        found = []
        for one in tuple(self._all):
            answer = one.answer
            if answer is None and one.rule_id and (one.is_dead or self._clock.monotonic() >= one.due):
                log.error("a courier died or does not answer", pid=one.pid, rule=one.rule_id)
                answer = Answer(one.rule_id, "away")
                self._drop(one)
            if answer is not None:
                one.rule_id, one.answer = "", None
                found.append(answer)
        return found

    def end(self, *, within_s: float) -> None:
        """Let each finish what it is at, and end those that are not done within the bound. Once this returns none acts."""
        with self._lock:
            self._ended = True
        for one in self._all:
            one.let_go()
        deadline = self._clock.monotonic() + within_s
        for one in self._all:
            one.end(within_s=max(0.0, deadline - self._clock.monotonic()))

    def _drop(self, one: "_Courier") -> None:
        one.end(within_s=0.0)
        with self._lock:
            self._all.remove(one)


class _Courier:
    """One process and the thread that hears it."""

    def __init__(self, settings: Settings, on_answer: Callable[[], None]) -> None:
        self.rule_id, self.due = "", 0.0
        self.answer: Answer | None = None
        self._on_answer = on_answer
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", courier.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"NETRC": os.devnull},
            start_new_session=True,  # a signal to the leader's group is not for it: it ends with its orders
        )
        self._say(courier.told(settings))
        threading.Thread(target=self._hear, name=f"courier-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def order(self, order: Order, *, due: float) -> None:
        self.rule_id, self.due, self.answer = order.rule_id, due, None
        self._say(json.dumps(order))

    def let_go(self) -> None:
        """No more orders: it ends when it is done."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self, *, within_s: float) -> None:
        self.let_go()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead, which shows
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self.answer = Answer(*json.loads(line))
                self._on_answer()
        self._on_answer()
