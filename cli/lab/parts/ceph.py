"""A real Ceph cluster of one monitor and one OSD, in one folder, ready in seconds: what the rbd backend is tested against."""

import contextlib
import json
import signal
import socket
import subprocess
import uuid
from pathlib import Path

from cli.lab.parts.daemons import Daemon, run, spawn, waited

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:{address}:{v2},v1:{address}:{v1}]
mon initial members = a
public addr = {address}
cluster addr = {address}
auth cluster required = {auth}
auth service required = {auth}
auth client required = {auth}
keyring = {folder}/keyring
run dir = {folder}/run
admin socket =
pid file =
log file = {folder}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
# the default, 1 s, alone costs 4 s of starting
paxos propose interval = 0.05
paxos min wait = 0.01
mon allow pool delete = true
mon allow pool size one = true
mon warn on pool no redundancy = false
mon warn on insecure global id reclaim = false
mon warn on insecure global id reclaim allowed = false
auth allow insecure global id reclaim = false
mon data avail warn = 2
mon data avail crit = 1
[mon]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
[osd]
keyring = {folder}/osd.$id/keyring
# placement groups of a lone OSD that stood still for longer than its read lease, 0.8 of this, never answer again (16.2.15)
osd heartbeat grace = 120
osd data = {folder}/osd.$id
osd objectstore = {objectstore}
osd class update on start = false
memstore device bytes = 2147483648
bluestore block size = 4294967296
bluestore block create = true
bluestore fsck on mkfs = false
[client]
log file =
rbd cache = false
client mount timeout = 5
"""


USER_CAPS = ("mon", "profile rbd", "osd", "profile rbd pool=rbd")
"""What the user of a site's Sanderling may do: docs/operations.md."""


