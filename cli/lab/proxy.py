"""A TCP proxy that a scenario makes slow, deaf or wrong: it stands between one process and the Consul agent it talks to.

It is threads of the lab's own process, made inside the namespace in which it is to listen.
"""

import contextlib
import socket
import threading
from enum import StrEnum

from sanderling.clock import SystemClock

CLOCK = SystemClock()
_CHUNK = 65536
_ACCEPT_S = 0.2
_REFUSAL = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 17\r\nConnection: close\r\n\r\nNo cluster leader"
)


class Mode(StrEnum):
    OPEN = "open"
    SLOW = "slow"
    HALF_OPEN = "half-open"
    CUT = "cut"
    ERRORS = "errors"


class FaultProxy:
    """From `start` to `stop`. `set` changes what happens from now on and drops the connections that are open."""

    def __init__(self, listen: tuple[str, int], to: tuple[str, int]) -> None:
        self._listen, self._to = listen, to
        self._mode, self._delay_s = Mode.OPEN, 0.0
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

    def set(self, mode: Mode, *, delay_s: float = 0.0) -> None:
        """`delay_s` is how long a slow proxy keeps each piece of a request."""
        self._mode, self._delay_s = mode, delay_s
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
                case Mode.ERRORS:
                    self._note(client.recv(_CHUNK))
                    client.sendall(_REFUSAL)
                case Mode.OPEN | Mode.SLOW:
                    self._relay(client)
        except OSError:
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
