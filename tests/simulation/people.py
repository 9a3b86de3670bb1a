"""Who uses a simulated installation: an operator with requests, and initiators that write without end."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from api.disks import DiskChange, Source
from api.routes import assignments, disks, gateways, marks, operations, snapshots
from api.routes.assignments import NewAssignment
from api.routes.disks import NewDisk
from api.routes.gateways import Drain
from api.routes.marks import NewMarks
from api.routes.snapshots import NewSnapshot
from iscsi_worker.targets.memory import MemoryOperation, MemorySession
from sanderling.errors import TargetFailed
from sanderling.model.disks import Access, Disk
from tests.simulation.invariants import block_of, number_of
from tests.simulation.seams import FRONT
from tests.simulation.threads import Event

if TYPE_CHECKING:
    from tests.simulation.world import World

INITIATOR: Final = "iqn.2026-11.io.sanderling.tests:initiator"
DISKS_MAX: Final = 4
KINDS: Final = (
    *("move", "move", "move", "average", "drain", "undrain", "mark"),
    *("stop", "start", "start", "delete", "rename", "grow", "admit", "cancel"),
    *("snapshot", "unsnapshot", "roll_back", "clone"),
)
ABOUT_SNAPSHOTS: Final = ("snapshot", "snapshot", "unsnapshot", "roll_back", "clone", "start", "delete", "cancel")
KEEPERS: Final = 0.25  # of the operators ask for no other kinds, so that one snapshot meets several requests
REPEATS_MAX: Final = 8


class Operator:
    """Asks for this and that, one thing after the other; repeats what was not answered, under the same key."""

    def __init__(self, world: "World") -> None:
        self.world, self.rng = world, world.rng
        self._made = 0
        kinds = ABOUT_SNAPSHOTS if self.rng.random() < KEEPERS else KINDS
        self._kinds = [kind for kind in kinds if self.rng.random() < 0.5] or ["move"]
        self.stopped = False

    def work(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            self._ask(*self._create())
        while not self.stopped:
            self.world.scheduler.sleep(self.rng.expovariate(1 / 2.0))
            request = None if self.stopped else self._request()
            if request is not None:
                self._ask(*request)

    def _ask(self, what: str, body: str, route: Callable[..., Any]) -> None:
        self.world.asked[what] += 1
        key = f"{what}-{self.rng.getrandbits(48):012x}"
        for _ in range(REPEATS_MAX):
            answer = self.world.ask(f"/v1/{what}", body, key, route)
            if answer is not None and getattr(answer, "status", 0) != 503:
                return
            self.world.scheduler.sleep(self.rng.uniform(0.5, 3.0))

    def _request(self) -> tuple[str, str, Callable[..., Any]] | None:
        known = self.world.disks()
        kind = "create" if len(known) < DISKS_MAX and self.rng.random() < 0.1 else self.rng.choice(self._kinds)
        if kind == "create":
            return self._create()
        chosen = self.rng.choice(known) if known else None
        if kind in {"drain", "undrain", "average", "cancel"} or chosen is None:
            return self._elsewhere(kind)
        name = chosen.name
        match kind:
            case "start":
                return kind, name, lambda context, caller, change: disks.start(name, context, caller, change)
            case "stop":
                return kind, name, lambda context, caller, change: disks.stop(name, context, caller, change)
            case "delete":
                return (
                    kind,
                    name,
                    lambda context, caller, change: disks.delete(name, context, caller, change, force=True, confirm=name),
                )
            case "move":
                body = NewAssignment(planner="manual", paths=[self.rng.choice(chosen.paths).address], gateway=self._gateway())
                return (
                    kind,
                    body.model_dump_json(),
                    lambda context, caller, change: assignments.create(body, context, caller, change),
                )
            case "mark":
                pin = self._gateway() if self.rng.random() < 0.5 else None
                marked = NewMarks(pin=pin, avoid=[])
                return (
                    kind,
                    marked.model_dump_json(),
                    lambda context, caller, change: marks.put(name, marked, context, caller, change),
                )
        return self._snapshots(kind, chosen) or self._change(kind, chosen)

    def _snapshots(self, kind: str, disk: Disk) -> tuple[str, str, Callable[..., Any]] | None:
        """Of snapshots that the image has, mostly, so that something comes of it."""
        name = f"s{self.rng.randint(0, 2)}"
        there = sorted(self.world.ceph.images[disk.image].snapshots) if disk.image in self.world.ceph.images else []
        old = self.rng.choice([*there, name])
        match kind:
            case "snapshot":
                new = NewSnapshot(name=name)
                return (
                    kind,
                    f"{disk.name} {name}",
                    lambda context, caller, change: snapshots.create(disk.name, new, context, caller, change),
                )
            case "unsnapshot":
                return (
                    kind,
                    f"{disk.name} {old}",
                    lambda context, caller, change: snapshots.delete(disk.name, old, context, caller, change),
                )
            case "roll_back" if disk.started:
                return "stop", disk.name, lambda context, caller, change: disks.stop(disk.name, context, caller, change)
            case "roll_back":
                return (
                    kind,
                    f"{disk.name} {old}",
                    lambda context, caller, change: snapshots.roll_back(
                        disk.name, old, context, caller, change, confirm=disk.name
                    ),
                )
            case "clone":
                return self._create(source=Source(disk=disk.name, snapshot=old))
        return None

    def _elsewhere(self, kind: str) -> tuple[str, str, Callable[..., Any]] | None:
        gateway = self._gateway()
        match kind:
            case "drain":
                confirm = Drain(confirm=gateway)
                return kind, gateway, lambda context, caller, change: gateways.drain(gateway, context, caller, change, confirm)
            case "undrain":
                return kind, gateway, lambda context, caller, change: gateways.undrain(gateway, context, caller, change)
            case "average":
                body = NewAssignment(planner="average")
                return kind, "", lambda context, caller, change: assignments.create(body, context, caller, change)
            case "cancel":
                return self._cancel()
        return None

    def _cancel(self) -> tuple[str, str, Callable[..., Any]] | None:
        going = [operation_id for operation_id, _ in self.world.operations(going=True)]
        if not going:
            return None
        chosen = self.rng.choice(going)
        return "cancel", chosen, lambda context, caller, _change: operations.cancel(chosen, context, caller)

    def _change(self, kind: str, disk: Disk) -> tuple[str, str, Callable[..., Any]]:
        self._made += 1
        asked: dict[str, dict[str, Any]] = {
            "rename": {"name": f"renamed-{self._made}"},
            "grow": {"size_bytes": disk.size_bytes + (1 << 20)},
            "admit": {"initiators": [INITIATOR]} if disk.allow_any else {"allow_any": True},
        }
        wanted = asked[kind]
        body = DiskChange.model_validate(wanted)
        return (
            kind,
            f"{disk.name} {json.dumps(wanted)}",
            lambda context, caller, change: disks.change(disk.name, body, context, caller, change),
        )

    def _create(self, source: Source | None = None) -> tuple[str, str, Callable[..., Any]]:
        self._made += 1
        body = NewDisk(
            name=f"disk-{self._made}",
            size_bytes=None if source else 1 << 20,
            source=source,
            access="shared" if self.rng.random() < 0.25 else "exclusive",
            paths=self.rng.randint(1, 3),
            allow_any=True,
            started=self.rng.random() < 0.9,
        )
        return "create", body.model_dump_json(), lambda context, caller, change: disks.create(body, context, caller, change)

    def _gateway(self) -> str:
        return self.rng.choice(sorted(self.world.nodes))


class Initiators:
    """One for each disk, or for each path of a shared disk, where one initiator may use one path alone."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self._known: set[tuple[str, int]] = set()
        self.written = 0

    def follow(self) -> None:
        """Begin to write to disks as they appear."""
        while True:
            for disk in self.world.disks():
                if disk.image not in self.world.ceph.images:
                    continue  # what it holds at first is not known yet
                for lba, addresses in _registers(disk):
                    if (disk.id, lba) not in self._known:
                        self._known.add((disk.id, lba))
                        writer = Initiator(self, disk, lba, addresses)
                        self.world.scheduler.spawn(self.world.outside, f"initiator of {disk.name}/{lba}", writer.write)
            self.world.scheduler.sleep(1.0)


