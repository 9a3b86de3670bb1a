"""Target processes that are not there: the same promises by an injected clock, for simulations and for trying things out.

A node's processes and the store's blocks are objects of their own, so that a simulated worker can be restarted over the same
node, and two nodes can serve one store.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from iscsi_worker.targets.base import Running, TargetSpec
from sanderling.clock import Clock
from sanderling.errors import TargetFailed
from sanderling.model.exports import Connection, ExportId

_POLL_S = 0.001


@dataclass(slots=True)
class MemoryStore:
    """Blocks of images by location and LBA, and the clients that may no longer reach them. `stuck` lets no operation end."""

    blocks: dict[tuple[str, int], bytes] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)
    stuck: bool = False


@dataclass(slots=True)
class MemoryOperation:
    """A read (`data` is None) or a write that an initiator sent; neither answered nor lost while it waits or is in flight."""

    lba: int
    data: bytes | None
    answer: bytes | None = None
    lost: bool = False


@dataclass(slots=True)
class MemoryProcess:
    """One export's process. Its fate is decided when somebody looks: nothing here runs by itself."""

    spec: TargetSpec
    epoch: tuple[int, int]
    revision: int
    client: str
    lease_until: float
    gate_open: bool = False
    portals: tuple[str, ...] = ()
    connections: list[Connection] = field(default_factory=list)
    held: list[MemoryOperation] = field(default_factory=list)
    in_flight: list[MemoryOperation] = field(default_factory=list)

    def lose_everything(self) -> None:
        for operation in (*self.held, *self.in_flight):
            operation.lost = True
        self.held.clear()
        self.in_flight.clear()


@dataclass(slots=True)
class MemoryNode:
    """What outlives a worker: the processes it started. `started` also makes clients unique."""

    name: str = "memory"
    processes: dict[ExportId, MemoryProcess] = field(default_factory=dict)
    started: int = 0


