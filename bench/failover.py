"""P2: failover as an initiator feels it: a target process killed (a), a node dead (b), and the last of many paths (c).

(a) and (b) are on real Ceph, Consul, RabbitMQ and tgtd in namespaces; what is compared is broken by the same fault at the same
time. (c) is a worker with simulated targets on real Consul.
"""

import contextlib
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

from bench import simulated
from bench.consul import Key, fill, server
from bench.moves import NODES, Ours, Site, other, site
from bench.plain import Plain, add
from bench.probe import ATTEMPT_S
from bench.reference import CLOCK, Constants, pause
from bench.report import Goal, Report, Samples
from bench.simulated import Gateways
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import start_time, waited
from sanderling.coordination.consul import ConsulCoordination
from sanderling.model.disks import PORTAL_PORT
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from sanderling.settings import Coordination

SUPERVISOR_S: Final = 0.1
CONSTANTS: Final = Constants()
BACK_WITHIN_S: Final = 120.0
START_S: Final = 0.05
SERIAL_S: Final = 2.0  # what the reference needs at least for one path of a dead node, after the first


def run(*, quick: bool) -> Report:
    """All three; each of the report's goals names its part."""
    kills, deaths, compared, paths = (5, 3, 1, 50) if quick else (30, 30, 5, 200)
    killed = {name: Samples(f"a: {name}, process killed", 1) for name in ("ours", "supervisor", "supervisor without its wait")}
    died = {name: Samples(f"b: {name}, node dead", 1) for name in ("ours", "reference", "reference without sleeps")}
    with site() as here:
        _kill(here, kills, killed)
    with site() as here:
        _freeze(here, deaths, compared, died)
    first, last = _many(paths)
    report = Report(
        "P2: gaps of failovers",
        {
            "initiator": f"libiscsi, gives a session up after {ATTEMPT_S:g} s of silence",
            "supervisor_s": SUPERVISOR_S,
            "reference": CONSTANTS.printed("lock_delay_s", "batch_s", "fence_s", "after_map_s"),
            "c": f"{paths} paths of a dead node, one survivor, a target starts in {START_S:g} s",
            "reference's last path": f"at least {SERIAL_S:g} s each, serially: {paths * SERIAL_S:g} s",
        },
        [*killed.values(), *died.values(), first, last],
    )
    report.goals = [
        Goal("a: seconds, p99", killed["ours"].p99_s, at_most=1.5),
        Goal("a: times shorter than a supervisor's restart", killed["supervisor"].median_s / killed["ours"].median_s, at_least=1),
        Goal("b: seconds, p50", died["ours"].median_s, at_most=4),
        Goal("b: seconds, p99", died["ours"].p99_s, at_most=6),
        Goal("b: times shorter than the reference's", died["reference"].median_s / died["ours"].median_s, at_least=6),
        Goal(
            "b: times shorter than the reference's without sleeps",
            died["reference without sleeps"].median_s / died["ours"].median_s,
            at_least=1,
        ),
        Goal("c: the last path's gap over the first one's", median(last.wall_s) / median(first.wall_s), at_most=2),
        Goal("c: times sooner than the reference's last path", paths * SERIAL_S / median(last.wall_s), at_least=1),
    ]
    return report


def _kill(here: Site, times: int, gaps: dict[str, Samples]) -> None:
    """SIGKILL to the target process of each, in turn."""
    ours = here.ours("killed")
    supervised = here.targets("supervised", PORTAL_PORT + 1)[NODES[0]]
    supervised.start()
    add(supervised.netns, here.address(1))
    probes = {
        "ours": here.probe("killed", ours, 1),
        "supervisor": here.probe_at("supervised", supervised.iqn, f"{here.address(1)}:{supervised.port}"),
    }
    for _ in range(times):
        for name, gap in gaps.items():
            probe = probes["ours" if name == "ours" else "supervisor"]
            began = CLOCK.monotonic()
            if name == "ours":
                _kill_target(ours.export)
            else:
                _restart(supervised, SUPERVISOR_S if name == "supervisor" else 0.0)
            gap.wall_s.append(probe.gap(began))
    for each in probes.values():
        each.kill()


def _restart(target: Plain, wait_s: float) -> None:
    """What a supervisor does that is told at once of its child's death."""
    target.kill()
    pause(wait_s)
    target.start()


def _kill_target(export: ExportId) -> None:
    """The process is known by its folder, as the lab knows it."""
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_target = (found / "comm").read_text().strip() == "tgtd"
            if is_target and Path(os.readlink(found / "cwd")).name == f"{export.disk_id}.{export.index}":
                pid = int(found.name)
                if start_time(pid) is not None:
                    os.kill(pid, signal.SIGKILL)


