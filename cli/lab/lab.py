"""The laboratory: an installation of three nodes on real parts, disks under load, and the verbs that scenarios break it with."""

import contextlib
import os
import random
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from pyroute2 import netns as namespaces

import sanderling.coordination
from cli.lab.announcements import Listener
from cli.lab.cluster import Cluster
from cli.lab.load import PATIENCE_S, Load
from cli.lab.network import Network
from cli.lab.parts.daemons import run, start_time, waited
from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination
from sanderling.errors import Problem
from sanderling.model.disks import PORTAL_PORT
from sanderling.model.exports import Epoch, Export
from sanderling.settings import Settings

CLOCK: Final = SystemClock()
NODES: Final = ("node-1", "node-2", "node-3")
DISKS: Final = ({"name": "a"}, {"name": "b"}, {"name": "c", "access": "shared", "paths": 3})
RECORDS_BYTES: Final = 64 << 20
SERVED_WITHIN_S: Final = 60.0


class LabFailed(Problem):
    """The laboratory itself could not do what a scenario asked: a result of nothing, not a finding."""

    code, status, title = "lab-failed", 500, "The laboratory failed"


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that was done, and when (CLOCK_MONOTONIC)."""

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that was not kept; `checker` is that of docs/lab.md."""

    checker: str
    what: str
    round: int = 0


