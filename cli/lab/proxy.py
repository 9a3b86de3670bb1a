"""A TCP proxy that a scenario makes slow, deaf or wrong: it stands before a Consul agent, or before the broker.

It is threads of the lab's own process, made inside the namespace in which it is to listen.
"""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO

from sanderling.clock import SystemClock

CLOCK = SystemClock()
_CHUNK = 65536
_ACCEPT_S = 0.2
_FORWARD_S = 90.0  # longer than any blocking query
_KEPT = ("x-consul-index", "content-type")


class Mode(StrEnum):
    OPEN = "open"
    SLOW = "slow"
    HALF_OPEN = "half-open"
    CUT = "cut"
    LYING = "lying"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    head: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    head: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        head = {"content-type": "text/plain"} | dict(self.head) | {"content-length": str(len(self.body))}
        lines = [f"{name}: {text}" for name, text in head.items()]
        status = f"HTTP/1.1 {self.status} {http.client.responses[self.status]}"
        return "\r\n".join([status, *lines, "", ""]).encode() + self.body


Forward = Callable[[Request], Answer]
Lie = Callable[[Request, Forward], Answer]


def no_leader(_request: Request, _forward: Forward) -> Answer:
    """Every request fails, as with a Consul whose servers have no leader."""
    return Answer(500, b"No cluster leader")


class FaultProxy:
    """From `start` to `stop`. `set` changes what happens from now on and drops the connections that are open."""

    def __init__(self, listen: tuple[str, int], to: tuple[str, int]) -> None:
        self._listen, self._to = listen, to
        self._mode, self._delay_s = Mode.OPEN, 0.0
        self._lie: Lie = no_leader
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self.requests: list[tuple[float, str]] = []

    def start(self) -> None:
        """Listen in the namespace of the calling thread."""
        self._server = socket.create_server(self._listen)
        self._server.settimeout(_ACCEPT_S)
        self._accepting = threading.Thread(target=self._accept, args=(self._server,), name="proxy", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """The port is free again when this returns."""
        self._stopping.set()
        if self._server is not None and self._accepting is not None:
            self._accepting.join(5 * _ACCEPT_S)
            self._server.close()
        self._drop()

    def set(self, mode: Mode, *, delay_s: float = 0.0, lie: Lie = no_leader) -> None:
        """`delay_s` is how long a slow proxy keeps each piece of a request, `lie` what a lying one answers."""
        self._mode, self._delay_s, self._lie = mode, delay_s, lie
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            held, self._open = self._open, set()
        for each in held:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, server: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            client.settimeout(None)
            threading.Thread(target=self._serve, args=(client, self._mode), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket, mode: Mode) -> None:
        with self._lock:
            self._open.add(client)
        try:
            match mode:
                case Mode.CUT:
                    pass
                case Mode.HALF_OPEN:
                    while client.recv(_CHUNK):
                        pass
                case Mode.LYING:
                    self._lie_to(client, self._lie)
                case Mode.OPEN | Mode.SLOW:
                    self._relay(client)
        except (OSError, ValueError, http.client.HTTPException):
            pass  # either end has gone
        finally:
            self._forget(client)

    def _relay(self, client: socket.socket) -> None:
        server = socket.create_connection(self._to, timeout=10.0)
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        back = threading.Thread(target=self._copy, args=(server, client), name="proxied back", daemon=True)
        back.start()
        while data := client.recv(_CHUNK):
            self._note(data)
            if self._delay_s and CLOCK.wait(self._stopping, self._delay_s):
                break
            server.sendall(data)
        self._forget(server)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                sink.sendall(data)
        self._forget(source)
        self._forget(sink)

    def _lie_to(self, client: socket.socket, lie: Lie) -> None:
        with client.makefile("rb") as said:
            while (request := _request(said)) is not None:
                self._note(f"{request.method} {request.target} HTTP/1.1".encode())
                client.sendall(lie(request, self._forward).encoded())

    def _forward(self, request: Request) -> Answer:
        asking = http.client.HTTPConnection(*self._to, timeout=_FORWARD_S)
        try:
            head = {name: text for name, text in request.head.items() if name not in {"accept-encoding", "connection"}}
            asking.request(request.method, request.target, body=request.body or None, headers=head)
            answer = asking.getresponse()
            kept = {name.lower(): text for name, text in answer.getheaders() if name.lower() in _KEPT}
            return Answer(answer.status, answer.read(), kept)
        finally:
            asking.close()

    def _note(self, data: bytes) -> None:
        for line in data.split(b"\r\n"):
            if line.endswith(b" HTTP/1.1"):
                self.requests.append((CLOCK.monotonic(), line.decode(errors="replace")))

    def _forget(self, one: socket.socket) -> None:
        with self._lock:
            self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def _request(said: BinaryIO) -> Request | None:
    """The next one on a connection; None at its end."""
    method, _, rest = said.readline().decode("latin-1").strip().partition(" ")
    if not method:
        return None
    head: dict[str, str] = {}
    while line := said.readline().decode("latin-1").strip():
        name, _, text = line.partition(":")
        head[name.lower()] = text.strip()
    return Request(method, rest.rpartition(" ")[0], head, said.read(int(head.get("content-length", 0))))
