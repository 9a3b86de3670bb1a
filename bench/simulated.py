"""Gateways whose exports are simulated: real workers on real coordination, with targets that only take the time of real ones.

`python -m bench.simulated` is a process with some of them; `Gateways` starts one.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, cast
from uuid import UUID

import structlog

import rpc.oslo
from cli.lab.parts.daemons import Daemon, spawn
from iscsi_worker.addresses.memory import Memory
from iscsi_worker.targets.base import Running, TargetSpec
from iscsi_worker.targets.memory import MemoryNode, MemoryTargets
from iscsi_worker.worker import Worker
from rpc.bus import Bus, Serving
from rpc.messages import Message
from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination
from sanderling.coordination.consul import ConsulCoordination
from sanderling.garbage import collect_rarely
from sanderling.images.base import BackingStore, Images
from sanderling.model.disks import Access, Disk
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import ExportId
from sanderling.settings import Bus as BusSettings
from sanderling.settings import Coordination as CoordinationSettings
from sanderling.settings import General, Settings
from sanderling.settings import Worker as WorkerSettings

CLOCK: Final = SystemClock()
INTERFACE: Final = "eth0"
Told = Callable[[ExportId], None]


def _silent(_: ExportId) -> None: ...


def quiet() -> None:
    """Log nothing but what must not happen: thousands of lines would be what is measured. Memory is kept as a worker's process
    keeps it.
    """
    collect_rarely()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def disk(number: int, *, paths: int = 1, access: Access = Access.EXCLUSIVE, started: bool = True) -> Disk:
    """The same disk for the same number in every process."""
    where = [
        DiskPath(
            index=index,
            address=f"10.{100 + number // 65536}.{number // 256 % 256}.{number % 256}" if paths == 1 else _one_of(number, index),
            prefix_len=8,
            interface=INTERFACE,
            subnet="front",
        )
        for index in range(1, paths + 1)
    ]
    return Disk(
        id=str(UUID(int=number + 1)),
        name=f"disk-{number}",
        iqn=f"iqn.2026-11.io.sanderling:disk-{number}",
        size_bytes=1 << 30,
        access=access,
        paths=tuple(where),
        allow_any=True,
        started=started,
    )


def _one_of(number: int, index: int) -> str:
    return f"10.{110 + index}.{number // 256}.{number % 256}"


class SlowTargets(MemoryTargets):
    """Simulated targets that take as long as real ones: to start a process, and to open a portal.

    `on_gate` and `on_ungate` are told before a gate is closed and after it was opened.
    """

    def __init__(self, node: str, *, start_s: float, enable_s: float, on_gate: Told = _silent, on_ungate: Told = _silent) -> None:
        super().__init__(clock=CLOCK, node=MemoryNode(node))
        self._start_s, self._enable_s, self._on_gate, self._on_ungate = start_s, enable_s, on_gate, on_ungate
        self._nothing = threading.Event()

    def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
        CLOCK.wait(self._nothing, self._start_s)
        return super().start(spec, epoch=epoch, revision=revision, lease_s=lease_s)

    def open_portal(self, export: ExportId, address: str) -> None:
        CLOCK.wait(self._nothing, self._enable_s)
        super().open_portal(export, address)

    def probe(self, export: ExportId, *, timeout_s: float) -> bool:  # noqa: ARG002  every process lives
        return True

    def gate(self, export: ExportId) -> None:
        self._on_gate(export)
        super().gate(export)

    def ungate(self, export: ExportId) -> None:
        super().ungate(export)
        self._on_ungate(export)

    def _settle(self) -> None:
        """Nobody reads or writes here and no lease lapses: looking for that at every call would be what is measured."""

    def wait_for_end(self, *, timeout_s: float) -> bool:
        """No process ends here by itself; to look for that a thousand times a second would be what is measured."""
        return self._clock.wait(self._never, timeout_s)


class NoImages:
    """Images of which a worker needs the name alone: nothing is ever fenced that could write."""

    def backing_store(self, name: str) -> BackingStore:
        return BackingStore("memory", name)

    def clients(self, name: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def fence(self, client: str) -> None: ...

    def is_fenced(self, client: str) -> bool:  # noqa: ARG002
        return True

    def ping(self) -> None: ...

    def touch(self) -> None: ...


class _Serving:
    def stop(self) -> None: ...


class NoBus:
    """A bus on which nobody says anything."""

    def serve(self, *_: object) -> Serving:
        return _Serving()

    def notify(self, event_type: str, message: Message) -> None: ...


@dataclass(slots=True)
class Simulated:
    """One gateway. `worker` runs from `start` on in this process's threads."""

    settings: Settings
    coordination: Coordination
    targets: SlowTargets
    bus: Bus = field(default_factory=lambda: cast(Bus, NoBus()))

    def started(self) -> Worker:
        Path(self.settings.sanderling.runtime_dir).mkdir(parents=True, exist_ok=True)
        worker = Worker(
            self.settings,
            coordination=self.coordination,
            images=cast(Images, NoImages()),
            bus=self.bus,
            targets=self.targets,
            addresses=Memory(CLOCK, interfaces=(INTERFACE,)),
            clock=CLOCK,
        )
        worker.start()
        return worker


