"""P5, P6 and N9: how fast a request is accepted, how soon its work begins, and how fast its wake-ups are cast."""

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import httpx

import rpc.oslo
from api.outbox import Outbox
from bench.clients import Posted, post
from bench.report import Goal, Report, Samples, percentile
from bench.simulated import quiet
from bench.site import CLOCK, WITHIN_S, Host, free_port, host, named
from cli.lab.parts.daemons import spawn, waited
from rpc import topics
from rpc.bus import Bus, Endpoint
from rpc.messages import Message, Wake
from sanderling.model import plans
from sanderling.model.operations import OperationKind
from sanderling.records import operations
from sanderling.records.tables import OperationRow

REPEATS: Final = 5
CLIENTS: Final = 8
LOAD: Final = 0.7  # of the rate at which requests are accepted: what the 99th percentile is measured at


def run(*, quick: bool) -> Report:
    """Ours and each baseline in turn, on the same parts, in one run."""
    quiet()
    requests, intents = (60, 20) if quick else (400, 100)
    with host() as site:
        report = Report(
            "P5, P6, N9: accepting",
            {
                "database": "SQLite, WAL, synchronous=FULL, on disk",
                "clients": f"{CLIENTS}, keeping their connections, in a process of their own on the same two processors",
                "baseline (a)": "FastAPI that stores one row a POST, same database settings, one process",
                "baseline (b)": "oslo.messaging cast to a quorum queue, one thread",
            },
        )
        _accepting(site, report, requests)
        _beginning(site, report, intents)
        _casting(site, report, requests)
    return report