def _freeze(here: Site, times: int, compared: int, gaps: dict[str, Samples]) -> None:
    """The node that serves it is frozen with its cables pulled; the reference's path is on the same node now and then."""
    ours = here.ours("frozen")
    probe = here.probe("frozen", ours, 1)
    every = max(1, times // compared)
    for number in range(times):
        victim = ours.value().node
        with contextlib.ExitStack() as stack:
            others = []
            if number % every == 0:
                for place, (name, constants) in enumerate(_COMPARED.items(), start=2):
                    made = here.reference(f"{name.split()[-1]}", place, constants, owner=victim)
                    stack.callback(made.end)
                    others.append((name, made, here.probe(f"{place}-{number}", made, 1)))
            began = CLOCK.monotonic()
            here.network.cut(victim)
            here.cluster.freeze(victim)
            with ThreadPoolExecutor(1 + len(others)) as pool:
                waits = [pool.submit(made.fail_over) for _, made, _ in others]
                gaps["ours"].wall_s.append(probe.gap(began, within_s=BACK_WITHIN_S))
                for (name, _, beside), done in zip(others, waits, strict=True):
                    done.result()
                    gaps[name].wall_s.append(beside.gap(began, within_s=BACK_WITHIN_S))
                    beside.kill()
        _back(here, ours, victim)
    probe.kill()


_COMPARED: Final = {"reference": CONSTANTS, "reference without sleeps": CONSTANTS.without_sleeps}


def _back(here: Site, ours: Ours, victim: str) -> None:
    """The node is there again and may take over, and what it served is served by the other one."""
    here.cluster.heal()
    heir = other(victim)

    def settled() -> bool:
        value = ours.value()
        entries = ours.coordination.list("nodes/").entries
        ready = [Gateway.model_validate_json(entry.value) for entry in entries if entry.consul_session]
        standing_back = any(gateway.front.cut_off or gateway.store.cut_off for gateway in ready)
        return value.phase is ExportPhase.SERVING and value.node == heir and len(ready) == len(NODES) and not standing_back

    waited(settled, within_s=BACK_WITHIN_S, what=f"{heir} serves it and {victim} is back")


def _many(paths: int) -> tuple[Samples, Samples]:
    """From a node's death until the first and until the last of its paths is served by the one survivor."""
    first, last = (Samples(f"c: ours, {which} path", paths) for which in ("first", "last"))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-failover-")))
        consul = stack.enter_context(server())
        doomed = ConsulAgent(folder / "doomed", address="127.0.0.2", node_name="doomed", server=False, join=[consul.lan])
        stack.callback(doomed.kill)
        doomed.start()
        dead = Gateways("dead", folder, ("gateway-1",), doomed.url, start_s=START_S)
        heir = Gateways("heir", folder, ("gateway-2",), consul.url, start_s=START_S)
        for each in (dead, heir):
            stack.callback(each.kill)
        coordination = ConsulCoordination(simulated.settings("bench", folder, consul=consul.url).coordination, clock=CLOCK)
        dead.start()
        waited(lambda: _served(coordination) == 0 and _live(coordination) == 1, within_s=BACK_WITHIN_S, what="a gateway lives")
        _publish(consul.url, paths)
        waited(lambda: _served(coordination) == paths, within_s=BACK_WITHIN_S, what="all is served", every_s=0.5)
        heir.start()
        waited(lambda: _live(coordination) == 2, within_s=BACK_WITHIN_S, what="two gateways live")
        began = CLOCK.monotonic()
        doomed.kill()
        dead.kill()
        waited(lambda: len(heir.opened) == paths, within_s=BACK_WITHIN_S, what="all is taken over", every_s=0.2)
        first.wall_s.append(min(heir.opened.values()) - began)
        last.wall_s.append(max(heir.opened.values()) - began)
    return first, last


def _publish(url: str, paths: int) -> None:
    prefix = Coordination().prefix
    free = Export(generation=1, phase=ExportPhase.FREE).model_dump_json().encode()
    shown = [simulated.disk(number) for number in range(paths)]
    keys = [Key(f"{prefix}disks/{disk.id}", disk.model_dump_json().encode()) for disk in shown]
    fill(url, [*keys, *(Key(f"{prefix}{ExportId(disk.id, 0).key}", free) for disk in shown)])


def _served(coordination: ConsulCoordination) -> int:
    entries = coordination.list("exports/").entries
    values = [Export.model_validate_json(entry.value) for entry in entries if entry.consul_session]
    return sum(value.phase is ExportPhase.SERVING for value in values)


def _live(coordination: ConsulCoordination) -> int:
    return sum(bool(entry.consul_session) for entry in coordination.list("nodes/").entries)
