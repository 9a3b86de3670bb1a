"""A real RabbitMQ broker in one folder, with an epmd, a cookie and ports of its own, so that several can run side by side."""

import contextlib
import re
import signal
import socket
import uuid
from pathlib import Path

from cli.lab.parts.daemons import Daemon, family, run, spawn, waited

_BIN = Path("/usr/lib/rabbitmq/bin")  # /usr/sbin has wrappers that change the user and the folder

_CONF = """\
listeners.tcp.default = {address}:{amqp}
loopback_users = none
log.console = true
log.console.level = info
log.file = false
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
"""

_TLS = """\
listeners.ssl.default = {address}:{tls}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.key
ssl_options.verify = {verify}
ssl_options.fail_if_no_peer_cert = {wanted}
"""


class RabbitMQ:
    """One broker with its epmd. guest:guest may come from anywhere; what is durable survives `stop`, `kill` and a new `start`.

    `ports` are AMQP, Erlang distribution, epmd and AMQP over TLS. TLS is served when `tls` names a folder with ca.pem, server.pem
    and server.key; `wants_certificates` turns away who shows none by that CA. In a network namespace its lo must be up: epmd and
    the distribution stay on 127.0.0.1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        ports: tuple[int, int, int, int] | None = None,
        tls: Path | None = None,
        wants_certificates: bool = False,
    ) -> None:
        self._folder = folder
        self._address = address
        self._netns = netns
        self._amqp, self._dist, self._epmd_port, tls_port = ports or _free_ports(4)
        self.tls = tls
        self._node = f"sanderling-{uuid.uuid4().hex[:8]}@localhost"
        self._broker: Daemon | None = None
        self._epmd: Daemon | None = None
        self.url = f"rabbit://guest:guest@{address}:{self._amqp}/"
        self.amqp_url = f"amqp://guest:guest@{address}:{self._amqp}//"
        self.tls_url = f"rabbit://guest:guest@{address}:{tls_port}/"
        self._conf = _CONF.format(address=address, amqp=self._amqp)
        if tls is not None:
            verify = "verify_peer" if wants_certificates else "verify_none"
            wanted = str(wants_certificates).lower()
            self._conf += _TLS.format(address=address, tls=tls_port, folder=tls, verify=verify, wanted=wanted)

    @property
    def version(self) -> str:
        """What the broker said of itself when it started; rabbitmqctl, asked without a broker, would leave an epmd behind."""
        said = re.search(r"Starting RabbitMQ (\S+) on Erlang", self._log.read_text(errors="replace"))
        assert said is not None, "it was never started"
        return said[1]

    @property
    def alive(self) -> bool:
        return self._broker is not None and self._broker.alive

    def start(self) -> None:
        """Start the broker and wait until it takes AMQP connections and has opened its queues."""
        assert self._broker is None, "it is running"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "rabbitmq.conf").write_text(self._conf)
        (self._folder / "enabled_plugins").write_text("[].\n")
        try:
            argv = ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)]
            self._epmd = spawn("epmd", argv, log=self._folder / "epmd.log", netns=self._netns)
            waited(self._epmd_answers, within_s=20, what="epmd answers")  # a broker that finds none leaves one of its own behind
            argv = [str(_BIN / "rabbitmq-server")]
            env = self._env() | {"RUNNING_UNDER_SYSTEMD": "true"}  # exec the Erlang machine instead of waiting for it
            said = self._log.stat().st_size if self._log.exists() else 0
            self._broker = spawn("rabbitmq", argv, log=self._log, env=env, netns=self._netns, cwd=self._folder)
            self._wait_until_usable(said)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut down in order; a broker that does not within 30 s is killed."""
        if self._broker is not None:
            below = family(self._broker.pid)
            self.resume()
            self._broker.terminate(within_s=30)
            for each in below:
                each.kill()
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash; the children (erl_child_setup, inet_gethost) and epmd go too."""
        for daemon in (self._broker, self._epmd):
            if daemon is not None:
                for each in [daemon, *family(daemon.pid)]:
                    each.kill()
        self._broker = self._epmd = None

    def settle(self) -> None:
        """Wait until a crash would leave every queue whole.

        RabbitMQ 3.10 writes the name of a new quorum queue to disk a second after declaring it; after a crash in between, the
        queue has no leader for ever, and whoever publishes to it waits without end.
        """
        listed = (line.split("\t") for line in self.ctl("list_queues", "name", "type").splitlines())
        quorum = [row[0] for row in listed if row[-1] == "quorum"]
        (names,) = (self._folder / "mnesia").glob(f"{self._node}/quorum/*/names.dets")

        def written() -> bool:
            on_disk = names.read_bytes()
            return all(f"%2F_{name}".encode() in on_disk for name in quorum)

        waited(written, within_s=20, what="the names of the queues are on disk")

    def pause(self) -> None:
        assert self._broker is not None
        self._broker.signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._broker is not None
        self._broker.signal(signal.SIGCONT)

    def ctl(self, *args: str, within_s: float = 30.0) -> str:
        """Run rabbitmqctl against this broker, which must be running (else it would leave an epmd behind); its output."""
        assert self.alive, "it is not running"
        return run([str(_BIN / "rabbitmqctl"), "-q", *args], netns=self._netns, env=self._env(), within_s=within_s)

    def _epmd_answers(self) -> bool:
        assert self._epmd is not None
        assert self._epmd.alive, f"epmd ended: {(self._folder / 'epmd.log').read_text(errors='replace')[-2000:]}"
        try:
            run(["epmd", "-port", str(self._epmd_port), "-names"], netns=self._netns, within_s=10)
        except AssertionError:
            return False
        return True

    @property
    def _log(self) -> Path:
        return self._folder / "rabbitmq.log"

    def _env(self) -> dict[str, str]:
        inside = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "HOME": str(self._folder),  # the cookie lies there
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self._folder / "config"),
            "RABBITMQ_PID_FILE": str(self._folder / "rabbitmq.pid"),
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_CTL_DIST_PORT_MIN": "1024",
            "RABBITMQ_CTL_DIST_PORT_MAX": "65535",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-start_epmd false {inside} +S 2:2 +sbwt none +A 8",
            "RABBITMQ_CTL_ERL_ARGS": f"-start_epmd false {inside} +S 1:1 +A 1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _wait_until_usable(self, said: int) -> None:
        def usable() -> bool:
            assert self._broker is not None
            assert self._broker.alive, "it ended"
            return b"Server startup complete" in self._log.read_bytes()[said:]

        try:
            waited(usable, within_s=60, what="RabbitMQ answers")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._log.read_text(errors='replace')[-4000:]}") from None


def _free_ports(count: int) -> tuple[int, ...]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
