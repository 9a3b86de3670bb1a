"""P9 and P10: what idle processes take of memory, and how long from nothing to the first answer, and to all paths served."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
from pydantic import BaseModel

import sanderling.coordination
from bench.clients import post
from bench.consul import Key, fill
from bench.report import Goal, Report, Samples
from bench.simulated import disk, quiet
from bench.site import CLOCK, WITHIN_S, Host, host, named
from cli.lab.parts.daemons import Daemon, spawn, waited
from cli.lab.parts.daemons import run as command
from cli.lab.processes import Process
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway

REPEATS: Final = 5
GATEWAYS: Final = 100
SEAMS: Final = "sanderling.coordination.consul, sanderling.images.rbd"  # each process loads these as it starts
PROGRAMS: Final = {
    "sanderling-api": f"api.server, sanderling.records.sqlite, {SEAMS}",
    "sanderling-conductor": f"conductor.server, sanderling.records.sqlite, {SEAMS}",
    "sanderling-iscsi-worker": f"iscsi_worker.server, iscsi_worker.targets.tgt, iscsi_worker.addresses.netlink, {SEAMS}",
}
STOCK: Final = "import fastapi, uvicorn, oslo_messaging; oslo_messaging.get_rpc_transport"
IRONIC_MIB: Final = 270 + 290  # API and conductor, Ironic 39 on a machine of two processors


def run(*, quick: bool) -> Report:
    """Memory is proportional set size. A process's baseline imports the same modules and does nothing."""
    quiet()
    paths, elsewhere = (10, 10_000) if quick else (100, 100_000)
    with host() as site:
        report = Report(
            "P9, P10: memory at idle, and starting",
            {
                "baseline of memory": "a process that imports the same modules, those included that are loaded as it starts",
                "baseline of starting": "a process that imports FastAPI, uvicorn and oslo.messaging, and ends",
                "paths": f"{paths}, one a disk, real tgtd on RBD, on one node",
            },
        )
        _memory(site, report)
        _first_request(site, report)
        _all_served(site, report, paths)
        _grown_by_paths(site, report, elsewhere)
    return report


def _memory(site: Host, report: Report) -> None:
    whole = 0.0
    with site.running(*PROGRAMS) as processes:
        _settle(processes)
        for process in processes:
            imports = spawn(
                "imports",
                [sys.executable, "-c", f"import {PROGRAMS[process.program]}, signal; signal.pause()"],
                log=site.folder / "imports.log",
            )
            try:
                bare = _grown(imports)
            finally:
                imports.kill()
            taken = _pss_mib(process.pid)
            whole += taken
            report.surroundings[f"MiB of {process.program}"] = f"{taken:.0f}, imports alone {bare:.0f}"
            report.goals.append(Goal(f"P9: {process.program}, of its bare imports", taken / bare, at_most=1.3))
    report.goals.append(Goal("P9: the three together, of Ironic's two", whole / IRONIC_MIB, at_most=0.5))


