"""The API as a process: connects to the parts, serves HTTP or HTTPS, and ends cleanly on SIGTERM or SIGINT."""

import contextlib
import signal
import socket
import ssl
import sys
import threading

import structlog
import uvicorn
from fastapi import FastAPI

import rpc.news
import rpc.oslo
from api.app import create_app
from sanderling import coordination, images, logs, settings, tls, tracing
from sanderling.clock import SystemClock
from sanderling.errors import Problem, SettingsRefused
from sanderling.garbage import collect_rarely
from sanderling.records.database import Records
from sanderling.signals import Told

log = structlog.get_logger(__name__)


class HttpServer:
    """The app behind a listening socket, in a thread of its own, so that a process may hold other things too."""

    def __init__(self, app: FastAPI, options: settings.Api) -> None:
        self._app, self._options = app, options
        self._socket: socket.socket | None = None
        self._server = _Announcing(
            uvicorn.Config(
                app,
                log_config=None,
                http="h11",  # the one whose heads are bounded
                h11_max_incomplete_event_size=options.head_max_bytes,
                access_log=False,
                server_header=False,
                ssl_certfile=options.tls_cert or None,
                ssl_keyfile=options.tls_key or None,
                ssl_ca_certs=options.tls_client_ca or None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if options.tls_client_ca else ssl.CERT_NONE,
                timeout_graceful_shutdown=max(1, round(options.stop_timeout_s)),
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens; known once it has been started, also when the port of the settings is 0."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"{'https' if self._options.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        """Return once requests are answered; `SettingsRefused` when address, port or certificate cannot be used."""
        options = self._options
        names = {"ca_file": "tls_client_ca", "cert_file": "tls_cert", "key_file": "tls_key"}
        tls.check(
            "api",
            ca_file=options.tls_client_ca,
            cert_file=options.tls_cert,
            key_file=options.tls_key,
            now=SystemClock().wall(),
            names=names,
        )
        self._server.config.load()
        if self._server.config.ssl is not None:
            self._server.config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        try:
            self._socket = socket.create_server((options.host, options.port), family=family, backlog=2048)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsRefused(f"[api] host, port: cannot listen on {options.host} port {options.port}: {reason}") from error
        # connections inherit it: an answer is two writes, and the second would wait for the peer's delayed ACK, 40 ms
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread.start()
        self._server.ready.wait()
        if not self._server.started:
            raise Problem("the HTTP server did not start; the log says why")

    def stop(self) -> None:
        """Take no more requests, end event streams, let requests at work finish within the bound."""
        self._app.state.context.feed.close_streams()
        self._server.should_exit = True
        self._thread.join(timeout=self._options.stop_timeout_s * 2)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        assert self._socket is not None
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.ready.set()


class _Announcing(uvicorn.Server):
    """Says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def main() -> None:
    """The entry point of sanderling-api. A refusal is one line on standard error and exit code 1."""
    collect_rarely()
    try:
        loaded = settings.load()
        logs.configure(loaded.sanderling, process="api")
        serve(loaded)
    except Problem as problem:
        sys.exit(f"sanderling-api: {problem.detail}")


def serve(loaded: settings.Settings) -> None:
    """Serve until a signal asks to stop."""
    asked = Told(signal.SIGTERM, signal.SIGINT)
    clock = SystemClock()
    with contextlib.ExitStack() as open_parts:
        open_parts.enter_context(tracing.sent(loaded, process="api"))
        records = Records(loaded.records, clock=clock)
        open_parts.callback(records.close)
        records.migrate()
        store = coordination.connect(loaded, clock=clock)
        open_parts.callback(store.close)
        data = images.connect(loaded, clock=clock)
        open_parts.callback(data.close)
        bus = rpc.oslo.connect(loaded)
        open_parts.callback(bus.close)
        news = rpc.news.connect(loaded)
        open_parts.callback(news.close)
        app = create_app(loaded, records=records, coordination=store, images=data, bus=bus, news=news, clock=clock)
        server = HttpServer(app, loaded.api)
        server.start()
        open_parts.callback(server.stop)
        log.info("serving", url=server.url)
        while not clock.wait(asked, 1.0):
            if not server.is_running:
                raise Problem("the HTTP server ended by itself; the log says why")
        log.info("stopping")
