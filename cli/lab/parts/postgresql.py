"""A real PostgreSQL server in one folder, made by initdb, with a port and a socket of its own and everything flushed to disk.

It refuses to run as root, so root starts it as the user that Debian's package makes. That user owns the folder but need not be
able to reach it: the server is lent the right to search folders on the way.
"""

import contextlib
import os
import pwd
import secrets
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cli.lab.parts.daemons import Daemon, family, run, spawn, waited

BIN: Final = Path("/usr/lib/postgresql/15/bin")
USER: Final = "postgres"  # of the machine, and the superuser of the server
START_WITHIN_S: Final = 60.0

_CONF = """\
listen_addresses = '{address}'
port = {port}
unix_socket_directories = '{folder}'
cluster_name = 'sanderling'
max_connections = 100
shared_buffers = 32MB
dynamic_shared_memory_type = mmap
fsync = on
synchronous_commit = on
full_page_writes = on
log_line_prefix = '%m [%p] %q%u@%d '
password_encryption = 'scram-sha-256'
"""


class PostgreSQL:
    """One server. What was committed survives `stop`, `kill` and a new `start`. `more` are further lines of its configuration.

    `url` is the superuser's, of the database that initdb makes; `database_url` names another one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        port: int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._address, self._netns = folder, address, netns
        self._port = port or _free_port(address)
        self._more = dict(more or {})
        self._password = secrets.token_urlsafe(16)
        self._daemon: Daemon | None = None

    @property
    def server_url(self) -> str:
        """What the URLs of all its databases begin with."""
        return f"postgresql+psycopg://{USER}:{self._password}@{self._address}:{self._port}/"

    @property
    def url(self) -> str:
        return self.database_url(USER)

    def database_url(self, name: str) -> str:
        return f"{self.server_url}{name}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def version(self) -> str:
        return run([str(BIN / "postgres"), "--version"]).split()[2]

    @property
    def alive(self) -> bool:
        return self._daemon is not None and self._daemon.alive

    def start(self) -> None:
        """Run, on the data of the last run, and return once it takes connections."""
        assert not self.alive, "it is running"
        if not (self.data / "PG_VERSION").exists():
            self._make()
        argv = [*_as_user(), str(BIN / "postgres"), "-D", str(self.data)]
        self._daemon = spawn("postgresql", argv, log=self._log, netns=self._netns, cwd=self.folder)
        try:
            waited(self._is_usable, within_s=START_WITHIN_S, what="postgresql takes connections")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self._log.read_text(errors='replace')[-4000:]}") from error

    def stop(self) -> None:
        """Shut down as the system does it: transactions under way are rolled back, everybody is disconnected."""
        if self._daemon is not None:
            self.resume()
            self._daemon.signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self._daemon.wait(within_s=30)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of it, as a crash; the segment of shared memory that it cannot remove itself goes too."""
        if self._daemon is None:
            return
        for each in [self._daemon, *family(self._daemon.pid)]:
            each.kill()
        with contextlib.suppress(OSError, IndexError, AssertionError):
            segment = (self.data / "postmaster.pid").read_text().split("\n")[6].split()[1]
            run(["ipcrm", "--shmem-id", segment])
        self._daemon = None

    def pause(self) -> None:
        """Stop every process of it, as a machine that hangs: whoever is connected hears nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def _log(self) -> Path:
        return self.folder / "postgresql.log"

    def _signal(self, number: int) -> None:
        assert self._daemon is not None, "it was never started"
        for each in [self._daemon, *family(self._daemon.pid)]:
            each.signal(number)

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(exist_ok=True)
        password = self.folder / "password"
        password.write_text(self._password)
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            for path in (self.folder, self.data, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        self.data.chmod(0o700)
        password.chmod(0o600)
        argv = [*_as_user(), str(BIN / "initdb"), "-D", str(self.data), "-U", USER, "--pwfile", str(password)]
        run([*argv, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"], within_s=START_WITHIN_S)
        password.unlink()
        conf = _CONF.format(address=self._address, port=self._port, folder=self.folder)
        conf += "".join(f"{name} = {value}\n" for name, value in self._more.items())
        (self.data / "postgresql.conf").write_text(conf)
        (self.data / "pg_hba.conf").write_text("local all all scram-sha-256\nhost all all all scram-sha-256\n")

    def _is_usable(self) -> bool:
        assert self.alive, "it ended"
        argv = [str(BIN / "pg_isready"), "-q", "-h", self._address, "-p", str(self._port), "-t", "5"]
        try:
            run(argv, netns=self._netns, within_s=10)
        except AssertionError:
            return False
        return True


def _as_user() -> list[str]:
    """What root puts before a program of PostgreSQL's."""
    if os.geteuid() != 0:
        return []
    search = "+dac_read_search"
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", f"--inh-caps={search}", f"--ambient-caps={search}"]


def _free_port(address: str) -> int:
    with socket.socket() as held:
        held.bind((address, 0))
        port: int = held.getsockname()[1]
        return port
