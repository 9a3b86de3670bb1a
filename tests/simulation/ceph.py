"""The simulated Ceph: images in memory, a blocklist, and writes that take their time on the way to the OSDs.

What a target process has sent may land after the process is dead, however it died; only the blocklist stops it. Writes of one
client land in the order in which they were sent. So whoever serves before its predecessor is fenced loses data here as well.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from conductor.steps.descriptions import METADATA_KEY
from iscsi_worker.targets.base import Running, TargetSpec
from iscsi_worker.targets.memory import MemoryNode, MemoryOperation, MemoryProcess, MemoryStore, MemoryTargets
from sanderling.clock import Clock
from sanderling.errors import Conflict, InUse, InvalidInput, NotFound
from sanderling.images.base import NAME, BackingStore, Capacity, Image, Snapshot
from sanderling.model.disks import Disk
from sanderling.model.exports import ExportId

DRAIN_POLL_S = 0.02
WATCHED_S = 30.0  # how long Ceph lists a client that is gone and was not fenced
_CLONE_OF = "clone of"
Blocks = dict[int, bytes]


@dataclass(slots=True)
class _Image:
    size_bytes: int
    metadata: dict[str, str]
    snapshots: dict[str, tuple[Snapshot, Blocks]] = field(default_factory=dict)
    clone_of: str = ""


@dataclass(slots=True)
class _Opener:
    """A client that has an image open. `lives` tells whether it still does."""

    lives: Callable[[], bool]
    gone_since: float | None = None


@dataclass(slots=True)
class Ceph:
    """What all clients share. `data` are the blocks by image and LBA, and who is fenced."""

    clock: Clock
    data: MemoryStore = field(default_factory=MemoryStore)
    images: dict[str, _Image] = field(default_factory=dict)
    opened: defaultdict[str, dict[str, _Opener]] = field(default_factory=lambda: defaultdict(dict))
    ever: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # the clients that have had an image open
    on_rolled_back: Callable[[str], None] = lambda _image: None
    on_cloned: Callable[[str], None] = lambda _clone: None
    lock: AbstractContextManager[object] = field(default_factory=lambda: threading.Lock())  # noqa: PLW0108  of whom it is then

    def open(self, image: str, client: str, lives: Callable[[], bool]) -> None:
        self.opened[image][client] = _Opener(lives)
        self.ever[image].add(client)

    def clients(self, image: str) -> tuple[str, ...]:
        now = self.clock.monotonic()
        for client, opener in list(self.opened[image].items()):
            if opener.gone_since is None and not opener.lives():
                opener.gone_since = now
            is_over = opener.gone_since is not None and now - opener.gone_since >= WATCHED_S
            if client in self.data.fenced or is_over:
                del self.opened[image][client]
        return tuple(sorted(self.opened[image]))

    def is_started(self, image: str) -> bool:
        """Whether the disk's description on the image says so."""
        described = self.described(image)
        return described is not None and described.started

    def described(self, image: str) -> Disk | None:
        described = self.images[image].metadata.get(METADATA_KEY) if image in self.images else None
        return None if described is None else Disk.model_validate_json(described)

    def blocks(self, image: str) -> Blocks:
        return {lba: block for (name, lba), block in self.data.blocks.items() if name == image}

    def replace(self, image: str, blocks: Blocks) -> None:
        for lba in self.blocks(image):
            del self.data.blocks[image, lba]
        self.data.blocks.update({(image, lba): block for lba, block in blocks.items()})