def settings(name: str, folder: Path, *, consul: str, bus: str = "") -> Settings:
    """As by default, but for time limits that a machine with two processors for fifty gateways would break."""
    return Settings(
        sanderling=General(node=name, runtime_dir=str(folder / name)),
        coordination=CoordinationSettings(url=consul, check_ttl_s=120.0, request_timeout_s=60.0),
        bus=BusSettings(url=bus or "fake://", handlers=2, probe_interval_s=60.0, send_timeout_s=30.0),
        iscsi_worker=WorkerSettings(
            targets="memory",
            addresses="memory",
            lease_s=100.0,
            renew_interval_s=10.0,
            address_lifetime_s=100,
            withdraw_timeout_s=1.0,
            store_silent_s=121.0,
            store_ask_interval_s=20.0,
            store_believed_s=60.0,
            front_probe_interval_s=10.0,
            read_all_per_key_s=0.1,
            move_linger_s=20.0,
        ),
    )


@dataclass(slots=True)
class Gateways:
    """Some gateways in a process of their own. Each gate that they open is a line in `opened`: when, and which export."""

    name: str
    folder: Path
    names: tuple[str, ...]
    consul: str
    bus: str = ""
    start_s: float = 0.0
    enable_s: float = 0.0
    daemon: Daemon | None = None

    @property
    def opened(self) -> dict[str, float]:
        """When each export's gate was opened last."""
        file = self.folder / f"{self.name}.opened"
        lines = file.read_text().splitlines() if file.exists() else []
        return {export: float(at) for at, export in (line.split() for line in lines)}

    def start(self) -> None:
        words = [sys.executable, "-m", "bench.simulated", "--name", self.name, "--folder", str(self.folder)]
        words += ["--consul", self.consul, "--bus", self.bus, "--start", str(self.start_s), "--enable", str(self.enable_s)]
        self.daemon = spawn(self.name, [*words, *self.names], log=self.folder / f"{self.name}.log")

    def kill(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()


def _run(asked: argparse.Namespace, opened: BinaryIO) -> list[Worker]:
    def stamp(export: ExportId) -> None:
        opened.write(f"{CLOCK.monotonic():.6f} {export}\n".encode())  # in one piece: it is not buffered

    workers = []
    for name in asked.names:
        configured = settings(name, asked.folder, consul=asked.consul, bus=asked.bus)
        coordination = ConsulCoordination(configured.coordination, clock=CLOCK)
        targets = SlowTargets(name, start_s=asked.start, enable_s=asked.enable, on_ungate=stamp)
        gateway = Simulated(configured, coordination, targets)
        if asked.bus:
            gateway.bus = rpc.oslo.connect(configured)
        workers.append(gateway.started())
    return workers


def main() -> None:
    """Serve until killed: what ends a simulated gateway ends it at once."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulated")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--consul", required=True)
    parser.add_argument("--bus", default="")
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--enable", type=float, default=0.0)
    asked = parser.parse_args()
    quiet()
    with (asked.folder / f"{asked.name}.opened").open("ab", buffering=0) as opened:
        workers = _run(asked, opened)
        assert workers
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        os._exit(0)


if __name__ == "__main__":
    main()