class CephCluster:
    """One monitor, one OSD, pool `rbd`. Authentication is off, so any user name works, unless it is made with `cephx`: then
    `client_user`, which the processes of a site use with `client_conf`, has a key of its own and may do no more than it must.

    The memstore forgets everything when the OSD ends, so only a cluster on bluestore can do without its OSD for a while, or be
    started again after `stop`.
    """

    pool = "rbd"
    user = "admin"

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        objectstore: str = "memstore",
        ports: tuple[int, int] | None = None,
        cephx: bool = False,
    ) -> None:
        self._folder, self._cephx = folder, cephx
        self._address = address
        self._netns = netns
        self._objectstore = objectstore
        self.ports = ports or (_free_port(), _free_port())
        self._mon: Daemon | None = None
        self._osd: Daemon | None = None
        self.conf = str(folder / "ceph.conf")
        self.client_conf = str(folder / "client.conf") if cephx else self.conf
        self.client_user = "sanderling" if cephx else self.user

    @property
    def version(self) -> str:
        return run(["ceph-mon", "--version"]).split()[2]

    @property
    def alive(self) -> bool:
        daemons = self._daemons()
        return len(daemons) == 2 and all(daemon.alive for daemon in daemons)

    def start(self) -> None:
        """Make the cluster if it is not there, start it, and wait until its pool answers."""
        assert self._mon is None, "it is running"
        made = Path(self.conf).exists()
        assert not made or self._objectstore != "memstore", "a memstore forgets all when it ends: use bluestore"
        try:
            if not made:
                self._make_monitor()
            self._mon = self._spawn("mon", "a")
            if not made:
                self._make_osd_and_pool()
            self.start_osd()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the daemons (a crash is how this cluster always ends); what bluestore holds stays."""
        for daemon in self._daemons():
            daemon.kill()
        self._mon = self._osd = None

    kill = stop

    def kill_osd(self) -> None:
        assert self._objectstore != "memstore", "a memstore forgets all when it ends: use bluestore"
        assert self._osd is not None, "no OSD is running"
        self._osd.kill()
        self._osd = None

    def start_osd(self) -> None:
        """Start the OSD and wait until the pool answers."""
        assert self._osd is None, "the OSD is running"
        self._osd = self._spawn("osd", "0")
        osd = self._osd

        def answers() -> bool:
            assert osd.alive, f"the OSD ended: {self._log_tail('osd.0')}"
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.rbd("--rados-osd-op-timeout", "2", "ls", self.pool)
                return True
            return False

        waited(answers, within_s=60, what=f"pool {self.pool} answers; {self._log_tail('osd.0')}")

    def pause(self) -> None:
        """Freeze every daemon: connections stay open and nothing answers."""
        for daemon in self._daemons():
            daemon.signal(signal.SIGSTOP)

    def pause_osd(self) -> None:
        """Freeze the OSD alone: the monitor answers, reads and writes wait."""
        assert self._osd is not None, "no OSD is running"
        self._osd.signal(signal.SIGSTOP)

    def pause_monitor(self) -> None:
        """Freeze the monitor alone: what is connected goes on, nothing new can connect and nobody can be fenced."""
        assert self._mon is not None, "no monitor is running"
        self._mon.signal(signal.SIGSTOP)

    def resume(self) -> None:
        for daemon in self._daemons():
            daemon.signal(signal.SIGCONT)

    def rbd(self, *args: str) -> str:
        """Run the rbd command, bounded, and return what it prints."""
        return run(["rbd", "--conf", self.conf, *args], netns=self._netns, within_s=30)

    def ceph(self, *args: str) -> str:
        """Run the ceph command, bounded, and return what it prints."""
        return run(["ceph", "--conf", self.conf, "--connect-timeout", "10", *args], netns=self._netns, within_s=30)

    def _daemons(self) -> list[Daemon]:
        return [daemon for daemon in (self._osd, self._mon) if daemon is not None]

    def _spawn(self, kind: str, name: str) -> Daemon:
        return spawn(
            f"ceph-{kind}",
            [f"ceph-{kind}", "-f", "--conf", self.conf, "-i", name],
            log=self._folder / f"ceph-{kind}.out",
            netns=self._netns,
        )

    def _make_monitor(self) -> None:
        for name in ("mon", "run", "osd.0"):
            (self._folder / name).mkdir(parents=True)
        v2, v1 = self.ports
        fsid, keyring, monmap = str(uuid.uuid4()), str(self._folder / "keyring"), str(self._folder / "monmap")
        Path(self.conf).write_text(
            _CONF.format(
                fsid=fsid,
                address=self._address,
                v2=v2,
                v1=v1,
                folder=self._folder,
                objectstore=self._objectstore,
                auth="cephx" if self._cephx else "none",
            )
        )
        everything = [part for daemon in ("mon", "osd", "mgr") for part in ("--cap", daemon, "allow *")]
        run(["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])
        run(["ceph-authtool", keyring, "--gen-key", "-n", f"client.{self.user}", *everything])
        addresses = f"[v2:{self._address}:{v2},v1:{self._address}:{v1}]"
        run(["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", addresses, monmap])
        run(["ceph-mon", "--conf", self.conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring])

    def _make_osd_and_pool(self) -> None:
        osd_id, keyring = str(uuid.uuid4()), self._folder / "osd.0" / "keyring"
        secret = run(["ceph-authtool", "--gen-print-key"]).strip()
        keyring.write_text(f"[osd.0]\nkey = {secret}\n")
        secrets = self._folder / "osd.0.json"
        secrets.write_text(json.dumps({"cephx_secret": secret}))
        self.ceph("osd", "new", osd_id, "-i", str(secrets))
        run(["ceph-osd", "--conf", self.conf, "-i", "0", "--mkfs", "--osd-uuid", osd_id], netns=self._netns)
        self.ceph("osd", "pool", "create", self.pool, "8", "8")
        self.ceph("osd", "pool", "application", "enable", self.pool, "rbd")
        if self._cephx:
            self._make_user()

    def _make_user(self) -> None:
        """A user with the fewest rights that do, and a configuration in which nobody finds another's key."""
        keyring = self._folder / f"client.{self.client_user}.keyring"
        self.ceph("auth", "get-or-create", f"client.{self.client_user}", *USER_CAPS, "-o", str(keyring))
        text = Path(self.conf).read_text().replace(f"keyring = {self._folder}/keyring", f"keyring = {keyring}")
        Path(self.client_conf).write_text(text)

    def _log_tail(self, name: str) -> str:
        logs = [self._folder / f"{name}.log", *self._folder.glob("ceph-*.out")]
        return "\n".join(log.read_text(errors="replace")[-1500:] for log in logs if log.exists())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
