"""P8: one worker's reconcile after one change among many keys, beside the reference, which reads them all for each path."""

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Final

from pydantic import BaseModel

from bench.consul import Counting, Key, fill, server
from bench.report import Goal, Report, Samples, extrapolated
from bench.simulated import CLOCK, NoImages, Simulated, SlowTargets, disk, quiet
from cli.lab.parts.daemons import waited
from iscsi_worker.decisions import Local, decide, free_placed, unserved
from iscsi_worker.targets.base import TargetSpec
from iscsi_worker.view import View, parse
from sanderling.coordination.changes import KEPT, Changes, Journal
from sanderling.coordination.consul import ConsulCoordination
from sanderling.model.disks import Disk
from sanderling.model.exports import Epoch, Export, ExportId, ExportPhase, Gateway
from sanderling.settings import Coordination, General, Settings, Worker

NODE: Final = "here"
HOUR_S: Final = 3600.0
WITHIN_S: Final = 120.0
REPEATS: Final = 5


@dataclass(slots=True)
class Site:
    """`local` disks served here, the other `keys` in use by other gateways with as many each."""

    settings: Settings
    coordination: Counting
    local: int
    keys: int
    targets: SlowTargets = field(init=False)
    journal: Journal = field(default_factory=lambda: Journal("conductor", "bench"))
    decided: dict[ExportId, float] = field(default_factory=dict)
    happened: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.targets = SlowTargets(NODE, start_s=0, enable_s=0, on_gate=self._decided)

    @property
    def disks(self) -> int:
        return self.keys // 2

    def set_up(self) -> None:
        """Everything served already, as a worker finds it that is started again."""
        gateways = [f"gateway-{number:03}" for number in range(1, -(-self.disks // self.local))]
        sessions = {name: self.coordination.open_session(name, check_ttl_s=HOUR_S) for name in (NODE, *gateways)}
        prefix = self.settings.coordination.prefix
        keys = [Key(f"{prefix}nodes/{name}", _json(Gateway(name=name)), sessions[name]) for name in gateways]
        full = [f"exports/{disk(number).id}/0" for number in range(KEPT)]
        for name in gateways:
            changes = Changes(since=name, count=self.local, keys=tuple(full))
            keys.append(Key(f"{prefix}{Journal('iscsi_worker', name).key}", _json(changes), sessions[name]))
        fill(self.settings.coordination.url, keys)
        fill(self.settings.coordination.url, self._keys(prefix, gateways, sessions))
        folder = Path(self.settings.sanderling.runtime_dir)
        (folder / "consul_session").write_text(sessions[NODE])

    def _keys(self, prefix: str, gateways: list[str], sessions: dict[str, str]) -> Iterator[Key]:
        for number in range(self.disks):
            each = disk(number)
            export = ExportId(each.id, 0)
            node = NODE if number < self.local else gateways[number % len(gateways)]
            client = self._served(each, export) if node == NODE else f"192.0.2.1:0/{number}"
            value = Export(generation=1, counter=1, node=node, client=client, phase=ExportPhase.SERVING, revision=1)
            yield Key(f"{prefix}disks/{each.id}", _json(each))
            yield Key(f"{prefix}{export.key}", _json(value), sessions[node])

    def _served(self, each: Disk, export: ExportId) -> str:
        store = NoImages().backing_store(each.image)
        spec = TargetSpec(export, each.iqn, each.tid, each.scsi_serial, store, (), allow_any=True, paths=each.paths)
        running = self.targets.start(spec, epoch=Epoch(1, 1), revision=1, lease_s=HOUR_S)
        self.targets.open_portal(export, each.paths[0].address)
        self.targets.ungate(export)
        return running.client

    def _decided(self, export: ExportId) -> None:
        self.decided[export] = CLOCK.monotonic()
        self.happened.set()

    def stop_one(self, number: int, writer: ConsulCoordination) -> float:
        """Seconds from the change of one disk to the worker's acting on it: it closes that export's gate."""
        each = disk(number)
        export = ExportId(each.id, 0)
        self.happened.clear()
        self._write(each, writer, revision=2, started=False)
        began = CLOCK.monotonic()
        assert CLOCK.wait(self.happened, WITHIN_S), "the worker did not notice"
        took = self.decided.pop(export) - began
        waited(lambda: self._is_left(export, writer), within_s=WITHIN_S, what=f"{export} is given up")
        return took

    def _write(self, each: Disk, writer: ConsulCoordination, *, revision: int, started: bool) -> None:
        """As a conductor does it."""
        after = each.model_copy(update={"revision": revision, "started": started})
        assert writer.put(f"disks/{each.id}", _json(after)), "somebody locks a disk's key"
        self.journal.note([f"disks/{each.id}"])
        assert self.journal.write(writer.put), "somebody locks the journal"

    def _is_left(self, export: ExportId, writer: ConsulCoordination) -> bool:
        entry = writer.get(export.key)
        return entry is not None and entry.consul_session is None


def run(*, quick: bool) -> Report:
    """Both on the same Consul, in turn. The reference's whole pass is extrapolated from single paths."""
    quiet()
    local, keys = (100, 10_000) if quick else (1_000, 100_000)
    with server() as consul, tempfile.TemporaryDirectory(prefix="bench-reconcile-") as folder:
        settings = Settings(
            sanderling=General(node=NODE, runtime_dir=folder),
            coordination=Coordination(url=consul.url, request_timeout_s=30.0),
            iscsi_worker=Worker(targets="memory", addresses="memory", announce_interval_s=0, withdraw_timeout_s=1.0),
        )
        coordination = Counting(settings.coordination, clock=CLOCK)
        site = Site(settings, coordination, local, keys)
        site.set_up()
        worker = Simulated(settings, coordination, site.targets).started()
        try:
            return _measured(site, ConsulCoordination(settings.coordination, clock=CLOCK))
        finally:
            worker.stop()


def _measured(site: Site, writer: ConsulCoordination) -> Report:
    waited(lambda: site.coordination.reads > 1, within_s=WITHIN_S, what="the worker has seen everything")
    ours, theirs = Samples("ours, change to decision", site.keys), Samples("reference, one of its paths", site.keys)
    parts = {name: Samples(f"ours: {name}", site.keys) for name in ("read", "parse", "decide")}
    keys_read = []
    _rested(site)
    site.stop_one(REPEATS, writer)  # the first is not measured: the worker may still be busy with its own beginning
    for number in range(REPEATS):
        before = _rested(site)
        ours.wall_s.append(site.stop_one(number, writer))
        keys_read.append(site.coordination.keys_read - before)
        _rested(site)
        theirs.measure(lambda number=number: _reference_path(writer, number))  # type: ignore[misc]
        _take_apart(site, writer, parts)
    whole = extrapolated(theirs.wall_s, site.local)
    report = Report(
        f"P8: one change among {site.keys:,} keys, {site.local:,} of the paths here",
        {
            "coordination": "real Consul, one server",
            "everything is read again every": f"{_read_all_s(site):g} s, beside the rest",
            "keys read from the change until it was done": int(median(keys_read)),
            "reference": f"reads everything for each of its {site.local:,} paths: {whole:.1f} s a pass, from {REPEATS} paths",
        },
        [theirs, ours, *parts.values()],
    )
    report.goals = [
        Goal("seconds from a change to the decision", ours.median_s, at_most=0.02),
        Goal("keys read for one change", median(keys_read), at_most=64),
        Goal("times faster than the reference's pass", whole / ours.median_s, at_least=25),
    ]
    return report


def _read_all_s(site: Site) -> float:
    own = site.settings.iscsi_worker
    return min(own.read_all_most_s, site.keys * own.read_all_per_key_s)


def _json(value: BaseModel) -> bytes:
    return value.model_dump_json().encode()


def _rested(site: Site) -> int:
    """Once no read has come for a while: what was read by then."""
    seen = (-1, 0.0)

    def rests() -> bool:
        nonlocal seen
        now = CLOCK.monotonic()
        if site.coordination.reads != seen[0]:
            seen = (site.coordination.reads, now)
        return now - seen[1] > 1.5

    waited(rests, within_s=WITHIN_S, what="the worker rests")
    return site.coordination.keys_read


def _reference_path(writer: ConsulCoordination, number: int) -> bool:
    """What the reference does for each path: it reads the tree and looks whether the path is locked by its node."""
    key = ExportId(disk(number + REPEATS + 1).id, 0).key
    return any(entry.key == key and entry.consul_session for entry in writer.list("").entries)


def _take_apart(site: Site, writer: ConsulCoordination, parts: dict[str, Samples]) -> None:
    """The same work once more, step by step, by the clock of one thread."""
    known = parse(writer.list(""))
    changed = f"disks/{disk(site.local - 1).id}"
    listing = parts["read"].measure(lambda: writer.list(""))
    same = [entry for entry in listing.entries if entry.key != changed]
    one = [replace(entry, modify_index=entry.modify_index + 1) for entry in listing.entries if entry.key == changed]
    assert one, f"{changed} is not there"
    view = parts["parse"].measure(lambda: parse(replace(listing, entries=(*same, *one)), known))
    parts["decide"].measure(lambda: _decisions(site, view))


def _decisions(site: Site, view: View) -> int:
    session = view.exports[ExportId(disk(site.local - 1).id, 0)].consul_session
    assert session is not None
    running = {one.export: one for one in site.targets.actual()}
    unserved(view, session, running)
    return len(decide(view, Local(NODE, session, running), free_placed(view, {})))
