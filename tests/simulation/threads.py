"""One real thread in which all processes of a simulation run: each of their threads is a greenlet, and time passes only here.

Within `installed` what the standard library calls a thread, an event, a lock, a queue or a pool belongs to the process that makes
it and is driven by the scheduler. So the product runs as it is: it gives way at each wait and at each call of a seam, and nowhere
else. A process can be paused, or killed, wherever it has given way.
"""

import heapq
import queue
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from greenlet import getcurrent, greenlet

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
STEPS_MAX: Final = 400_000  # of one schedule: more is a loop that never waits


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and nothing that it passes through has an effect any more."""


class Stuck(Exception):
    """The simulation itself cannot go on."""


class Process:
    """What lives and dies, and is paused, together. `skew_s` is how far its wall clock is off."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = self.is_paused = False
        self.skew_s = 0.0
        self.tasks: dict[Task, None] = {}  # in the order in which they began
        self.kept_back: list[Task] = []


class Task:
    """One thread of a process. `turn` tells which of its waits a wake-up was meant for."""

    __slots__ = ("ended", "name", "process", "run", "scheduler", "thread", "turn")

    def __init__(self, scheduler: "Scheduler", process: Process, name: str, run: Callable[[], None], hub: greenlet) -> None:
        self.scheduler, self.process, self.name, self.run, self.turn = scheduler, process, name, run, 0
        self.ended = Event()
        self.thread = greenlet(self._run, parent=hub)

    def _run(self) -> None:
        try:
            if not self.process.is_dead:
                self.run()
        except Killed:
            pass
        except Exception as error:  # noqa: BLE001  a thread that ends so leaves its process half dead
            self.scheduler.on_error(self, error)
        finally:
            self.process.tasks.pop(self, None)
            self.ended.set()


class Scheduler:
    """Runs whatever is due, in an order that the random seed decides, and then lets time pass to what is due next."""

    current: "Scheduler | None" = None

    def __init__(self, rng: random.Random, on_step: Callable[[], None] = lambda: None) -> None:
        self.now, self.steps, self.on_step = 0.0, 0, on_step
        self.on_error: Callable[[Task, Exception], None] = _raised
        self._rng = rng
        self._hub = getcurrent()
        self._due: list[tuple[float, float, int, Task | Callable[[], None], int]] = []
        self._number = self._made = 0
        self.task: Task | None = None

    def spawn(self, process: Process, name: str, run: Callable[[], None]) -> Task:
        task = Task(self, process, name, run, self._hub)
        process.tasks[task] = None
        self._push(task, self.now)
        return task

    def numbered(self) -> int:
        self._made += 1
        return self._made

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have it done then, by nobody's process; it may not wait."""
        self._number += 1
        heapq.heappush(self._due, (self.now + seconds, self._rng.random(), self._number, act, 0))

    def sleep(self, seconds: float) -> None:
        """Give way for that long."""
        task = self._mine()
        task.turn += 1
        self._push(task, self.now + seconds)
        self._give_way(task)

    def wait(self, event: "Event", timeout_s: float | None) -> bool:
        task = self._mine()
        if event.is_set():
            return True
        task.turn += 1
        event.waiting.append((task, task.turn))
        if timeout_s is not None:
            self._push(task, self.now + max(0.0, timeout_s))
        self._give_way(task)
        event.waiting = [(other, turn) for other, turn in event.waiting if other is not task]
        return event.is_set()

    def wake(self, task: Task, turn: int) -> None:
        if task.turn == turn:
            self._push(task, self.now)

    def pause(self, process: Process) -> None:
        process.is_paused = True

    def resume(self, process: Process) -> None:
        process.is_paused = False
        for task in process.kept_back:
            self._push(task, self.now)
        process.kept_back.clear()

    def kill(self, process: Process) -> None:
        """End it where it stands. From a thread of its own, that thread ends too."""
        if process.is_dead:
            return
        process.is_dead = True
        mine = self.task
        for task in list(process.tasks):
            if task is mine:
                continue
            if task.thread:
                before, self.task, task.thread.parent = self.task, task, getcurrent()
                task.thread.throw(Killed)
                self.task = before
            process.tasks.pop(task, None)
        if mine is not None and mine.process is process:
            raise Killed

    def run(self, until: float) -> None:
        """Let time pass until then."""
        while self._due and self._due[0][0] <= until:
            at, _, _, task, turn = heapq.heappop(self._due)
            self.now = max(self.now, at)
            if not isinstance(task, Task):
                task()
                self.on_step()
                continue
            if task.turn != turn or task.process.is_dead or task.thread.dead:
                continue
            if task.process.is_paused:
                task.process.kept_back.append(task)
                continue
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise Stuck(f"{task.process.name}: {task.name} and others never rest")
            self.task, task.turn = task, task.turn + 1
            task.thread.switch()
            self.task = None
            self.on_step()
        self.now = max(self.now, until)

    def _push(self, task: Task, at: float) -> None:
        self._number += 1
        heapq.heappush(self._due, (at, self._rng.random(), self._number, task, task.turn))

    def _mine(self) -> Task:
        task = self.task
        if task is None:
            raise Stuck("the scheduler itself cannot wait")
        if task.process.is_dead:
            raise Killed
        return task

    def _give_way(self, task: Task) -> None:
        self._hub.switch()
        if task.process.is_dead:
            raise Killed