class MemoryImages:
    """The seam of images on a simulated Ceph."""

    def __init__(self, ceph: Ceph) -> None:
        self._ceph = ceph

    def create(self, name: str, size_bytes: int, *, metadata: dict[str, str]) -> None:
        assert NAME.fullmatch(name), name
        image = self._ceph.images.setdefault(name, _Image(size_bytes, {}))
        if image.size_bytes != size_bytes:
            raise Conflict(f"image {name} is there with {image.size_bytes} bytes, not {size_bytes}", size_bytes=image.size_bytes)
        image.metadata = metadata | image.metadata

    def remove(self, name: str) -> None:
        assert NAME.fullmatch(name), name
        if name not in self._ceph.images:
            return
        if clients := self._ceph.clients(name):
            raise InUse(f"image {name} is open at {', '.join(clients)}", clients=list(clients))
        if clones := [clone for snapshot in self._get(name).snapshots for clone in self._clones(name, snapshot)]:
            raise InUse(f"snapshots of image {name} have clones: {', '.join(clones)}", clones=clones)
        self._ceph.replace(name, {})
        del self._ceph.images[name]

    def grow(self, name: str, size_bytes: int) -> None:
        image = self._get(name)
        if image.size_bytes > size_bytes:
            raise Conflict(f"image {name} has {image.size_bytes} bytes already; it cannot be made smaller")
        image.size_bytes = size_bytes

    def used_bytes(self, name: str) -> int:
        self._get(name)
        return 512 * len(self._ceph.blocks(name))

    def snapshot(self, name: str, snapshot: str) -> None:
        image = self._get(name)
        if snapshot not in image.snapshots:
            taken = Snapshot(snapshot, image.size_bytes, self._now())
            image.snapshots[snapshot] = taken, self._ceph.blocks(name)

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        found = [replace(taken, clones=tuple(self._clones(name, taken.name))) for taken, _ in self._get(name).snapshots.values()]
        return tuple(sorted(found, key=lambda one: (one.taken_at, one.name)))

    def roll_back(self, name: str, snapshot: str, *, only_if: tuple[str, str], timeout_s: float) -> None:
        key, value = only_if
        if self._get(name).metadata.get(key) != value:
            raise Conflict(f"{key} of image {name} has changed; it is not rolled back")
        taken, blocks = self._snapshot(name, snapshot)
        if clients := self._ceph.clients(name):
            raise InUse(f"image {name} is open at {', '.join(clients)}", clients=list(clients))
        self._get(name).size_bytes = taken.size_bytes
        self._ceph.replace(name, blocks)
        self._ceph.on_rolled_back(name)

    def end_roll_back(self, name: str) -> None:
        self._get(name)

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        if clones := self._clones(name, snapshot):
            raise InUse(f"snapshot {snapshot} has clones: {', '.join(clones)}", clones=clones)
        self._get(name).snapshots.pop(snapshot, None)

    def clone(self, name: str, snapshot: str, clone: str) -> None:
        taken, blocks = self._snapshot(name, snapshot)
        origin = f"{name}@{snapshot}"
        if clone not in self._ceph.images:
            self._ceph.images[clone] = _Image(taken.size_bytes, {}, clone_of=origin)
            self._ceph.replace(clone, blocks)
            self._ceph.on_cloned(clone)
        elif self._ceph.images[clone].clone_of != origin:
            raise Conflict(f"image {clone} is there, and no clone of {origin}")

    def stat(self, name: str) -> Image:
        return Image(name, self._get(name).size_bytes)

    def list(self) -> tuple[str, ...]:
        return tuple(sorted(self._ceph.images))

    def get_metadata(self, name: str) -> dict[str, str]:
        return dict(self._get(name).metadata)

    def set_metadata(self, name: str, key: str, value: str, *, expected: str | None) -> bool:
        with self._ceph.lock:
            metadata = self._get(name).metadata
            if metadata.get(key) != expected:
                return False
            metadata[key] = value
            return True

    def backing_store(self, name: str) -> BackingStore:
        return BackingStore("memory", name)

    def capacity(self) -> Capacity | None:
        return None

    def clients(self, name: str) -> tuple[str, ...]:
        self._get(name)
        return self._ceph.clients(name)

    def fence(self, client: str) -> None:
        self._ceph.data.fenced.add(_checked(client))

    def is_fenced(self, client: str) -> bool:
        return _checked(client) in self._ceph.data.fenced

    def ping(self) -> None: ...

    def touch(self) -> None: ...

    def close(self) -> None: ...

    def _now(self) -> datetime:
        return self._ceph.clock.wall()

    def _get(self, name: str) -> _Image:
        assert NAME.fullmatch(name), name
        if name not in self._ceph.images:
            raise NotFound(f"there is no image {name}")
        return self._ceph.images[name]

    def _snapshot(self, name: str, snapshot: str) -> tuple[Snapshot, Blocks]:
        snapshots = self._get(name).snapshots
        if snapshot not in snapshots:
            raise NotFound(f"image {name} has no snapshot {snapshot}")
        return snapshots[snapshot]

    def _clones(self, name: str, snapshot: str) -> Sequence[str]:
        origin = f"{name}@{snapshot}"
        return sorted(clone for clone, image in self._ceph.images.items() if image.clone_of == origin)


