"""What this node should do about each export: pure, from one view of the store and what runs here.

The lock says who should serve; nothing here relies on it for safety, since whoever takes an export fences the last client
first. So a view that is a little old costs time, never data.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from iscsi_worker.targets.base import Running
from iscsi_worker.view import Held, View
from sanderling.model.disks import Disk
from sanderling.model.exports import UNKNOWN_CLIENT, Connection, Epoch, ExportId, ExportPhase, Prepared, Store
from sanderling.model.fronts import standing_back, stands_back
from sanderling.model.placement import place


@dataclass(frozen=True, slots=True)
class Take:
    """Lock it (again), fence whoever served last, start its process and serve."""

    export: ExportId
    disk: Disk
    held: Held


@dataclass(frozen=True, slots=True)
class Adopt:
    """Lock what runs here already, and go on serving with the process as it is."""

    export: ExportId
    held: Held
    running: Running
    disk: Disk | None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Drain, stop and unlock what this node holds."""

    export: ExportId
    held: Held


@dataclass(frozen=True, slots=True)
class Drop:
    """Stop a process whose export belongs to somebody else by now; there is nothing to unlock."""

    export: ExportId


@dataclass(frozen=True, slots=True)
class Publish:
    """Write down who is connected: what the next owner needs to make them reconnect, and what a person asks for."""

    export: ExportId
    held: Held
    connections: tuple[Connection, ...]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start a process behind a closed gate for an export that another node serves, to be handed its lock."""

    export: ExportId
    disk: Disk
    held: Held


@dataclass(frozen=True, slots=True)
class Handing:
    """A command to hand an export on, good for one epoch."""

    epoch: Epoch
    destination: str
    operation_id: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Drain, and pass the lock to the gateway that stands ready; go on serving when that does not work."""

    export: ExportId
    held: Held
    handing: Handing
    consul_session: str
    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Activate:
    """Serve with the process that stands ready: the lock is ours and its value names this process's client."""

    export: ExportId
    held: Held
    running: Running


Action = Take | Adopt | GiveUp | Drop | Publish | Prepare | HandOver | Activate


@dataclass(frozen=True, slots=True)
class Local:
    """This node's side. `busy` exports have an action under way and are left alone; `sick` ones run but do not answer,
    `refused` ones could not be taken a moment ago.

    `member` says that this node's gateway key is held, so that others count it in; `cut_off` names the interfaces of the paths on
    which initiators cannot reach it, `store` says how it stands with the image store.
    `wanted`, `unwanted` and `handing` are what commands asked for, each good for one epoch only.
    """

    node: str
    consul_session: str
    running: Mapping[ExportId, Running] = field(default_factory=dict)
    connections: Mapping[ExportId, tuple[Connection, ...]] = field(default_factory=dict)
    busy: Collection[ExportId] = ()
    sick: Collection[ExportId] = ()
    refused: Collection[ExportId] = ()
    wanted: Mapping[ExportId, Epoch] = field(default_factory=dict)
    unwanted: Mapping[ExportId, Epoch] = field(default_factory=dict)
    handing: Mapping[ExportId, Handing] = field(default_factory=dict)
    member: bool = True
    withdrawing: bool = False
    cut_off: Collection[str] = ()
    store: Store = field(default_factory=Store)

    def stands_back(self, view: View, disk: Disk, export: ExportId) -> bool:
        """Whether the export should be left to others, since this node cannot serve it and one of them can."""
        return stands_back(view.gateways, self.node, disk, export, self.cut_off, self.store)


def decide(view: View, local: Local, placed: Mapping[ExportId, str], exports: Collection[ExportId] | None = None) -> list[Action]:
    """At most one action per export; the same arguments always give the same actions. `placed` is from `free_placed`.

    About all exports that concern this node, or about these alone.
    """
    if exports is None:
        exports = {*view.held_by(local.consul_session), *view.held_by(None), *local.running, *local.wanted}
    return list(_decided(view, local, placed, exports))