def _accepting(site: Host, report: Report, requests: int) -> None:
    ours, bare = Samples("ours, one request", requests), Samples("(a) bare, one request", requests)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    with site.running("sanderling-api"), _bare(site) as bare_url:
        for name in ("warm", *(str(number) for number in range(REPEATS))):
            mine = post(site.url, "/v1/disks", _bodies(requests), headers=site.headers, clients=CLIENTS)
            theirs = post(bare_url, "/rows", _bodies(requests), headers={}, clients=CLIENTS)
            if name != "warm":
                _add(ours, mine, rates["ours"])
                _add(bare, theirs, rates["bare"])
        rate = sorted(rates["ours"])[len(rates["ours"]) // 2]
        loaded = post(site.url, "/v1/disks", _bodies(requests), headers=site.headers, clients=4 * CLIENTS, rate=LOAD * rate)
        lost = _lost_with_the_broker(site, requests)
    at_load = Samples(f"ours at {LOAD:.0%} load, one request", requests, loaded.took_s)
    report.samples += [bare, ours, at_load]
    report.surroundings["accepted each second"] = f"ours {rate:.0f}, (a) {_median(rates['bare']):.0f}"
    report.goals += [
        Goal("P5: accepted, of what (a) stores", rate / _median(rates["bare"]), at_least=0.6),
        Goal(f"P5: seconds at {LOAD:.0%} load, p99", percentile(loaded.took_s, 99), at_most=0.05),
        Goal("P5: lost while the broker was killed", lost, at_most=0),
    ]


def _lost_with_the_broker(site: Host, requests: int) -> int:
    """How many accepted requests are not there after the broker died among them."""
    with site.records.read() as session:
        before = session.query(OperationRow).count()
    killer = threading.Thread(target=site.rabbitmq.kill)
    killer.start()
    post(site.url, "/v1/disks", _bodies(requests), headers=site.headers, clients=CLIENTS)
    killer.join()
    site.rabbitmq.start()
    with site.records.read() as session:
        return requests - (session.query(OperationRow).count() - before)


def _beginning(site: Host, report: Report, intents: int) -> None:
    """At rest, each once the one before has ended, as the call that is its baseline; and one after another, beside their work."""
    site.forget()
    with site.running("sanderling-api", "sanderling-conductor"), httpx.Client(base_url=site.url, headers=site.headers) as http:
        begun, called = Samples("ours, from the request to its work, at rest", intents), Samples("oslo call, at rest", intents)
        with _echo(site) as bus:
            for number in range(intents + 1):
                seconds = _until_begun(site, http, then_ends=True)
                call = Samples("", 1)
                call.measure(lambda: bus.call("bench-echo", "echo.say", Wake(operation_id="x"), timeout_s=30))
                if number:
                    begun.wall_s.append(seconds)
                    called.wall_s += call.wall_s
        busy = Samples("the same, beside the work of those before", intents, [_until_begun(site, http) for _ in range(intents)])
        site.rabbitmq.kill()
        without = Samples("ours, with the broker down", 5, [_until_begun(site, http) for _ in range(5)])
        site.rabbitmq.start()
    report.samples += [called, begun, busy, without]
    report.goals += [
        Goal("P6: at rest, seconds until work begins, p50", begun.median_s, at_most=0.01),
        Goal("P6: at rest, seconds until work begins, p99", begun.p99_s, at_most=0.05),
        Goal("P6: beside the work of those before, p50", busy.median_s, at_most=0.01),
        Goal("P6: beside the work of those before, p99", busy.p99_s, at_most=0.05),
        Goal("P6: at rest, of an oslo call's time", begun.median_s / called.median_s, at_most=1.0),
        Goal("P6: seconds with the broker down, at most", max(without.wall_s), at_most=2.0),
    ]


def _until_begun(site: Host, http: httpx.Client, *, then_ends: bool = False) -> float:
    """From sending a request to the moment that a conductor has claimed what it asks for; with `then_ends` it ends, too."""
    sent = CLOCK.wall()
    answer = http.post("/v1/disks", json=_bodies(1)[0], timeout=WITHIN_S)
    operation_id = answer.headers["Location"].rpartition("/")[2]
    seen: list[datetime] = []

    def begun() -> bool:
        with site.records.read() as session:
            operation = operations.get(session, operation_id)
        seen.extend([operation.started_at] if operation.started_at and (operation.ended or not then_ends) else [])
        return bool(seen)

    waited(begun, within_s=WITHIN_S, what=f"the operation {'ends' if then_ends else 'is claimed'}", every_s=0.05)
    return (seen[0] - sent).total_seconds()


def _casting(site: Host, report: Report, count: int) -> None:
    """The outbox's work for operations that are stored already, beside the same casts and nothing else."""
    raw, ours = Samples("(b) oslo casts", count), Samples("ours: casts, each noted as cast", count)
    bus = rpc.oslo.connect(site.settings)
    serving = bus.serve(topics.CONDUCTOR, "bench-sink", [_endpoint("operation")])
    outbox = Outbox(site.settings.api, records=site.records, bus=bus, clock=CLOCK)
    try:
        for _ in range(REPEATS):
            raw.measure(lambda: _cast(bus, count))
            _store(site, count)
            ours.measure(lambda: _drained(outbox))
    finally:
        serving.stop()
        bus.close()
    report.samples += [raw, ours]
    report.surroundings["casts each second"] = f"ours {count / ours.median_s:.0f}, (b) {count / raw.median_s:.0f}"
    report.goals += [Goal("N9: casts, of oslo's own rate", raw.median_s / ours.median_s, at_least=1.0)]


def _cast(bus: Bus, count: int) -> None:
    for _ in range(count):
        bus.cast(topics.CONDUCTOR, "operation.wake", Wake(operation_id="x"))


def _drained(outbox: Outbox) -> int:
    cast = 0
    while sent := outbox.drain():
        cast += sent
    return cast


def _store(site: Host, count: int) -> None:
    steps = plans.steps_of(OperationKind.STOP_DISK, site.settings.conductor)
    with site.records.begin() as session:
        for _ in range(count):
            name = named("n9")
            operations.submit(
                session,
                kind=OperationKind.STOP_DISK,
                resource_id=name,
                resource_name=name,
                params={"was": "started"},
                steps=steps,
                requested_by="bench",
                now=CLOCK.wall(),
            )


@contextlib.contextmanager
def _echo(site: Host) -> Iterator[Bus]:
    bus = rpc.oslo.connect(site.settings)
    serving = bus.serve("bench-echo", "bench", [_endpoint("echo", "say")])
    try:
        yield bus
    finally:
        serving.stop()
        bus.close()


def _endpoint(namespace: str, method: str = "wake") -> Endpoint:
    def same(message: Message) -> Message:
        return message

    return Endpoint(namespace, {method: (Wake, same)})


@contextlib.contextmanager
def _bare(site: Host) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "bench.bare", str(site.folder / "bare.sqlite"), str(port)]
    daemon = spawn("bare", argv, log=site.folder / "bare.log")
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/docs").status_code == 200
        return False

    try:
        waited(answers, within_s=WITHIN_S, what="the bare service answers")
        yield url
    finally:
        daemon.kill()


def _bodies(count: int) -> list[Mapping[str, Any]]:
    size = {"size_bytes": 4 << 20}
    return [{"name": named("p5"), **size, "started": False, "allow_any": True} for _ in range(count)]


def _add(samples: Samples, posted: Posted, rates: list[float]) -> None:
    samples.wall_s += posted.took_s
    rates.append(posted.rate)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