class Event:
    """As `threading.Event`."""

    __slots__ = ("__dict__", "_is_set", "_number", "waiting")

    def __init__(self) -> None:
        self._is_set = False
        self.waiting: list[tuple[Task, int]] = []
        self._number = _scheduler().numbered()

    def __hash__(self) -> int:
        """The same in every run of a seed, so that sets of events are walked in one order."""
        return self._number

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        scheduler = Scheduler.current
        if scheduler is not None and self.waiting:
            waiting, self.waiting = self.waiting, []
            for task, turn in waiting:
                scheduler.wake(task, turn)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        return _scheduler().wait(self, timeout)


class Lock:
    """As `threading.Lock`."""

    __slots__ = ("_free", "_held")

    def __init__(self) -> None:
        self._held = False
        self._free: Event | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        while self._held:
            if not blocking:
                return False
            self._free = self._free or Event()
            self._free.clear()
            if not _scheduler().wait(self._free, None if timeout < 0 else timeout) and timeout >= 0:
                return False
        self._held = True
        return True

    def release(self) -> None:
        self._held = False
        if self._free is not None:
            self._free.set()

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Thread:
    """As `threading.Thread`."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str = "thread",
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name, self.daemon = name, daemon
        self._target, self._args, self._kwargs = target, args, kwargs or {}
        self._task: Task | None = None

    def start(self) -> None:
        scheduler = _scheduler()
        assert scheduler.task is not None
        self._task = scheduler.spawn(scheduler.task.process, self.name, self.run)

    def run(self) -> None:
        assert self._target is not None
        self._target(*self._args, **self._kwargs)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        assert self._task is not None
        _scheduler().wait(self._task.ended, timeout)


class Clock:
    """The clock of one process; `monotonic` goes at one pace everywhere, and begins anywhere."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler, self._process = scheduler, process

    def monotonic(self) -> float:
        return self._scheduler.now

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self._scheduler.now + self._process.skew_s)

    def wait(self, event: Any, timeout_s: float) -> bool:
        return self._scheduler.wait(event, timeout_s)


def _raised(_: Task, error: Exception) -> None:
    raise error


def _scheduler() -> Scheduler:
    assert Scheduler.current is not None, "no simulation runs"
    return Scheduler.current


def _submit(self: ThreadPoolExecutor, act: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    scheduler, future = _scheduler(), Future[Any]()
    assert scheduler.task is not None

    def run() -> None:
        try:
            future.set_result(act(*args, **kwargs))
        except Killed:
            raise
        except BaseException as error:  # noqa: BLE001  as a pool does
            future.set_exception(error)

    task = scheduler.spawn(scheduler.task.process, getattr(act, "__qualname__", "pool"), run)
    self.__dict__.setdefault("simulated", []).append(task)
    return future


def _shutdown(self: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
    for task in self.__dict__.get("simulated", ()) if wait else ():
        _scheduler().wait(task.ended, None)


def _put(self: "queue.Queue[Any]", item: Any, block: bool = True, timeout: float | None = None) -> None:
    if 0 < self.maxsize <= len(self.queue):
        raise queue.Full
    self.queue.append(item)
    self.__dict__.setdefault("simulated", Event()).set()


def _get(self: "queue.Queue[Any]", block: bool = True, timeout: float | None = None) -> Any:
    filled = self.__dict__.setdefault("simulated", Event())
    while not self.queue:
        if not block:
            raise queue.Empty
        filled.clear()
        _scheduler().wait(filled, None)
    return self.queue.popleft()


@contextmanager
def installed(scheduler: Scheduler) -> Iterator[None]:
    """Threads, and what they wait for, are this scheduler's until the end of the block."""
    replaced: list[tuple[Any, str, Any]] = [
        (threading, "Thread", Thread),
        (threading, "Event", Event),
        (threading, "Lock", Lock),
        (ThreadPoolExecutor, "submit", _submit),
        (ThreadPoolExecutor, "shutdown", _shutdown),
        (queue.Queue, "put", _put),
        (queue.Queue, "get", _get),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    for where, name, simulated in replaced:
        setattr(where, name, simulated)
    Scheduler.current = scheduler
    try:
        yield
    finally:
        Scheduler.current = None
        for where, name, own in before:
            setattr(where, name, own)