@dataclass(slots=True)
class Lab:
    """Use as a context manager. One scenario after another: `begin`, rounds of faults, `end`; everything it starts it ends."""

    folder: Path
    full: bool = False
    injected: list[Injected] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)  # by the scenario itself, in seconds
    disks: dict[str, dict[str, Any]] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    listener: Listener = field(default_factory=Listener)
    network: Network = field(init=False)
    cluster: Cluster = field(init=False)
    _kept: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _never: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Lab":
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: shutil.rmtree(self.folder, ignore_errors=True))
            self.network = stack.enter_context(Network(NODES))
            with inside(self.network.initiator):
                self.listener.start("eth0")
            stack.callback(self.listener.stop)
            self.cluster = Cluster(self.folder, self.network, consul_servers=3)
            stack.enter_context(_small_filesystem(self.cluster.records_folder))
            stack.callback(self.cluster.stop)
            stack.callback(self._stop_loads)
            self.cluster.start()
            self._kept = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def begin(self, folder: Path, *, pace_s: float, patience_s: float = PATIENCE_S) -> None:
        """Fresh disks, and a load on each; journals go to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.injected, self.findings, self.accepted = [], [], []
        with ThreadPoolExecutor(len(DISKS)) as pool:
            made = pool.map(lambda wanted: self.cluster.create_disk(**wanted), DISKS)
            self.disks = {disk["name"]: disk for disk in made}
            list(pool.map(lambda name: self._start_load(name, folder, pace_s, patience_s), self.disks))

    def end(self) -> None:
        """The loads stopped, the disks gone."""
        self._stop_loads()
        with ThreadPoolExecutor(len(DISKS)) as pool:
            list(pool.map(self.cluster.delete_disk, self.disks))
        self.disks.clear()

    def stop_loads(self) -> None:
        """Read all that they have done; AssertionError when one had ended by itself."""
        with ThreadPoolExecutor(len(DISKS)) as pool:
            list(pool.map(Load.stop, self.loads.values()))

    # what scenarios do

    def did(self, what: str) -> None:
        """Note a fault that has just been injected."""
        self.injected.append(Injected(CLOCK.monotonic(), what))

    def found(self, checker: str, what: str) -> None:
        self.findings.append(Finding(checker, what))

    def ask(self, *, expected: int | None = 202) -> httpx.Response | None:
        """Ask for a small disk that is not served. What was accepted must be done in the end; the runner sees to it.

        Another answer than `expected` is a finding; None leaves it to the caller.
        """
        name = f"asked-{secrets.token_hex(4)}"
        wanted = {"name": name, "size_bytes": 4 << 20, "paths": 1, "allow_any": True, "started": False}
        try:
            answer = self.cluster.http.post("/v1/disks", json=wanted)
        except httpx.TransportError as error:
            self.found("C3", f"a creation was not answered: {error!r}")
            return None
        if answer.status_code == 202:
            self.accepted.append((name, answer.headers["Location"].rpartition("/")[2]))
        if expected is not None and answer.status_code != expected:
            self.found("C3", f"a creation was answered with {answer.status_code}, not {expected}: {answer.text[:300]}")
        return answer

    def finish(self) -> None:
        """Wait until all that was accepted is done, and remove it again. AssertionError names what is not."""
        while self.accepted:
            name, operation = self.accepted.pop()
            self.cluster.wait_operation(operation)
            self.cluster.delete_disk(name)

    def restart(self, changed: Mapping[str, Settings], *, env: Mapping[str, str] | None = None) -> None:
        """End these processes in order, run them with these settings, and return when all are ready again."""
        with ThreadPoolExecutor(len(changed)) as pool:
            list(pool.map(lambda name: self.cluster[name].terminate(), changed))
        for name, settings in changed.items():
            self.cluster[name].settings = settings
            self.cluster[name].start(env=env)
        self.cluster.wait_until_ready()

    @contextlib.contextmanager
    def without(self, names: Sequence[str]) -> Iterator[None]:
        """These processes end before the block, and run and are ready after it."""
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: self.cluster[name].terminate(), names))
        yield
        for name in names:
            self.cluster[name].start()
        self.cluster.wait_until_ready()

    def hold(self, seconds: float) -> None:
        """Let time pass."""
        CLOCK.wait(self._never, seconds)

    def span(self, quick_s: float, full_s: float) -> float:
        """How long a fault lasts: shorter in a quick run, where only a lease and a take-over must fit."""
        return full_s if self.full else quick_s

    def until(self, true: Callable[[], bool], *, within_s: float, what: str) -> None:
        """`LabFailed` when it is not within the bound."""
        try:
            waited(true, within_s=within_s, what=what, every_s=0.05)
        except AssertionError as error:
            raise LabFailed(str(error)) from error

    def owners(self) -> dict[str, str | None]:
        """Who serves each path, by address; None for one that nobody is known to serve."""
        shown = [self.cluster.http.get(f"/v1/disks/{name}").json() for name in self.disks]
        paths = [path for disk in shown for path in disk["paths"]]
        return {path["address"]: path["gateway"] if path["status"] == "serving" else None for path in paths}

    @contextlib.contextmanager
    def keys(self) -> Iterator[Coordination]:
        """What the workers and conductors keep in Consul."""
        with contextlib.closing(sanderling.coordination.connect(self.cluster.settings(), clock=CLOCK)) as coordination:
            yield coordination

    def epochs(self) -> dict[str, Epoch]:
        """The epoch of each export, by its name."""
        with self.keys() as keys:
            entries = keys.list("exports/").entries
        return {entry.key.partition("/")[2]: Export.model_validate_json(entry.value).epoch for entry in entries}

    def busy_node(self, dice: random.Random) -> str:
        """A node that a load has a session with, chosen by the dice."""
        connected, owners = self.connected(), self.owners()
        busy = sorted({owner for address, owner in owners.items() if owner and address in connected})
        if not busy:
            raise LabFailed("no load has a session")
        return dice.choice(busy)

    def busy_target(self, dice: random.Random) -> tuple[str, int, str]:
        """A target process that a load has a session with: its node, pid and export."""
        node, connected = self.busy_node(dice), self.connected()
        used = {
            f"{disk['id']}/{path['index'] if disk['access'] == 'shared' else 0}"
            for disk in self.disks.values()
            for path in disk["paths"]
            if path["address"] in connected
        }
        busy = [(node, pid, export) for pid, export in self.targets(node) if export in used]
        if not busy:
            raise LabFailed(f"no target process of {', '.join(sorted(used))} on {node}")
        return dice.choice(busy)

    def targets(self, node: str) -> list[tuple[int, str]]:
        """The target processes on the node: pid, and the name of the export."""
        found = []
        for pid in map(int, run(["ip", "netns", "pids", self.network.netns(node)]).split()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tgtd" and start_time(pid) is not None:
                    found.append((pid, Path(os.readlink(f"/proc/{pid}/cwd")).name.replace(".", "/")))
        return found

    def connected(self) -> list[str]:
        """The paths' addresses that the loads have sessions with."""
        said = run(["ss", "-Htn", "state", "established", f"dport = :{PORTAL_PORT}"], netns=self.network.initiator)
        return sorted({line.split()[3].rpartition(":")[0] for line in said.splitlines()})

    def signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    # what the checkers look at

    def follow(self) -> None:
        """Read what the loads have done by now."""
        for load in self.loads.values():
            load.follow()

    def gap(self, since: float, until: float) -> dict[str, float]:
        """The longest time without a completion, by disk."""
        self.follow()
        return {name: load.gap(since, until).length_s for name, load in self.loads.items()}

    def serve_again(self) -> float:
        """Mend everything; how long it took until all paths were served and every load went on. AssertionError: it was not."""
        healed = CLOCK.monotonic()
        self.cluster.heal()

        def served() -> bool:
            with contextlib.suppress(httpx.TransportError, KeyError):
                return all(self.owners().values())
            return False

        waited(served, within_s=SERVED_WITHIN_S, what=f"every path is served; {self._unserved}", every_s=0.05)
        for load in self.loads.values():
            load.wait_for_writes(5, within_s=SERVED_WITHIN_S)
        return CLOCK.monotonic() - healed

    @property
    def _unserved(self) -> str:
        with contextlib.suppress(httpx.TransportError, KeyError):
            return ", ".join(address for address, owner in self.owners().items() if owner is None)
        return "the API does not say"

    def _start_load(self, name: str, folder: Path, pace_s: float, patience_s: float) -> None:
        load = self.loads[name] = Load(name, folder, netns=self.network.initiator, pace_s=pace_s, patience_s=patience_s)
        disk = self.disks[name]
        load.start(disk["iqn"], [f"{path['address']}:{PORTAL_PORT}" for path in disk["paths"]])

    def _stop_loads(self) -> None:
        with contextlib.suppress(AssertionError):
            self.stop_loads()
        self.loads.clear()


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and those it starts meanwhile, live in the namespace."""
    namespaces.pushns(namespace)
    try:
        yield
    finally:
        namespaces.popns()


@contextlib.contextmanager
def _small_filesystem(folder: Path) -> Iterator[None]:
    """The folder on a file system of its own, which can be filled without harm.

    It is shared: what is unmounted above it goes from the namespaces of all processes, and lets go of its device.
    """
    run(["mount", "-t", "tmpfs", "-o", f"size={RECORDS_BYTES}", "sanderling-lab", str(folder)])
    run(["mount", "--make-shared", str(folder)])
    try:
        yield
    finally:
        while folder.is_mount():  # with whatever a scenario that could not end has left above it
            run(["umount", "--lazy", str(folder)])