class Initiator:
    """Writes rising numbers to one block. What is not answered is sent again, by whatever path is there."""

    def __init__(self, all_of_them: Initiators, disk: Disk, lba: int, addresses: list[str]) -> None:
        self._all, self._world, self._disk, self._lba, self._addresses = all_of_them, all_of_them.world, disk, lba, addresses
        self._session: MemorySession | None = None
        self._node = ""
        self._never = Event()

    def write(self) -> None:
        rng, watch, image = self._world.rng, self._world.watch, self._disk.image
        register = watch.registers[image, self._lba]
        while image in self._world.ceph.images or not self._all.world.ceph.images or self._is_known():
            self._world.scheduler.sleep(rng.expovariate(1 / 0.8))
            register.sent += 1
            block = block_of(register.sent)
            if not self._until_answered(partial(_write, lba=self._lba, block=block)):
                return
            watch.acknowledged(image, self._lba, register.sent)
            self._all.written += 1
            if rng.random() < 0.2:
                at_least = register.acknowledged
                answer = self._until_answered(lambda session: session.read(self._lba))
                if answer is None:
                    return
                watch.read(image, self._lba, number_of(answer), at_least)

    def _until_answered(self, send: Callable[[MemorySession], MemoryOperation]) -> bytes | None:
        """The answer; None once the disk is gone."""
        pause_s = 0.2
        while True:
            session = self._connected()
            if session is not None and FRONT not in self._world.nodes[self._node].place.cuts:
                try:
                    operation = send(session)
                except TargetFailed:
                    self._session = None
                else:
                    answer = self._answer(operation)
                    if answer is not None:
                        return answer or b"\0"
                    self._session = None
            self._world.scheduler.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.5)
            if not self._is_known():
                return None

    def _answer(self, operation: MemoryOperation) -> bytes | None:
        """None when it is lost, or nobody has answered for long."""
        deadline, poll_s = self._world.scheduler.now + self._world.rng.uniform(1.0, 6.0), 0.01
        while operation.answer is None and not operation.lost and self._world.scheduler.now < deadline:
            self._world.scheduler.sleep(poll_s)
            poll_s = min(0.4, poll_s * 2)
        return operation.answer if FRONT not in self._world.nodes[self._node].place.cuts else None

    def _connected(self) -> MemorySession | None:
        if self._session is not None:
            return self._session
        address = self._world.rng.choice(self._addresses)
        there = [node for node in self._world.nodes.values() if address in node.addresses.lent() and FRONT not in node.place.cuts]
        if not there:
            return None
        node = self._world.rng.choice(there)
        try:
            self._session, self._node = node.targets.login(address, INITIATOR), node.name
        except TargetFailed:
            return None
        return self._session

    def _is_known(self) -> bool:
        return any(disk.id == self._disk.id for disk in self._world.disks())


def _write(session: MemorySession, *, lba: int, block: bytes) -> MemoryOperation:
    return session.write(lba, block)


def _registers(disk: Disk) -> Iterator[tuple[int, list[str]]]:
    if disk.access is Access.EXCLUSIVE:
        yield 1, [path.address for path in disk.paths]
    else:
        for path in disk.paths:
            yield path.index, [path.address]