class MemoryTargets:
    """The processes of one simulated node. `present` tells which addresses the node has; without it any will do."""

    def __init__(
        self,
        *,
        clock: Clock,
        node: MemoryNode | None = None,
        store: MemoryStore | None = None,
        present: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._clock, self._present = clock, present
        self._node = node or MemoryNode()
        self._store = store or MemoryStore()
        self._lock = threading.RLock()
        self._never = threading.Event()
        self._ran: frozenset[tuple[ExportId, str]] = frozenset()

    def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
        with self._lock:
            self._settle()
            if spec.export in self._node.processes:
                raise TargetFailed(f"export {spec.export} has a process already", export=str(spec.export))
            self._node.started += 1
            process = MemoryProcess(
                spec, epoch, revision, f"{self._node.name}:{self._node.started}", self._clock.monotonic() + lease_s
            )
            self._node.processes[spec.export] = process
            return self._running(process)

    def open_portal(self, export: ExportId, address: str) -> None:
        with self._lock:
            process = self._living(export)
            if self._present is not None and address not in self._present():
                raise TargetFailed(f"no portal on {address}: it is not on this node", export=str(export), address=address)
            if address not in process.portals:
                process.portals += (address,)

    def ungate(self, export: ExportId) -> None:
        with self._lock:
            process = self._living(export)
            process.gate_open = True
            process.in_flight += process.held
            process.held.clear()
            self._settle()

    def gate(self, export: ExportId) -> None:
        with self._lock:
            self._living(export).gate_open = False

    def drain(self, export: ExportId, *, timeout_s: float) -> bool:
        deadline = self._clock.monotonic() + timeout_s
        while True:
            with self._lock:
                process = self._living(export)
                assert not process.gate_open, "draining behind an open gate never ends"
                if not process.in_flight:
                    return True
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.wait(self._never, _POLL_S)

    def renew(self, export: ExportId, *, lease_s: float) -> None:
        with self._lock:
            self._living(export).lease_until = self._clock.monotonic() + lease_s

    def connections(self, export: ExportId) -> tuple[Connection, ...]:
        with self._lock:
            return tuple(self._living(export).connections)

    def connected(self) -> Mapping[str, Collection[tuple[str, int]]]:
        with self._lock:
            self._settle()
            found: dict[str, set[tuple[str, int]]] = {}
            for process in self._node.processes.values():
                for one in process.connections:
                    found.setdefault(one.portal_address, set()).add((one.initiator_address, one.initiator_port))
            return found

    def probe(self, export: ExportId, *, timeout_s: float) -> bool:
        operation = MemoryOperation(0, None)
        try:
            with self._lock:
                process = self._living(export)
                self._begin(process, operation)
        except TargetFailed:
            return False
        if operation.answer is None:
            self._clock.wait(self._never, timeout_s)
        with self._lock:
            self._settle()
            for waiting in (process.held, process.in_flight):
                if operation in waiting:
                    waiting.remove(operation)
        return operation.answer is not None

    def stop(self, export: ExportId) -> None:
        with self._lock:
            process = self._node.processes.pop(export, None)
            if process is not None:
                process.lose_everything()

    def actual(self) -> tuple[Running, ...]:
        with self._lock:
            self._settle()
            return tuple(self._running(process) for _, process in sorted(self._node.processes.items()))

    def wait_for_end(self, *, timeout_s: float) -> bool:
        deadline = self._clock.monotonic() + timeout_s
        while True:
            before, self._ran = self._ran, frozenset((one.export, one.client) for one in self.actual())
            if before - self._ran:
                return True
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.wait(self._never, _POLL_S)

    def login(
        self,
        address: str,
        initiator: str,
        proved: tuple[str, str] | None = None,
        asked: tuple[str, str] | None = None,
    ) -> "MemorySession":
        """A session of that initiator on the portal at this address, which proves one CHAP name and secret and asks the target
        for another; `TargetFailed` when there is no portal, it is not let in, or it is not satisfied.
        """
        with self._lock:
            self._settle()
            for process in self._node.processes.values():
                if address in process.portals and _agree(process.spec, initiator, proved, asked):
                    connection = Connection(initiator, "192.0.2.1", 49152 + len(process.connections), address)
                    process.connections.append(connection)
                    return MemorySession(self, process)
        raise TargetFailed(f"nobody at {address} lets {initiator} in")

    def submit(self, process: MemoryProcess, operation: MemoryOperation) -> None:
        with self._lock:
            self._settle()
            if self._node.processes.get(process.spec.export) is not process:
                raise TargetFailed("the connection is gone")
            self._begin(process, operation)

    def _begin(self, process: MemoryProcess, operation: MemoryOperation) -> None:
        (process.in_flight if process.gate_open else process.held).append(operation)
        self._settle()

    def _settle(self) -> None:
        """Let happen what would have happened by now: leases lapse, operations end, fenced processes exit."""
        for export, process in list(self._node.processes.items()):
            lapsed = self._clock.monotonic() >= process.lease_until
            if lapsed or (process.in_flight and process.client in self._store.fenced):
                process.lose_everything()
                del self._node.processes[export]
            elif not self._store.stuck:
                for operation in process.in_flight:
                    self._carry_out(process, operation)
                process.in_flight.clear()

    def _carry_out(self, process: MemoryProcess, operation: MemoryOperation) -> None:
        at = (process.spec.backing_store.location, operation.lba)
        if operation.data is None:
            operation.answer = self._store.blocks.get(at, bytes(512))
        else:
            self._store.blocks[at] = operation.data
            operation.answer = b""

    def _living(self, export: ExportId) -> MemoryProcess:
        self._settle()
        process = self._node.processes.get(export)
        if process is None:
            raise TargetFailed(f"export {export} has no living process", export=str(export))
        return process

    def _running(self, process: MemoryProcess) -> Running:
        return Running(
            export=process.spec.export,
            epoch=process.epoch,
            revision=process.revision,
            client=process.client,
            portals=process.portals,
            gate_open=process.gate_open,
            lease_left_s=max(0.0, process.lease_until - self._clock.monotonic()),
            paths=process.spec.paths,
        )


def _agree(spec: TargetSpec, initiator: str, proved: tuple[str, str] | None, asked: tuple[str, str] | None) -> bool:
    chap = spec.chap
    lets_in = (spec.allow_any or initiator in spec.initiators) and (chap is None or proved == (chap.user, chap.secret))
    return lets_in and (asked is None or (chap is not None and asked == (chap.mutual_user, chap.mutual_secret)))


@dataclass(frozen=True, slots=True)
class MemorySession:
    """An initiator's session. What it sends is answered at once, later, or never; look at the operation."""

    targets: MemoryTargets
    process: MemoryProcess

    def write(self, lba: int, data: bytes) -> MemoryOperation:
        operation = MemoryOperation(lba, data)
        self.targets.submit(self.process, operation)
        return operation

    def read(self, lba: int) -> MemoryOperation:
        operation = MemoryOperation(lba, None)
        self.targets.submit(self.process, operation)
        return operation
