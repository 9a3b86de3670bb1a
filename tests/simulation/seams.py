"""What stands between one process and the parts it uses: calls take time, fail while it is cut off, and end when it is killed.

Behind it are the same parts for all: coordination as `sanderling up` has it, the simulated Ceph, the records in one file, and a
bus that loses, doubles, delays and reorders whatever is cast.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy.orm import Session

from rpc.bus import Endpoint, Handler
from rpc.dispatch import Dispatch
from rpc.messages import Message
from sanderling.errors import Unavailable
from sanderling.records.database import Records
from tests.simulation.threads import Clock, Killed, Process, Scheduler

COORDINATION: Final = "coordination"
CEPH: Final = "ceph"
BUS: Final = "bus"
FRONT: Final = "front"
RECORDS: Final = "records"


@dataclass(slots=True)
class Weather:
    """How bad it is at the moment. `slow` is how often a call takes long; the others are of messages."""

    loss: float = 0.0
    doubled: float = 0.0
    replayed: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    answers_lost: float = 0.0


@dataclass(slots=True)
class Place:
    """Where a process runs: `cuts` are the parts it cannot reach from there."""

    process: Process
    cuts: set[str] = field(default_factory=set)


class Part:
    """One process's view of a part: every method of it, through `call`."""

    def __init__(self, kind: str, behind: Callable[[], Any], call: Callable[[str, str, Callable[[], Any]], Any]) -> None:
        self._kind, self._behind, self._call = kind, behind, call

    def __getattr__(self, name: str) -> Any:
        if not callable(getattr(self._behind(), name)):
            return getattr(self._behind(), name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return self._call(self._kind, name, lambda: getattr(self._behind(), name)(*args, **kwargs))

        setattr(self, name, method)
        return method


class Calls:
    """How the calls of one process go. What is said to be away takes `timeout_s` to say so."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, weather: Weather, place: Place, *, timeout_s: float) -> None:
        self._scheduler, self._rng, self._weather, self._place = scheduler, rng, weather, place
        self._timeout_s = timeout_s
        self.in_write = False

    def local(self, _kind: str, _name: str, act: Callable[[], Any]) -> Any:
        """A call that stays on the node, and gives way before."""
        self.give_way(0.0005)
        return act()

    def remote(self, kind: str, name: str, act: Callable[[], Any]) -> Any:
        if self.in_write:
            return act()
        self.give_way(self._leg_s())
        if kind in self._place.cuts:
            raise self._away(kind, name)
        answer = act()
        self.give_way(self._leg_s())
        if kind in self._place.cuts or self._rng.random() < self._weather.answers_lost:
            raise self._away(kind, name)
        return answer

    def give_way(self, seconds: float) -> None:
        if self._place.process.is_dead:
            raise Killed
        self._scheduler.sleep(seconds)

    def _leg_s(self) -> float:
        if self._weather.slow and self._rng.random() < self._weather.slow:
            return self._rng.uniform(0.05, 1.5)
        return self._rng.expovariate(1 / 0.0015)

    def _away(self, kind: str, name: str) -> Unavailable:
        self.give_way(self._timeout_s * self._rng.random())
        return Unavailable(f"{kind} does not answer ({name})", dependency=kind)


class SharedRecords:
    """The records as one process has them: it gives way, or dies, before and after every transaction, never within a write."""

    def __init__(self, records: Records, calls: Calls, clock: Clock) -> None:
        self._records, self._calls, self._clock = records, calls, clock

    def now(self) -> datetime:
        return self._clock.wall()

    @contextmanager
    def begin(self) -> Iterator[Session]:
        self._calls.remote(RECORDS, "begin", lambda: None)
        with self._records.begin() as session:
            self._calls.in_write = True
            try:
                yield session
            finally:
                self._calls.in_write = False
        self._calls.give_way(0.001)

    @contextmanager
    def read(self) -> Iterator[Session]:
        if not self._calls.in_write:
            self._calls.remote(RECORDS, "read", lambda: None)
        with self._records.read() as session:
            yield session

    def ping(self) -> None:
        self._calls.remote(RECORDS, "ping", lambda: None)


@dataclass(slots=True)
class _Server:
    place: Place
    dispatch: Dispatch


class Broker:
    """What is cast and reported, on its way. `heard` is told of every command that a handler took."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, weather: Weather, park: Callable[..., None]) -> None:
        self._scheduler, self._rng, self._weather, self._park = scheduler, rng, weather, park
        self._servers: dict[str, dict[str, _Server]] = {}
        self._listeners: list[_Server] = []
        self._sent: list[tuple[str, str | None, str, Any]] = []
        self.delivered: Callable[[Callable[[], dict[str, Any]], str, Any], None] = lambda answer, _method, _payload: None

    def serve(self, place: Place, topic: str, server: str, endpoints: Sequence[Endpoint]) -> None:
        methods = {f"{one.namespace}.{name}": method for one in endpoints for name, method in one.methods.items()}
        dispatch = Dispatch(topic, methods, park=self._park, payload_max_bytes=65536)
        self._servers.setdefault(topic, {})[server] = _Server(place, dispatch)

    def listen(self, place: Place, handlers: Mapping[str, tuple[type[Message], Handler]]) -> None:
        self._listeners.append(_Server(place, Dispatch("reports", handlers, park=self._park, payload_max_bytes=65536)))

    def cast(self, topic: str, server: str | None, method: str, payload: Any) -> None:
        self._sent.append((topic, server, method, payload))
        self._send(topic, server, method, payload)
        if len(self._sent) > 1 and self._rng.random() < self._weather.replayed:
            self._send(*self._rng.choice(self._sent))  # one of yesterday

    def _send(self, topic: str, server: str | None, method: str, payload: Any) -> None:
        copies = 0 if self._rng.random() < self._weather.loss else 1 + (self._rng.random() < self._weather.doubled)
        for _ in range(copies):
            late = self._rng.random() < self._weather.late
            delay_s = self._rng.uniform(0.1, 15.0) if late else self._rng.expovariate(1 / 0.003)
            self._scheduler.after(delay_s, lambda: self._deliver(topic, server, method, payload))

    def _deliver(self, topic: str, server: str | None, method: str, payload: Any) -> None:
        live = {name: one for name, one in self._servers.get(topic, {}).items() if _hears(one)}
        chosen = live.get(server) if server else (live[self._rng.choice(sorted(live))] if live else None)
        if chosen is not None:
            dispatch = chosen.dispatch
            handle = lambda: self.delivered(lambda: dispatch.answer(method, payload), method, payload)  # noqa: E731
            self._scheduler.spawn(chosen.place.process, f"handle {method}", handle)

    def report(self, event_type: str, payload: Any) -> None:
        """At least once: until a handler that lived to its end has taken it."""
        live = [one for one in self._listeners if _hears(one)]
        if not live:
            self._scheduler.after(0.5, lambda: self.report(event_type, payload))
            return
        listener, done = self._rng.choice(live), []

        def handle() -> None:
            if listener.dispatch.report(event_type, payload):
                done.append(True)

        task = self._scheduler.spawn(listener.place.process, f"handle {event_type}", handle)
        self._scheduler.after(1.0, lambda: self._look_again(done, task.ended.is_set, listener, event_type, payload))

    def _look_again(self, done: list[bool], ended: Callable[[], bool], listener: _Server, event_type: str, payload: Any) -> None:
        if done:
            return
        if ended() or listener.place.process.is_dead:
            self.report(event_type, payload)
        else:
            self._scheduler.after(1.0, lambda: self._look_again(done, ended, listener, event_type, payload))


def _hears(server: _Server) -> bool:
    return not server.place.process.is_dead and BUS not in server.place.cuts


class _Serving:
    def stop(self) -> None: ...


class Wire:
    """The bus as one process has it."""

    def __init__(self, broker: Broker, place: Place, calls: Calls) -> None:
        self._broker, self._place, self._calls = broker, place, calls

    def cast(self, topic: str, method: str, message: Message, *, server: str | None = None) -> None:
        payload = message.model_dump(mode="json")
        self._calls.remote(BUS, method, lambda: self._broker.cast(topic, server, method, payload))

    def notify(self, event_type: str, message: Message) -> None:
        payload = message.model_dump(mode="json")
        self._calls.remote(BUS, event_type, lambda: self._broker.report(event_type, payload))

    def serve(self, topic: str, server: str, endpoints: Sequence[Endpoint]) -> _Serving:
        self._calls.remote(BUS, "serve", lambda: self._broker.serve(self._place, topic, server, endpoints))
        return _Serving()

    def listen(self, handlers: Mapping[str, tuple[type[Message], Handler]]) -> _Serving:
        self._calls.remote(BUS, "listen", lambda: self._broker.listen(self._place, handlers))
        return _Serving()