def named(view: View, keys: Iterable[str]) -> list[ExportId] | None:
    """The exports that these keys are about; None when their change may concern others, too.

    It may when it is about a gateway or about marks, or while an export waits to be taken, which is placed by how all others are.
    """
    if any(_started(view, export) for export in view.held_by(None)):
        return None
    found: dict[ExportId, None] = {}
    for key in keys:
        noun, _, rest = key.partition("/")
        if noun == "disks" and rest in view.disks:
            found |= dict.fromkeys(ExportId(rest, index) for index in view.disks[rest].export_indexes)
        elif noun == "exports" and (export := ExportId.named(rest)):
            found[export] = None
        else:
            return None
    return list(found)


def free_placed(view: View, passed_over: Mapping[ExportId, Collection[str]]) -> dict[ExportId, str]:
    """Where each free export that should be served belongs, as every node computes it from this view."""
    free = [export for export in view.held_by(None) if _started(view, export)]
    if not free:
        return {}
    return place(
        free,
        standing_back(view.gateways, view.disks, free),
        {other: held.export.node for export in free for other, held in view.siblings(export).items()},
        load=view.loads,
        passed_over=passed_over,
        preferred={export: view.exports[export].export.next for export in free},
        marks=view.marks,
    )


def prepared_here(view: View, local: Local) -> dict[ExportId, Prepared]:
    """What stands ready here to be handed over: started for the epoch after the present one, its gate never opened."""
    found = {}
    for export, running in local.running.items():
        held = view.exports.get(export)
        if held is None or held.consul_session in {None, local.consul_session} or export in local.busy:
            continue  # busy: it is being started, and its client is not known before that is over
        if _is_ready(view, local, held, running):
            found[export] = Prepared(generation=held.export.generation, counter=held.export.counter, client=running.client)
    return found


def unserved(view: View, consul_session: str, running: Mapping[ExportId, Running]) -> list[ExportId]:
    """Exports that were served before and should be now, but are free, or this node's without a process that serves."""

    def serves(export: ExportId) -> bool:
        here = running.get(export)
        return here is not None and here.gate_open

    down = [*view.held_by(None), *(export for export in view.held_by(consul_session) if not serves(export))]
    return [one for one in down if view.exports[one].export.phase is not ExportPhase.FREE and _started(view, one)]


def _started(view: View, export: ExportId) -> bool:
    disk = view.disks.get(export.disk_id)
    return disk is not None and disk.started and export.index in disk.export_indexes


def _decided(view: View, local: Local, placed: Mapping[ExportId, str], exports: Collection[ExportId]) -> Iterator[Action]:
    for export in sorted(exports):
        held = view.exports.get(export)
        if export in local.busy or held is None:
            continue  # a key that is gone does not end service: the store may have been lost
        if held.consul_session == local.consul_session:
            action = _own(view, local, export, held)
        elif held.consul_session is None:
            action = _free(view, local, export, held, placed.get(export))
        else:
            action = _others(view, local, export, held)
        if action:
            yield action


def _others(view: View, local: Local, export: ExportId, held: Held) -> Action | None:
    disk, running = view.disks.get(export.disk_id), local.running.get(export)
    if running is not None:
        return None if _is_ready(view, local, held, running) else Drop(export)
    if disk is None or not _may_take(view, local, export, disk):
        return None
    return Prepare(export, disk, held) if local.wanted.get(export) == held.export.epoch else None


def _is_ready(view: View, local: Local, held: Held, running: Running) -> bool:
    disk = view.disks.get(running.export.disk_id)
    return (
        not running.gate_open
        and running.epoch == held.export.epoch.following
        and local.wanted.get(running.export) == held.export.epoch
        and disk is not None
        and disk.started
        and disk.export_revision == running.revision
        and not local.withdrawing
        and not local.store.is_lost
        and not local.stands_back(view, disk, running.export)
    )


