"""What notifications are sent to in tests: an HTTP server on loopback that remembers what came, and can be made to fail."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any


class Receiver:
    """Answers with `status`, and only while `answers` is set; `got` are the bodies, `keys` the keys that they came with."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.status = 200
        self.location = ""
        self.answers = threading.Event()
        self.answers.set()
        self.began = threading.Event()
        self.got: list[dict[str, Any]] = []
        self.keys: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.began.set()
                receiver.answers.wait(60)
                if receiver.status == 200:
                    receiver.got.append(body)
                    receiver.keys.append(self.headers["Idempotency-Key"])
                self.send_response(receiver.status)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name for it
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """As a rule names it, with a password in it."""
        return f"json://user:canary-secret@127.0.0.1:{self._server.server_port}/hook"

    @property
    def events(self) -> list[int]:
        """The ids of the events, as they came."""
        return [body["event"]["id"] for body in self.got]

    @property
    def repeats(self) -> dict[str, int]:
        """Keys that came more than once."""
        return {key: count for key, count in Counter(self.keys).items() if count > 1}


class Mailbox:
    """A mail server on loopback that takes everything; `mails` are the messages with their headers."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        mailbox = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 mailbox\r\n")
                while line := self.rfile.readline():
                    if line.upper().startswith(b"DATA"):
                        self.wfile.write(b"354 go on\r\n")
                        mailbox.mails.append(self._message())
                    self.wfile.write(b"250 ok\r\n")

            def _message(self) -> str:
                lines = iter(self.rfile.readline, b".\r\n")
                return b"".join(lines).decode()

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="mailbox", daemon=True).start()

    def __enter__(self) -> "Mailbox":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        port = self._server.server_address[1]
        return f"mailto://127.0.0.1:{port}?from=san@x.example&to=you@x.example&mode=insecure"