def _grown_by_paths(site: Host, report: Report, paths: int) -> None:
    """What a worker that serves nothing takes for knowing of disks of two paths each, which other gateways serve."""
    store, prefix = sanderling.coordination.connect(site.settings, clock=CLOCK), site.settings.coordination.prefix
    with site.running("sanderling-iscsi-worker") as processes:
        _settle(processes)
        alone = _pss_mib(processes[0].pid)
    try:
        sessions = [store.open_session(f"gateway-{number}", check_ttl_s=3600.0) for number in range(GATEWAYS)]
        keys = [
            Key(f"{prefix}nodes/gateway-{n}", _json(Gateway(name=f"gateway-{n}")), session) for n, session in enumerate(sessions)
        ]
        fill(site.settings.coordination.url, [*keys, *_served_elsewhere(prefix, sessions, paths // 2)])
        with site.running("sanderling-iscsi-worker") as processes:
            waited(lambda: _pss_mib(processes[0].pid) > 2 * alone, within_s=WITHIN_S, what="the worker has read them")
            _settle(processes)
            grown = _pss_mib(processes[0].pid) - alone
    finally:
        store.close()
    report.surroundings["paths elsewhere"] = f"{paths}, of disks of two, on {GATEWAYS} gateways"
    report.goals.append(Goal("P9: MB of a worker for knowing of them", grown * 1.048576, at_most=250))


def _served_elsewhere(prefix: str, sessions: list[str], disks: int) -> Iterator[Key]:
    for number in range(disks):
        one = disk(number, paths=2)
        export, gateway = ExportId(one.id, 0), number % len(sessions)
        held = Export(
            generation=1,
            counter=1,
            node=f"gateway-{gateway}",
            client=f"192.0.2.1:0/{number}",
            phase=ExportPhase.SERVING,
            revision=1,
        )
        yield Key(f"{prefix}disks/{one.id}", _json(one))
        yield Key(f"{prefix}{export.key}", _json(held), sessions[gateway])


def _json(value: BaseModel) -> bytes:
    return value.model_dump_json().encode()


def _settle(processes: list[Process]) -> None:
    """Return once none has grown for three seconds: they have connected to everything by then."""
    seen: list[tuple[float, float]] = []

    def rests() -> bool:
        now, taken = CLOCK.monotonic(), sum(_pss_mib(process.pid) for process in processes)
        if not seen or abs(taken - seen[-1][1]) > 1:
            seen.append((now, taken))
        return now - seen[-1][0] > 3

    waited(rests, within_s=WITHIN_S, what="the processes rest", every_s=0.5)


def _grown(imports: Daemon) -> float:
    """Its size once it sleeps."""

    def sleeps() -> bool:
        said = Path(f"/proc/{imports.pid}/syscall").read_text().split()
        return said[0] == "34"  # pause(2) on x86-64

    waited(sleeps, within_s=WITHIN_S, what="everything is imported", every_s=0.1)
    return _pss_mib(imports.pid)


def _pss_mib(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def _first_request(site: Host, report: Report) -> None:
    ours, stock = Samples("ours, from nothing to the first accepted request", 1), Samples("stock imports", 1)
    body = {"size_bytes": 4 << 20, "started": False, "allow_any": True}
    for _ in range(REPEATS):
        stock.measure(lambda: command([sys.executable, "-c", STOCK]))
        api = site.process("sanderling-api")
        began = time.perf_counter()
        api.start()
        try:
            waited(lambda: _accepted(site, body | {"name": named("p10")}), within_s=WITHIN_S, what="accepted", every_s=0.005)
            ours.wall_s.append(time.perf_counter() - began)
        finally:
            api.terminate()
    report.samples += [stock, ours]
    report.goals += [
        Goal("P10: seconds to the first accepted request", ours.median_s, at_most=1.2),
        Goal("P10: of the stock imports' time", ours.median_s / stock.median_s, at_most=1.5),
    ]


def _accepted(site: Host, body: dict[str, object]) -> bool:
    try:
        return httpx.post(f"{site.url}/v1/disks", json=body, headers=site.headers, timeout=WITHIN_S).status_code == 202
    except httpx.TransportError:
        return False


def _all_served(site: Host, report: Report, paths: int) -> None:
    served = Samples("ours, from the worker's start until all are served", paths)
    with site.running("sanderling-api", "sanderling-conductor"):
        worker = site.process("sanderling-iscsi-worker")
        worker.start()
        try:
            bodies = [{"name": named("p10"), "size_bytes": 4 << 20, "paths": 1, "allow_any": True} for _ in range(paths)]
            post(site.url, "/v1/disks", bodies, headers=site.headers)
            waited(lambda: _serving(site) == paths, within_s=600, what="all are served", every_s=0.2)
            for _ in range(REPEATS):
                _switch_off(site, worker)
                began = time.perf_counter()
                worker.start()
                waited(lambda: _serving(site) == paths, within_s=600, what="all are served again", every_s=0.02)
                served.wall_s.append(time.perf_counter() - began)
        finally:
            _switch_off(site, worker)
    report.samples.append(served)
    report.goals.append(Goal("P10: seconds until all owned paths are served", served.median_s, at_most=5.0))


def _switch_off(site: Host, worker: Process) -> None:
    """Everything of the node dies at once, and its memory is gone; return once its locks are free, as after a long boot."""
    worker.kill()
    for pid in _targets(site):
        os.kill(pid, signal.SIGKILL)
    waited(lambda: not _targets(site), within_s=WITHIN_S, what="the targets are dead")
    run_folder = Path(site.settings.sanderling.runtime_dir)
    shutil.rmtree(run_folder)
    run_folder.mkdir()
    waited(lambda: _serving(site) == 0, within_s=WITHIN_S, what="the locks are free", every_s=0.1)


def _targets(site: Host) -> list[int]:
    """The target processes of this host's exports, by the folder that they run in."""
    root, found = str(Path(site.settings.sanderling.runtime_dir) / "targets"), []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd").startswith(root):
                found.append(int(entry))
        except OSError:
            continue
    return found


def _serving(site: Host) -> int:
    """How many exports are locked by somebody who says that it serves them."""
    store = sanderling.coordination.connect(site.settings, clock=CLOCK)
    try:
        entries = store.list("exports/").entries
    finally:
        store.close()
    held = [Export.model_validate_json(entry.value) for entry in entries if entry.consul_session]
    return sum(value.phase is ExportPhase.SERVING for value in held)
