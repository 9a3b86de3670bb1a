"""P3: spreading the paths of half the gateways over all, beside the reference, which moves one after another.

The gateways are real workers in two processes, on a real Consul and RabbitMQ; their targets only take the time of real ones. The
moves are driven by a conductor's own runner.
"""

import contextlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import rpc.oslo
from bench import reference, simulated
from bench.consul import Key, fill, server
from bench.reference import Constants
from bench.report import Goal, Report, Samples, extrapolated
from bench.simulated import CLOCK, Gateways, NoImages
from cli.lab.parts.daemons import waited
from cli.lab.parts.rabbitmq import RabbitMQ
from conductor.runner import Runner
from conductor.steps.base import Stores
from rpc.signing import Signing
from sanderling import layouts
from sanderling.coordination.changes import Journal
from sanderling.coordination.consul import ConsulCoordination
from sanderling.images.base import Images
from sanderling.model.balance import Layout, average, distribution
from sanderling.model.disks import Access, Disk, DiskState
from sanderling.model.exports import Export, ExportId, ExportPhase
from sanderling.model.moves import MoveState
from sanderling.model.operations import OPERATIONS, OperationState
from sanderling.records import assignments, disks, moves, operations
from sanderling.records.database import Records
from sanderling.records.tables import SubnetRow
from sanderling.secrets import Keyring
from sanderling.settings import Records as RecordsSettings
from sanderling.settings import Settings

PATHS: Final = 4  # of each disk, each on a gateway of its own
START_S, ENABLE_S = 0.005, 0.02
PROCESSES: Final = 2
READY_WITHIN_S, MOVED_WITHIN_S = 900.0, 3600.0
MOVE_DEADLINE_S: Final = 600.0  # the default gives up what this machine is too slow for, and then there is nothing to compare
CONSTANTS: Final = Constants()


@dataclass(slots=True)
class Site:
    """The records and the coordination of a conductor, and the disks that are published to its gateways."""

    settings: Settings
    records: Records
    coordination: ConsulCoordination
    disks: list[Disk]

    def publish(self) -> None:
        """Into the records and into coordination, where nobody has them yet."""
        prefix, now = self.settings.coordination.prefix, self.records.now()
        with self.records.begin() as session:
            pool = {"pool_first": "10.0.0.1", "pool_last": "10.250.250.250"}
            session.add(SubnetRow(name="front", cidr="10.0.0.0/8", interface=simulated.INTERFACE, created_at=now, **pool))
            for disk in self.disks:
                disks.insert(session, disk, now=now, state=DiskState.STARTED)
        free = Export(generation=1, phase=ExportPhase.FREE).model_dump_json().encode()
        keys = [Key(f"{prefix}disks/{disk.id}", disk.model_dump_json().encode()) for disk in self.disks]
        keys += [Key(f"{prefix}{ExportId(disk.id, n).key}", free) for disk in self.disks for n in disk.export_indexes]
        fill(self.settings.coordination.url, keys)

    @property
    def layout(self) -> Layout:
        with self.records.read() as session:
            return layouts.read(session, self.coordination).layout

    def wait_until_served(self, exports: int) -> None:
        def served() -> bool:
            held = [entry for entry in self.coordination.list("exports/").entries if entry.consul_session]
            phases = [Export.model_validate_json(entry.value).phase for entry in held]
            return phases.count(ExportPhase.SERVING) == exports

        waited(served, within_s=READY_WITHIN_S, what=f"all of {exports} exports are served", every_s=1.0)

    def wait_for_gateways(self, count: int) -> None:
        def live() -> bool:
            return sum(bool(entry.consul_session) for entry in self.coordination.list("nodes/").entries) == count

        waited(live, within_s=READY_WITHIN_S, what=f"{count} gateways are live", every_s=1.0)