def _own(view: View, local: Local, export: ExportId, held: Held) -> Action | None:
    disk, running = view.disks.get(export.disk_id), local.running.get(export)
    if local.withdrawing or (disk and not disk.started) or _is_meant(local.unwanted.get(export), held):
        return GiveUp(export, held)
    if disk is None:
        return None if running and running.gate_open else GiveUp(export, held)
    if local.stands_back(view, disk, export):
        return GiveUp(export, held)
    serves = (
        running is not None
        and running.gate_open
        and running.client == held.export.client
        and running.revision == disk.export_revision
        and held.export.phase is ExportPhase.SERVING
        and export not in local.sick
    )
    if serves:
        handing = local.handing.get(export)
        if handing is not None and _is_meant(handing.epoch, held):
            gateway = view.gateways.get(handing.destination)
            prepared = gateway.prepared.get(str(export)) if gateway else None
            if prepared is not None and prepared.epoch == held.export.epoch:
                return HandOver(export, held, handing, view.sessions[handing.destination], prepared)
        seen = local.connections.get(export, held.export.connections)
        return None if seen == held.export.connections else Publish(export, held, seen)
    if running is not None and _was_handed(held, running, disk):
        return Activate(export, held, running)
    return GiveUp(export, held) if export in local.refused else Take(export, disk, held)


def _is_meant(epoch: Epoch | None, held: Held) -> bool:
    return epoch is not None and epoch == held.export.epoch


def _was_handed(held: Held, running: Running, disk: Disk) -> bool:
    """Whether this process was started for this very epoch, and has yet to say that it serves."""
    return (
        running.epoch == held.export.epoch
        and running.client == held.export.client
        and running.revision == disk.export_revision
        and held.export.phase is ExportPhase.TAKING
    )


def _free(view: View, local: Local, export: ExportId, held: Held, chosen: str | None) -> Action | None:
    disk, running = view.disks.get(export.disk_id), local.running.get(export)
    if running is not None:
        if local.store.is_lost and disk is not None and local.stands_back(view, disk, export):
            return Drop(export)  # whether it was fenced meanwhile cannot be known here; who takes it fences first
        if running.gate_open and held.export.client == running.client:
            return Adopt(export, held, running, disk)
        if running.gate_open and held.export.client == UNKNOWN_CLIENT:
            return Adopt(export, held, running, disk) if disk else None  # without its image's name nobody can be fenced
        return Drop(export)
    if disk is None or not _may_take(view, local, export, disk):
        return None
    if held.export.client == UNKNOWN_CLIENT and _waits_for_sibling(view, export):
        return None
    if chosen == local.node or local.wanted.get(export) == held.export.epoch:
        return Take(export, disk, held)
    return None


def _may_take(view: View, local: Local, export: ExportId, disk: Disk) -> bool:
    return (
        _started(view, export)
        and local.member
        and not local.withdrawing
        and export not in local.refused
        and not local.store.is_lost
        and not local.stands_back(view, disk, export)
    )


def _waits_for_sibling(view: View, export: ExportId) -> bool:
    """Exports of one disk whose clients are unknown are taken in turn: who fences the rest must know its siblings by name."""
    before = (ExportId(export.disk_id, index) for index in view.disks[export.disk_id].export_indexes if index < export.index)
    return any(view.exports[one].export.client == UNKNOWN_CLIENT for one in before if one in view.exports)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A free export: the gateways that have had their chance at it, and since when the present one has its own."""

    since: float
    passed_over: frozenset[str] = frozenset()


def wait_on(
    waiting: Mapping[ExportId, Waiting], placed: Mapping[ExportId, str], *, now: float, grace_s: float
) -> dict[ExportId, Waiting]:
    """What is known of the free exports a moment later: one left free for `grace_s` by its gateway goes to the next choice."""
    after = {}
    for export, gateway in placed.items():
        known = waiting.get(export, Waiting(now))
        if now - known.since >= grace_s:
            known = Waiting(now, known.passed_over | {gateway})
        after[export] = known
    return after
