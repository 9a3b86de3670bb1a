"""What must hold at every step of a simulation, and what must be so once all faults are mended.

I1 one unfenced server per path. I2 no acknowledged write lost or undone. I3 each accepted operation ends, once. I4 a command of
an old epoch has no effect. I5 nothing is left over, and what is started is served, once. I6 nothing happens to an image that
nobody asked for. Beside these: one leader, and no failure that the code does not know.
"""

import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from iscsi_worker.targets.memory import MemoryProcess
from sanderling.model.disks import Disk, DiskState, image_of
from sanderling.model.exports import Export, ExportId, ExportPhase
from sanderling.model.operations import OperationKind, OperationState, StepState
from sanderling.records import disks
from sanderling.records.tables import DiskRow, EventRow, OperationRow
from tests.simulation.threads import Task

if TYPE_CHECKING:
    from tests.simulation.world import World

TERMINAL: Final = {"operation.succeeded", "operation.failed", "operation.cancelled", "operation.rolled_back"}
Kinds = frozenset[OperationKind]
ALLOWED: Final[dict[str, Kinds]] = {
    "create": frozenset({OperationKind.CREATE_DISK}),
    "remove": frozenset({OperationKind.CREATE_DISK, OperationKind.DELETE_DISK}),
    "grow": frozenset({OperationKind.CREATE_DISK, OperationKind.CHANGE_DISK}),
    "snapshot": frozenset({OperationKind.CREATE_SNAPSHOT}),
    "roll_back": frozenset({OperationKind.ROLL_BACK_DISK}),
    "remove_snapshot": frozenset({OperationKind.CREATE_SNAPSHOT, OperationKind.DELETE_SNAPSHOT}),
    "clone": frozenset({OperationKind.CREATE_DISK}),
}


class Violated(Exception):
    """An invariant does not hold: the schedule ends here."""


@dataclass(slots=True)
class Register:
    """One block, which one initiator writes: the newest number it has sent, and the newest that was acknowledged to it.

    Numbers up to `undone` were taken back when the disk was rolled back, whenever the initiator hears of their writes.
    """

    sent: int = 0
    acknowledged: int = 0
    undone: int = 0