def run(*, quick: bool) -> Report:
    """One rebalancing of ours, and 20 moves of the reference's (fewer when quick) before and after it, on the same Consul."""
    simulated.quiet()
    gateways, exports, moved = (10, 200, 4) if quick else (50, 1000, 20)
    with _site(gateways, exports) as (site, fleet):
        ours, planned, fewest, used = _ours(site, gateways, exports, fleet)
        theirs = Samples("reference, one move", 1, _reference(site, moved // 2, CONSTANTS))
        bare = Samples("reference without sleeps, one move", 1, _reference(site, moved, CONSTANTS.without_sleeps))
        theirs.wall_s += _reference(site, moved - moved // 2, CONSTANTS)
    whole_s = ours[0].median_s
    whole = extrapolated(theirs.wall_s, planned, fixed_s=CONSTANTS.fixed_s)
    without = extrapolated(bare.wall_s, planned)
    own = site.settings.iscsi_worker
    report = Report(
        f"P3: {exports:,} paths on {gateways // 2} of {gateways} gateways, spread over all: {planned} moves",
        {
            "gateways": f"workers in {PROCESSES} processes, start {START_S:g} s, enable {ENABLE_S:g} s, real Consul and RabbitMQ",
            "processors": os.cpu_count(),
            "processor seconds used while the moves were made": ", ".join(f"{name} {spent:.1f}" for name, spent in used.items()),
            "moves per gateway at once": site.settings.conductor.moves_per_gateway,
            "beside the moves each gateway": f"asks for its peers every {own.front_probe_interval_s:g} s, reads everything "
            f"again after {own.read_all_per_key_s:g} s for each key",
            "reference": CONSTANTS.printed("drop_sessions_s", "batch_s", "poll_s", "show_s") + ", no ssh",
            "extrapolated from": f"{len(theirs.wall_s)} moves: {whole:.0f} s, without sleeps {without:.1f} s",
        },
        [theirs, bare, *ours],
    )
    report.goals = [
        Goal("seconds until all was even", whole_s, at_most=15),
        Goal("moves more than the lower bound", planned - fewest, at_most=0),
        Goal("times faster than the reference", whole / whole_s, at_least=75),
        Goal("times faster than the reference without sleeps", without / whole_s, at_least=8),
    ]
    return report


@contextlib.contextmanager
def _site(gateways: int, exports: int) -> Iterator[tuple[Site, list[Gateways]]]:
    """Everything that half the gateways need, and the processes of all of them, not started."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-rebalance-")))
        consul = stack.enter_context(server())
        rabbitmq = RabbitMQ(folder / "rabbitmq")
        stack.callback(rabbitmq.kill)
        rabbitmq.start()
        configured = simulated.settings("conductor", folder, consul=consul.url, bus=rabbitmq.url)
        conductor = replace(configured.conductor, move_deadline_s=MOVE_DEADLINE_S)
        records_at = RecordsSettings(url=f"sqlite:///{folder}/records.sqlite")
        configured = replace(configured, conductor=conductor, records=records_at)
        records = Records(configured.records, clock=CLOCK)
        stack.callback(records.close)
        records.migrate()
        coordination = ConsulCoordination(configured.coordination, clock=CLOCK)
        shown = [simulated.disk(number, paths=PATHS, access=Access.SHARED) for number in range(exports // PATHS)]
        names = [f"gateway-{number:02}" for number in range(gateways)]
        halves = [names[: gateways // 2], names[gateways // 2 :]]
        fleet = [
            Gateways(f"workers-{half}-{part}", folder, tuple(mine[part::PROCESSES]), consul.url, rabbitmq.url, START_S, ENABLE_S)
            for half, mine in enumerate(halves)
            for part in range(PROCESSES)
        ]
        for each in fleet:
            stack.callback(each.kill)
        yield Site(configured, records, coordination, shown), fleet


def _ours(site: Site, gateways: int, exports: int, fleet: list[Gateways]) -> tuple[list[Samples], int, int, dict[str, float]]:
    """How long the moves took, from their acceptance to their end, and each of them; how many they were, how many had to be, and
    which process used how much of the processors."""
    for each in fleet[:PROCESSES]:
        each.start()
    site.wait_for_gateways(gateways // 2)
    site.publish()
    site.wait_until_served(exports)
    for each in fleet[PROCESSES:]:
        each.start()
    site.wait_for_gateways(gateways)
    before = site.layout
    bus = rpc.oslo.connect(site.settings)
    images, journal = cast(Images, NoImages()), Journal("conductor", "bench")
    signing = Signing(site.settings.secrets, Keyring(site.settings.secrets), clock=CLOCK)
    stores = Stores(site.records, site.coordination, images, bus, CLOCK, journal, signing)
    runner = Runner(site.settings, stores, tell=lambda: None)
    runner.start()
    try:
        sample = Samples("ours, all moves", exports)
        used = _processor_s()
        made = sample.measure(lambda: _all_moved(site, stores, runner))
        used = {name: spent - used.get(name, 0.0) for name, spent in _processor_s().items()}
    finally:
        runner.stop()
        bus.close()
    after = distribution(site.layout)
    assert after.spread <= 1, f"a spread of {after.spread} is left"
    assert after.together == 0, f"{after.together} pairs of siblings together"
    used["conductor"] = sample.cpu_s[0]
    return [sample, Samples("ours, one of the moves", 1, made)], len(made), _fewest(before), used


def _all_moved(site: Site, stores: Stores, runner: Runner) -> list[float]:
    """Seconds from the beginning to the end of each move."""
    with site.records.begin() as session:
        situation = layouts.read(session, stores.coordination)
        wanted = [situation.move(n, move) for n, move in enumerate(average(situation.layout))]
        own, now = site.settings.conductor, site.records.now()
        operation = assignments.submit(session, moves=wanted, conductor=own, requested_by="bench", now=now)
    runner.wake(operation.id)

    def ended() -> bool:
        with site.records.read() as session:
            return operations.get(session, operation.id).state in OPERATIONS.rest

    waited(ended, within_s=MOVED_WITHIN_S, what="the moves end", every_s=0.1)
    with site.records.read() as session:
        made = moves.of(session, operation.id)
        state = operations.get(session, operation.id).state
    states = Counter(move.state for move in made)
    assert state is OperationState.SUCCEEDED, f"the operation is {state}: {dict(states)}"
    assert states == {MoveState.SUCCEEDED: len(wanted)}, f"moves: {dict(states)}"
    return [(move.ended_at - move.started_at).total_seconds() for move in made if move.started_at and move.ended_at]


def _processor_s() -> dict[str, float]:
    """What the processes that this one has started have used so far, by program."""
    used, ticks = defaultdict[str, float](float), os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            if int(fields[1]) == os.getpid():
                used[name] += (int(fields[11]) + int(fields[12])) / ticks
    return dict(used)


def _fewest(layout: Layout) -> int:
    """What the fuller gateways have over their share."""
    counts = Counter(layout.owners.values())
    shares = sorted((counts[name] for name in layout.gateways), reverse=True)
    level, more = divmod(len(layout.owners), len(shares))
    return sum(max(0, count - level - (place < more)) for place, count in enumerate(shares))


def _reference(site: Site, count: int, constants: Constants) -> list[float]:
    """Seconds of each of so many moves, while ours is idle."""
    coordination, nothing = site.coordination, (lambda: None)
    nodes = [reference.Node.on(coordination, f"reference-{name}") for name in ("source", "target")]
    took = []
    for number in range(count):
        path = reference.Handover(f"bench/{nodes[0].consul_session}/", f"{number}", constants)
        path.belongs_to(nodes[0])
        began = CLOCK.monotonic()
        path.move(nodes[0], nodes[1], drop=nothing, take=lambda: reference.pause(START_S + ENABLE_S))
        took.append(CLOCK.monotonic() - began)
    for node in nodes:
        coordination.close_session(node.consul_session)
    return took
