"""Three Debian hosts booted with systemd (systemd-nspawn), on a back network and two front networks of their own.

Each is an overlay over the root that scripts/hosts-root makes. Nothing outside the namespaces made here can be reached from them.
"""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pexpect

from cli.lab.parts.daemons import Daemon, family, run, spawn, start_time, waited

TREE: Final = Path(__file__).parents[2]
HELD: Final = TREE / ".hosts"
NAMES: Final = ("san1", "san2", "san3")
BRIDGES: Final = ("back", "front-a", "front-b")
BOOT_S: Final = 180.0
BLOCK_S: Final = 420.0
_HIERARCHIES: Final = (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"))
_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


class Network:
    """One namespace with the three bridges, where Ceph and the initiator are too, and one for each host."""

    def __init__(self) -> None:
        self.parts = self.netns("parts")

    def netns(self, host: str) -> str:
        return f"sanh-{os.getpid()}-{start_time(os.getpid())}-{host}"

    def start(self) -> None:
        """Make them, after what a killed run left has been removed."""
        for path in Path("/run/netns").glob("sanh-*"):
            _, pid, started, *_ = path.name.split("-")
            if start_time(int(pid)) != started:
                run(["ip", "netns", "delete", path.name])
        run(["ip", "netns", "add", self.parts])
        run(["ip", "-n", self.parts, "link", "set", "lo", "up"])
        for number, bridge in enumerate(BRIDGES):
            run(["ip", "-n", self.parts, "link", "add", bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0"])
            run(["ip", "-n", self.parts, "address", "add", f"10.{number}.0.1/24", "dev", bridge])
            run(["ip", "-n", self.parts, "link", "set", bridge, "up"])

    def plug(self, host: str, last: int) -> None:
        """A namespace for the host, with eth0 to eth2, each 10.N.0.`last`."""
        name = self.netns(host)
        run(["ip", "netns", "add", name])
        run(["ip", "-n", name, "link", "set", "lo", "up"])
        for number, bridge in enumerate(BRIDGES):
            port, eth = f"{host}-{number}", f"eth{number}"
            run(["ip", "-n", self.parts, "link", "add", port, "type", "veth", "peer", "name", eth, "netns", name])
            run(["ip", "-n", self.parts, "link", "set", port, "master", bridge, "up"])
            run(["ip", "-n", name, "address", "add", f"10.{number}.0.{last}/24", "dev", eth])
            run(["ip", "-n", name, "link", "set", eth, "up"])

    def unplug(self, host: str) -> None:
        if (Path("/run/netns") / self.netns(host)).exists():
            run(["ip", "netns", "delete", self.netns(host)])

    def close(self) -> None:
        for host in (*NAMES, "parts"):
            self.unplug(host)


class Host:
    """One of the three: `boot`, `type` what the guide says, `kill` as a power failure does."""

    def __init__(self, name: str, folder: Path, network: Network) -> None:
        self.name, self._folder, self._network = name, folder, network
        self.root = folder / name / "root"
        self._nspawn: Daemon | None = None
        self._group = f"{network.netns(name)}"

    @property
    def address(self) -> str:
        return f"10.0.0.{11 + NAMES.index(self.name)}"

    def boot(self) -> None:
        """Returns once systemd says that everything it was to start has been started."""
        if not self.root.exists():
            self._install()
        for hierarchy in _HIERARCHIES:
            (hierarchy / self._group).mkdir(exist_ok=True)
        enter = "; ".join(f"echo $$ > {hierarchy / self._group}/cgroup.procs" for hierarchy in _HIERARCHIES)
        words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--machine={self.name}"]
        words += [f"--directory={self.root}", f"--network-namespace-path=/run/netns/{self._network.netns(self.name)}"]
        words += ["--capability=all", "--private-users=no", "--resolv-conf=off", "--timezone=off", "--console=pipe"]
        words += [f"--bind-ro={HELD / 'wheels'}:/srv/wheels"]
        log = self._folder / f"{self.name}.log"
        env = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "SYSTEMD_NSPAWN_LOCK": "0"}
        self._nspawn = spawn(self.name, ["bash", "-c", f"{enter}; exec {' '.join(words)}"], log=log, env=env)

        def booted() -> bool:
            assert self._nspawn is not None, f"{self.name} is off"
            assert self._nspawn.alive, f"{self.name} ended: {log.read_text()[-3000:]}"
            return self.state() in {"running", "degraded"}

        waited(booted, within_s=BOOT_S, what=f"{self.name} boots: {log}", every_s=0.5)

    def state(self) -> str:
        """What `systemctl is-system-running` says; empty while it cannot be asked."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [*self._inside(), "systemctl", "is-system-running"], capture_output=True, text=True, timeout=20, check=False
            )
            return done.stdout.strip()
        return ""

    def type(self, block: str, *, env: Mapping[str, str], password: str, directory: str = "/root") -> str:
        """What the block prints at a terminal of root's; the password is typed where one is asked for."""
        script = f"set -euo pipefail; cd {directory}\n{block}"
        (self.root / "srv/block.sh").write_text(script)
        words = [*self._inside(env), "bash", "/srv/block.sh"]
        shell: Any = pexpect.spawn(words[0], words[1:], timeout=BLOCK_S, encoding="utf-8", dimensions=(50, 200))
        printed = ""
        while shell.expect([r"(?:[Pp]assword[\w ]*|Enter it again): ", pexpect.EOF]) == 0:
            printed += shell.before + shell.after
            shell.sendline(password)
        printed += shell.before
        shell.close()
        assert shell.exitstatus == 0, f"{self.name}: {block}\n{printed}"
        return str(printed)

    def kill(self) -> None:
        """As if the power had failed."""
        if self._nspawn is not None:
            for process in [*family(self._nspawn.pid), self._nspawn]:
                process.kill()
            self._nspawn = None
        for hierarchy in _HIERARCHIES:
            group = hierarchy / self._group
            below = [path for path in group.rglob("*") if path.is_dir()] if group.exists() else []
            for folder in [*sorted(below, reverse=True), group]:
                waited(partial(_removed, folder), within_s=10, what=f"{folder} empties")

    def scrap(self) -> None:
        """Nothing of the host is left: what it wrote is gone too."""
        self.kill()
        if os.path.ismount(self.root):
            run(["umount", "--lazy", str(self.root)])
        if (self._folder / self.name).exists():
            run(["rm", "-rf", "--one-file-system", str(self._folder / self.name)])
        self._network.unplug(self.name)

    def _install(self) -> None:
        for name in ("root", "upper", "work"):
            (self._folder / self.name / name).mkdir(parents=True)
        at = self._folder / self.name
        layers = f"lowerdir={HELD / 'root'},upperdir={at / 'upper'},workdir={at / 'work'}"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)])
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        for unit in ("systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service"):
            (self.root / "etc/systemd/system" / unit).symlink_to("/dev/null")  # its network is made from outside
        known = "".join(f"10.0.0.{11 + number} {name}\n" for number, name in enumerate(NAMES))
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{known}10.0.0.13 db.example\n10.0.0.1 hooks.example\n")
        (self.root / "etc/pip.conf").write_text(
            "[global]\nno-index = true\nfind-links = /srv/wheels\n[install]\nno-compile = true\n"
        )
        self._network.plug(self.name, 11 + NAMES.index(self.name))

    def _inside(self, env: Mapping[str, str] | None = None) -> list[str]:
        assert self._nspawn is not None, f"{self.name} is off"
        below = [process for process in family(self._nspawn.pid) if process.name == "systemd"]
        assert below, f"{self.name} has no init yet"
        chosen = [f"{name}={value}" for name, value in {**_ENV, **(env or {})}.items()]
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        return ["nsenter", f"--target={below[0].pid}", *spaces, "env", "-i", *chosen]


class Hosts:
    """The three, their network, and what they write in a folder."""

    def __init__(self, folder: Path) -> None:
        self.network = Network()
        self.by_name = {name: Host(name, folder, self.network) for name in NAMES}

    def start(self) -> None:
        self.network.start()
        for host in self.by_name.values():
            host.boot()

    def close(self) -> None:
        for host in self.by_name.values():
            host.scrap()
        self.network.close()


def _removed(group: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            group.rmdir()
        except OSError:
            return False
    return True