@dataclass(slots=True)
class Watch:
    """Looks on. The first thing that does not hold is raised in the simulation's own thread."""

    world: "World"
    registers: defaultdict[tuple[str, int], Register] = field(default_factory=lambda: defaultdict(Register))
    epochs: defaultdict[str, list[tuple[float, tuple[int, int]]]] = field(default_factory=lambda: defaultdict(list))
    found: list[str] = field(default_factory=list)
    past: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    gates_changed: bool = False

    def violated(self, what: str) -> None:
        self.found.append(what)

    def step(self) -> None:
        """After each step of the simulation. Only the opening of a gate can make two of them open."""
        if self.gates_changed:
            self.gates_changed = False
            self._one_gate()
        leading = 0
        for candidate in self.world.candidates.values():
            leading += candidate.leads
        if leading > 1:
            self.violated("two lead at once")
        if self.found:
            raise Violated(self.found[0])

    def died(self, task: Task, error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        self.violated(f"{task.process.name}: {task.name} ended by {error!r} ({where.filename}:{where.lineno})")

    def _one_gate(self) -> None:
        now, fenced, open_now = self.world.scheduler.now, self.world.ceph.data.fenced, dict[ExportId, MemoryProcess]()
        for node in self.world.nodes.values():
            for export, process in node.memory.processes.items():
                if process.gate_open and process.lease_until > now and process.client not in fenced:
                    other = open_now.setdefault(export, process)
                    if other is not process:
                        self.violated(f"I1 {export}: the gates of {other.client} and {process.client} are both open")

    def opened(self, process: MemoryProcess, in_flight: Iterable[tuple[str, ExportId]]) -> None:
        """A gate is opened while these writes, by client and export, are on their way. Those of the export's siblings may be."""
        self.gates_changed = True
        fenced = self.world.ceph.data.fenced
        for client, export in in_flight:
            if export == process.spec.export and client not in {process.client, *fenced}:
                self.violated(f"I1 {export}: opened for {process.client} while writes of {client} are on their way")

    def landed(self, client: str, image: str, lba: int, number: int) -> None:
        known = self.registers[image, lba]
        if client in self.past[image]:
            self.violated(f"I2 {image}/{lba}: write {number} of {client} landed after the disk was rolled back")
        known.undone = min(known.undone, number - 1)
        if number < known.acknowledged:
            self.violated(f"I2 {image}/{lba}: write {number} of {client} landed after {known.acknowledged} was acknowledged")

    def acknowledged(self, image: str, lba: int, number: int) -> None:
        known = self.registers[image, lba]
        if number <= known.undone:
            return
        known.acknowledged = max(known.acknowledged, number)
        self._stored(image, lba, known)

    def read(self, image: str, lba: int, number: int, at_least: int) -> None:
        if number < min(at_least, self.registers[image, lba].acknowledged):
            self.violated(f"I2 {image}/{lba}: read {number} after {at_least} was acknowledged")

    def rolled_back(self, image: str) -> None:
        """It holds what a snapshot did; whoever had it open before writes to it no more."""
        if self.world.ceph.is_started(image):
            self.violated(f"I2 {image} was rolled back while it is started")
        self.past[image] = set(self.world.ceph.ever[image])
        for (name, lba), known in self.registers.items():
            if name == image:
                known.acknowledged, known.undone = number_of(self.world.ceph.data.blocks.get((image, lba), b"")), known.sent

    def cloned(self, clone: str) -> None:
        """It begins with what the snapshot holds, and its initiator goes on from there."""
        for lba, block in self.world.ceph.blocks(clone).items():
            known = self.registers[clone, lba]
            known.sent = known.acknowledged = number_of(block)

    def _stored(self, image: str, lba: int, known: Register) -> None:
        stored = number_of(self.world.ceph.data.blocks.get((image, lba), b""))
        if stored < known.acknowledged and image in self.world.ceph.images:
            self.violated(f"I2 {image}/{lba}: {known.acknowledged} was acknowledged, {stored} is stored")

    def wrote(self, key: str, value: bytes) -> None:
        """An export's key has this value now. Of a disk that is started its epoch grows, also when coordination was lost: nobody
        may be handed one for the second time. (Keys that were lost of a disk that stops are made again so that who serves it is
        told to stop; nobody takes those.)
        """
        exported = Export.model_validate_json(value)
        epoch = exported.epoch
        history = self.epochs[key]
        if not history or history[-1][1] != epoch:
            if history and epoch < history[-1][1] and (exported.node or self._is_to_run(key.split("/")[1])):
                self.violated(f"I4 {key}: the epoch went back from {history[-1][1]} to {epoch}")
            history.append((self.world.scheduler.now, epoch))

    def _is_to_run(self, disk_id: str) -> bool:
        """Neither its image nor the copy that workers go by says that it stops."""
        copy = self.world.coordination._store.entries.get(f"disks/{disk_id}")
        told = copy is None or Disk.model_validate_json(copy.value).started
        return told and self.world.ceph.is_started(image_of(disk_id))

    def delivered(self, answer: Callable[[], dict[str, Any]], method: str, payload: Any) -> None:
        """A handler takes a message; a command must be for an epoch that is, or was while it was looked at, in force."""
        began = self.world.scheduler.now
        said = answer()
        if method.startswith("export.") and "ok" in said:
            key = ExportId(payload["disk_id"], payload["index"]).key
            history, asked = self.epochs[key], (payload["generation"], payload["counter"])
            since = [epoch for at, epoch in history if at >= began] + [epoch for at, epoch in history if at < began][-1:]
            if asked not in since:
                self.violated(f"I4 {method} for epoch {asked} of {key} was taken; in force: {since}")

    def authorised(self, effect: str, image: str) -> None:
        """Something happens to an image: somebody must have asked for it."""
        if effect not in ALLOWED:
            return
        asked = {kind for _, kind in self.world.operations(of=image.removeprefix(image_of("")))}
        if not asked & ALLOWED[effect]:
            self.violated(f"I6 {effect} of {image}, which no operation asked for")

    def unrest(self) -> list[str]:
        """What is not yet as it must be at the end; empty when all is."""
        if going := self.world.operations(going=True):
            return [f"I3 {kind} {operation_id} has not ended" for operation_id, kind in going]
        return [*self._operations(), *self._leftovers()]

    def _operations(self) -> Iterable[str]:
        with self.world.looking() as session:
            rows = {row.id: row for row in session.scalars(select(OperationRow))}
            ends = defaultdict[str, list[str]](list)
            for event in session.execute(select(EventRow.kind, EventRow.operation_id).where(EventRow.kind.in_(TERMINAL))):
                ends[event.operation_id].append(event.kind)
        for lost in sorted(self.world.accepted - rows.keys()):
            yield f"I3 operation {lost} was accepted and is not recorded"
        for operation in rows.values():
            if len(ends[operation.id]) != 1:
                yield f"I3 {operation.kind} {operation.id} ended {len(ends[operation.id])} times: {ends[operation.id]}"
            has_clones = "clones" in (operation.problem or {}).get("context", {})
            if has_clones and (operation.kind, operation.state) == (OperationKind.DELETE_DISK, OperationState.FAILED):
                yield f"I3 {operation.kind} {operation.id} failed half-way for clones that it could have looked for"

    def _leftovers(self) -> Iterable[str]:
        with self.world.looking() as session:
            known = [(disks.describe(row), DiskState(row.state)) for row in session.scalars(select(DiskRow))]
        served = {disk.id: disk for disk, state in known if disk.started and state is DiskState.STARTED}
        unsure = {disk.id for disk, state in known if state is DiskState.FAILED}
        entries = {entry.key: entry for entry in self.world.coordination.list("").entries}
        processes = self._running()
        for disk in served.values():
            for export in (ExportId(disk.id, index) for index in disk.export_indexes):
                yield from _unserved(disk, export, entries.get(export.key), processes.pop(export, []))
        for export, running in processes.items():
            if export.disk_id not in unsure:
                yield f"I5 {export} runs on {[name for name, _ in running]}, and should not"
        for key in entries:
            noun, _, rest = key.partition("/")
            if noun in {"disks", "exports"} and rest.split("/")[0] not in served.keys() | unsure:
                yield f"I5 key {key} is left over"
        for image in sorted(set(self.world.ceph.images) - {disk.image for disk, _ in known}):
            yield f"I5 image {image} is left over"
        yield from self._lost_writes()
        yield from self._lost_snapshots({disk.image for disk, _ in known})
        yield from self._addresses()

    def _running(self) -> dict[ExportId, list[tuple[str, MemoryProcess]]]:
        found = defaultdict[ExportId, list[tuple[str, MemoryProcess]]](list)
        for node in self.world.nodes.values():
            for running in node.targets.actual():
                found[running.export].append((node.name, node.memory.processes[running.export]))
        return found

    def _lost_snapshots(self, images: Set[str]) -> Iterable[str]:
        """Each image has what the operations on its snapshots left, and the one that it is half rolled back to."""
        by_end = select(OperationRow).join(EventRow, EventRow.operation_id == OperationRow.id).order_by(EventRow.id)
        kinds = OperationKind.CREATE_SNAPSHOT, OperationKind.DELETE_SNAPSHOT
        left = defaultdict[str, dict[str, bool]](dict)
        with self.world.looking() as session:
            for row in session.scalars(by_end.where(EventRow.kind.in_(TERMINAL), OperationRow.kind.in_(kinds))):
                if all(step.state == StepState.PENDING for step in row.steps):
                    continue
                of_image, snapshot, made = left[image_of(row.resource_id)], row.params["snapshot"], row.kind == kinds[0]
                of_image.pop(snapshot, None)
                if row.state != OperationState.FAILED:  # else it may be there
                    of_image[snapshot] = made and row.state == OperationState.SUCCEEDED
        for image in images & self.world.ceph.images.keys():
            there = self.world.ceph.images[image].snapshots
            for snapshot, stays in left[image].items():
                if (snapshot in there) != stays:
                    yield f"I5 snapshot {snapshot} of {image} is {'lost' if stays else 'left over'}"
            described = self.world.ceph.described(image)
            if described is not None and described.rolling_back_to and described.rolling_back_to not in there:
                yield f"I5 {image} is half rolled back to {described.rolling_back_to}, which is not there"

    def _addresses(self) -> Iterable[str]:
        for node in self.world.nodes.values():
            for address in sorted(node.addresses.lent()):
                if not any(address in one.portals for one in node.memory.processes.values()):
                    yield f"I5 {node.name} has address {address} that nothing serves"

    def _lost_writes(self) -> Iterable[str]:
        ceph = self.world.ceph
        for (image, lba), register in self.registers.items():
            if image in ceph.images and number_of(ceph.data.blocks.get((image, lba), b"")) < register.acknowledged:
                yield f"I2 {image}/{lba}: {register.acknowledged} was acknowledged and is not there"


def _unserved(disk: Disk, export: ExportId, entry: Any, running: list[tuple[str, MemoryProcess]]) -> Iterable[str]:
    value = Export.model_validate_json(entry.value) if entry else None
    if value is None or entry.consul_session is None or value.phase is not ExportPhase.SERVING:
        yield f"I5 {export} is not served: {value!r}"
        return
    if len(running) != 1:
        yield f"I5 {export} runs on {[name for name, _ in running]}"
        return
    ((name, process),) = running
    addresses = {path.address for path in disk.export_paths(export.index)}
    is_right = (
        name == value.node
        and process.client == value.client
        and process.gate_open
        and process.revision == disk.export_revision
        and addresses <= set(process.portals)
    )
    if not is_right:
        yield f"I5 {export} runs on {name} as {process.client} (gate {process.gate_open}), its key says {value!r}"


def number_of(block: bytes) -> int:
    return int.from_bytes(block[:8], "big")


def block_of(number: int) -> bytes:
    return number.to_bytes(8, "big")
