"""P1: a planned move as an initiator feels it, beside an address that is simply moved and the reference's hand-over.

All on real Ceph, Consul, RabbitMQ and tgtd in namespaces, each on an image of its own, one at a time while the others rest.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import rpc.oslo
import sanderling.coordination
import sanderling.images
from bench import plain
from bench.plain import Plain
from bench.probe import ATTEMPT_S, IN_FLIGHT, Probe
from bench.reference import CLOCK, Constants, Handover, Node, pause
from bench.report import Goal, Report, Samples, interleaved
from bench.simulated import quiet
from cli.lab import needs
from cli.lab.cluster import Cluster
from cli.lab.network import Network
from rpc import topics
from rpc.bus import Bus
from rpc.messages import ExportCommand
from sanderling.coordination.base import Coordination
from sanderling.coordination.consul import ConsulCoordination
from sanderling.errors import Unavailable
from sanderling.model.disks import PORTAL_PORT
from sanderling.model.exports import Export, ExportId, ExportPhase

NODES: Final = ("node-1", "node-2")
OURS, NAIVE, REFERENCE, BARE = "ours", "naive", "reference", "reference without sleeps"
FULL: Final = {OURS: 200, NAIVE: 60, REFERENCE: 20, BARE: 20}
QUICK: Final = {OURS: 15, NAIVE: 6, REFERENCE: 3, BARE: 3}
CONSTANTS: Final = Constants(poll_s=0.0)  # its polling of the status is no part of the gap
SIZE_BYTES: Final = 64 << 20
MOVED_WITHIN_S: Final = 30.0


class Mover(Protocol):
    """A path that can be moved. `iqn` and `portal` are what an initiator needs."""

    @property
    def iqn(self) -> str: ...
    @property
    def portal(self) -> str: ...
    def move(self) -> None:
        """To the other node; returns when it is served there."""
        ...


@dataclass(slots=True)
class Ours:
    """A disk of the cluster; both nodes are told, as a conductor tells them."""

    disk: Mapping[str, Any]
    bus: Bus
    coordination: Coordination

    @property
    def iqn(self) -> str:
        return str(self.disk["iqn"])

    @property
    def portal(self) -> str:
        return f"{self.disk['paths'][0]['address']}:{PORTAL_PORT}"

    @property
    def export(self) -> ExportId:
        return ExportId(str(self.disk["id"]), 0)

    def value(self) -> Export:
        entry = self.coordination.get(self.export.key)
        assert entry is not None, "its key is gone"
        return Export.model_validate_json(entry.value)

    def move(self) -> None:
        value = self.value()
        source, destination = value.node, other(value.node)
        take = ExportCommand(
            operation_id="bench",
            disk_id=self.export.disk_id,
            index=self.export.index,
            generation=value.generation,
            counter=value.counter,
        )
        clean = take.model_copy(update={"destination": destination})
        self.bus.cast(topics.ISCSI_WORKER, "export.path_host", take, server=destination)
        self.bus.cast(topics.ISCSI_WORKER, "export.clean", clean, server=source)
        self._await_served_by(destination)

    def _await_served_by(self, node: str) -> None:
        """By waiting for changes: asking again and again would take the processor from what is measured."""
        deadline, index = CLOCK.monotonic() + MOVED_WITHIN_S, 0
        while (left_s := deadline - CLOCK.monotonic()) > 0:
            listing = self.coordination.watch(self.export.key, index=index, timeout_s=left_s)
            value = Export.model_validate_json(listing.entries[0].value)
            if value.node == node and value.phase is ExportPhase.SERVING:
                return
            index = listing.index
        raise AssertionError(f"not within {MOVED_WITHIN_S} s: {node} serves it")


@dataclass(slots=True)
class Naive:
    """Both nodes present the image all the time; only the address moves."""

    address: str
    targets: Mapping[str, Plain]
    owner: str = NODES[0]

    @property
    def iqn(self) -> str:
        return self.targets[self.owner].iqn

    @property
    def portal(self) -> str:
        return f"{self.address}:{self.targets[self.owner].port}"

    def begin(self) -> None:
        for target in self.targets.values():
            target.start()
        plain.add(self.targets[self.owner].netns, self.address)

    def move(self) -> None:
        plain.remove(self.targets[self.owner].netns, self.address)
        self.owner = other(self.owner)
        plain.add(self.targets[self.owner].netns, self.address)


@dataclass(slots=True)
class Reference:
    """One node presents the image, the one that locks the path's key; the hand-over is the reference's."""

    address: str
    targets: Mapping[str, Plain]
    nodes: Mapping[str, Node]
    constants: Constants
    path: Handover = field(init=False)
    owner: str = NODES[0]

    def __post_init__(self) -> None:
        self.path = Handover(f"bench-{self.address}/", "path", self.constants)

    @property
    def iqn(self) -> str:
        return self.targets[self.owner].iqn

    @property
    def portal(self) -> str:
        return f"{self.address}:{self.targets[self.owner].port}"

    def begin(self) -> None:
        self.path.belongs_to(self.nodes[self.owner])
        self._take(self.owner)

    def move(self) -> None:
        source, target = self.owner, other(self.owner)
        self.path.move(self.nodes[source], self.nodes[target], drop=lambda: self._drop(source), take=lambda: self._take(target))
        self.owner = target

    def fail_over(self) -> None:
        """To the other node, since this one is dead."""
        target = other(self.owner)
        self.path.take_over(self.nodes[target], take=lambda: self._take(target, after_map_s=self.constants.after_map_s))

    def end(self) -> None:
        """Nothing of it is left on either node, not even on one that is frozen and cut off."""
        for target in self.targets.values():
            target.kill()
            plain.remove(target.netns, self.address)
        for node in self.nodes.values():
            with contextlib.suppress(Unavailable):
                node.coordination.close_session(node.consul_session)

    def _drop(self, node: str) -> None:
        self.targets[node].kill()
        plain.remove(self.targets[node].netns, self.address)

    def _take(self, node: str, *, after_map_s: float = 0.0) -> None:
        self.targets[node].start()
        pause(after_map_s)
        plain.add(self.targets[node].netns, self.address)


def other(node: str) -> str:
    return NODES[1 - NODES.index(node)]


class Site:
    """A cluster of two nodes, and what else stands on them for as long as `stack` is open."""

    def __init__(self, folder: Path, network: Network, cluster: Cluster, stack: contextlib.ExitStack) -> None:
        self.folder, self.network, self.cluster, self._stack = folder, network, cluster, stack
        self.images = sanderling.images.connect(cluster.settings(name="bench"), clock=CLOCK)

    def ours(self, name: str) -> Ours:
        settings = self.cluster.settings(name="bench")
        bus = rpc.oslo.connect(settings)
        self._stack.callback(bus.close)
        disk = self.cluster.create_disk(name, paths=1, size_bytes=SIZE_BYTES)
        return Ours(disk, bus, sanderling.coordination.connect(settings, clock=CLOCK))

    def targets(self, name: str, port: int) -> dict[str, Plain]:
        """The image on both nodes, not started."""
        self.images.create(f"bench-{name}", SIZE_BYTES, metadata={})
        image, iqn = self.images.backing_store(f"bench-{name}"), f"iqn.2026-11.io.sanderling.bench:{name}"
        made = {
            node: Plain(f"{name}-{node}", self.folder / f"{name}-{node}", self.network.netns(node), iqn, image, port)
            for node in self.network.nodes
        }
        for target in made.values():
            self._stack.callback(target.kill)
        return made

    def naive(self, name: str, number: int) -> Naive:
        made = Naive(self.address(number), self.targets(name, PORTAL_PORT + number))
        made.begin()
        return made

    def reference(self, name: str, number: int, constants: Constants, *, owner: str = NODES[0]) -> Reference:
        nodes = {node: self.node(node, name, constants) for node in self.network.nodes}
        made = Reference(self.address(number), self.targets(name, PORTAL_PORT + number), nodes, constants, owner=owner)
        made.begin()
        return made

    def node(self, node: str, name: str, constants: Constants) -> Node:
        """A session on the Consul agent of that node."""
        settings = self.cluster.settings(node=node, name=f"{name}-{node}").coordination
        return Node.on(ConsulCoordination(settings, clock=CLOCK), f"{name}-{node}", lock_delay_s=int(constants.lock_delay_s))

    def address(self, number: int) -> str:
        """One that no path of ours gets."""
        return f"{self.network.front_pool[0].rpartition('.')[0]}.{60 + number}"

    def probe(self, name: str, mover: Mover, in_flight: int) -> Probe:
        return self.probe_at(name, mover.iqn, mover.portal, in_flight=in_flight)

    def probe_at(self, name: str, iqn: str, portal: str, *, in_flight: int = 1) -> Probe:
        made = Probe(name, self.folder, netns=self.network.initiator, iqn=iqn, portal=portal, in_flight=in_flight)
        self._stack.callback(made.kill)
        made.start()
        return made


@contextlib.contextmanager
def site() -> Iterator[Site]:
    needs.check()
    quiet()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        network = stack.enter_context(Network(NODES))
        cluster = Cluster(folder, network)
        cluster.start()
        stack.callback(cluster.stop)
        yield Site(folder, network, cluster, stack.enter_context(contextlib.ExitStack()))


def run(*, quick: bool) -> Report:
    """Each cell with all four ways in turn."""
    counts = QUICK if quick else FULL
    gaps: dict[tuple[str, int], Samples] = {}
    with site() as here:
        movers: dict[str, Mover] = {
            OURS: here.ours("ours"),
            NAIVE: here.naive("naive", 1),
            REFERENCE: here.reference("reference", 2, CONSTANTS),
            BARE: here.reference("bare", 3, CONSTANTS.without_sleeps),
        }
        for in_flight in (1, IN_FLIGHT):
            gaps |= {(name, in_flight): Samples(f"{name}, {in_flight} in flight", in_flight) for name in movers}
            probes = {name: here.probe(f"{name.split()[-1]}-{in_flight}", mover, in_flight) for name, mover in movers.items()}
            for probe in probes.values():
                probe.rest()
            for name in interleaved(counts):
                gaps[name, in_flight].wall_s.append(_gap(movers[name], probes[name]))
            for probe in probes.values():
                probe.kill()
    report = Report(
        "P1: the I/O gap of a planned move",
        {
            "images": "RBD",
            "initiator": f"libiscsi, gives a session up after {ATTEMPT_S:g} s of silence, writes of 512 bytes: one each "
            "millisecond, or 64 without pause",
            "reference": CONSTANTS.printed("batch_s"),
        },
        list(gaps.values()),
    )
    for in_flight in (1, IN_FLIGHT):
        report.goals += _goals({name: gaps[name, in_flight] for name in movers}, in_flight)
    return report


def _gap(mover: Mover, probe: Probe) -> float:
    probe.wake()
    began = CLOCK.monotonic()
    mover.move()
    gap = probe.gap(began)
    probe.rest()
    return gap


def _goals(gaps: Mapping[str, Samples], in_flight: int) -> list[Goal]:
    ours, cell = gaps[OURS], f"{in_flight} in flight"
    return [
        Goal(f"{cell}: seconds, p50", ours.median_s, at_most=0.025),
        Goal(f"{cell}: seconds, p99", ours.p99_s, at_most=0.080),
        Goal(f"{cell}: times shorter than the reference's", gaps[REFERENCE].median_s / ours.median_s, at_least=80),
        Goal(f"{cell}: times shorter than the naive move's", gaps[NAIVE].median_s / ours.median_s, at_least=8),
        Goal(f"{cell}: times shorter than the reference's without sleeps", gaps[BARE].median_s / ours.median_s, at_least=1),
    ]