def _checked(client: str) -> str:
    if not client.startswith("client."):
        raise InvalidInput.of("client", f"{client!r} names no client", "give what `clients` lists")
    return client


class Network(Protocol):
    """How long an operation is on its way to the OSDs; None while it does not get there."""

    def flight_s(self, node: str) -> float | None: ...

    def after(self, seconds: float, act: Callable[[], None]) -> None: ...

    def landed(self, client: str, image: str, lba: int, data: bytes) -> None: ...

    def opened(self, process: MemoryProcess) -> None: ...


class FlyingTargets(MemoryTargets):
    """The target processes of one node, each with a client of its own at the simulated Ceph."""

    def __init__(
        self, ceph: Ceph, network: Network, node: MemoryNode, *, present: Callable[[], Collection[str]], end_poll_s: float = 0.001
    ) -> None:
        super().__init__(clock=ceph.clock, node=node, store=ceph.data, present=present)
        self._ceph, self._network, self._end_poll_s = ceph, network, end_poll_s
        self._flights: defaultdict[str, deque[tuple[MemoryProcess, MemoryOperation]]] = defaultdict(deque)

    def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
        running = super().start(spec, epoch=epoch, revision=revision, lease_s=lease_s)
        process = self._node.processes[spec.export]
        self._ceph.open(spec.backing_store.location, running.client, lambda: self._lives(process))
        return running

    def ungate(self, export: ExportId) -> None:
        process = self._living(export)
        process.gate_open = True
        self._network.opened(process)
        held, process.held[:] = list(process.held), []
        for operation in held:
            self._fly(process, operation)

    def drain(self, export: ExportId, *, timeout_s: float) -> bool:
        deadline = self._clock.monotonic() + timeout_s
        while self._living(export).in_flight:
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.wait(self._never, DRAIN_POLL_S)
        return True

    def wait_for_end(self, *, timeout_s: float) -> bool:
        deadline = self._clock.monotonic() + timeout_s
        while True:
            before, self._ran = self._ran, frozenset((one.export, one.client) for one in self.actual())
            if before - self._ran:
                return True
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.wait(self._never, min(self._end_poll_s, timeout_s))

    def on_their_way(self) -> list[tuple[str, ExportId]]:
        """The client and the export of each write that has not landed."""
        return [
            (client, process.spec.export)
            for client, flights in self._flights.items()
            for process, operation in flights
            if operation.data is not None
        ]

    def crash(self, export: ExportId) -> None:
        """The process is gone, as by SIGKILL."""
        process = self._node.processes.pop(export)
        process.lose_everything()

    def _begin(self, process: MemoryProcess, operation: MemoryOperation) -> None:
        if process.gate_open:
            self._fly(process, operation)
        else:
            process.held.append(operation)

    def _fly(self, process: MemoryProcess, operation: MemoryOperation) -> None:
        process.in_flight.append(operation)
        self._flights[process.client].append((process, operation))
        self._network.after(self._network.flight_s(self._node.name) or 0.1, lambda: self._land(process.client))

    def _land(self, client: str) -> None:
        if self._network.flight_s(self._node.name) is None:
            self._network.after(0.2, lambda: self._land(client))
            return
        process, operation = self._flights[client].popleft()
        if client in self._store.fenced:
            process.lose_everything()
            if self._lives(process):
                del self._node.processes[process.spec.export]
            return
        image = process.spec.backing_store.location
        if operation.data is not None:
            self._store.blocks[image, operation.lba] = operation.data
            self._network.landed(client, image, operation.lba, operation.data)
        if self._lives(process) and any(one is operation for one in process.in_flight):
            process.in_flight[:] = [one for one in process.in_flight if one is not operation]
            operation.answer = self._store.blocks.get((image, operation.lba), bytes(512)) if operation.data is None else b""
        else:
            operation.lost = True

    def _lives(self, process: MemoryProcess) -> bool:
        is_there = self._node.processes.get(process.spec.export) is process
        return is_there and self._clock.monotonic() < process.lease_until

    def _settle(self) -> None:
        for export, process in list(self._node.processes.items()):
            if self._clock.monotonic() >= process.lease_until:
                process.lose_everything()
                del self._node.processes[export]
