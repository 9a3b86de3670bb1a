"""Watching a running site: its spans as a collector gets them, its measurements as Prometheus does; nothing of it while off."""

import contextlib
import math
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.lab.cluster import Cluster
from cli.lab.network import Network
from cli.lab.parts.daemons import waited
from sanderling import tracing
from sanderling.errors import TargetFailed
from sanderling.settings import Settings, Tracing
from tests.functional.test_moves import refusing
from tests.parts import usage
from tests.parts.collector import Collector, SeenSpan, tree

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{SPAN}-01"
OFF = """
import sys
import api.server, conductor.server, iscsi_worker.server, leader.server
from sanderling import tracing
from sanderling.settings import Settings
with tracing.sent(Settings(), process="test"), tracing.span("x", begins=True) as span:
    span.say(a=1)
heavy = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf"))]
assert not heavy, heavy
"""
OFF_IN_A_WORKER = """
import sys
import iscsi_worker.server, conductor.server, leader.server
from sanderling import tracing
from sanderling.settings import Settings
with tracing.sent(Settings(), process="test"), tracing.span("x", begins=True):
    pass
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


def sending_to(collector: Collector, **changes: float) -> Settings:
    own = {"send_interval_s": 0.05, **changes}
    return Settings(tracing=Tracing(enabled="on", endpoint=collector.endpoint, **own))  # type: ignore[arg-type]


@pytest.mark.parametrize("program", [OFF, OFF_IN_A_WORKER], ids=["all processes", "all but the API"])
def test_nothing_of_it_is_loaded_while_tracing_is_off(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_parts_are_sent_below_the_whole_and_the_whole_below_the_caller(collector: Collector) -> None:
    with tracing.sent(sending_to(collector), process="test"), tracing.span("whole", parent=CALLER, operation_id="o1") as span:
        span.say(state="done")
        with tracing.span("part", export="d/0"):
            sent_along = tracing.current()
    part, whole = collector.spans
    assert (part.name, whole.name, part.service) == ("part", "whole", "sanderling-test")
    assert (part.trace_id, whole.trace_id) == (TRACE, TRACE)
    assert (part.parent_id, whole.parent_id) == (whole.span_id, SPAN)
    assert sent_along == f"00-{TRACE}-{part.span_id}-01"
    assert whole.attributes == {"sanderling.operation_id": "o1", "sanderling.state": "done"}
    assert tracing.current() is None


def test_a_problem_is_told_and_of_any_other_failure_only_the_kind(collector: Collector) -> None:
    with tracing.sent(sending_to(collector), process="test"):
        with pytest.raises(TargetFailed), tracing.span("a", begins=True):
            raise TargetFailed("no portal: out of memory", log="bind: no")
        with pytest.raises(ValueError, match="canary"), tracing.span("b", begins=True):
            raise ValueError("password=canary")
    told, untold = collector.spans
    assert (told.error, told.attributes["sanderling.log"]) == ("no portal: out of memory", "bind: no")
    assert untold.error == "ValueError"
    assert b"canary" not in collector.raw


def test_a_caller_may_ask_for_less_and_not_for_more(collector: Collector) -> None:
    with tracing.sent(sending_to(collector), process="test"), tracing.span("unwanted", parent=f"00-{TRACE}-{SPAN}-00"):
        assert (tracing.current() or "").endswith("-00")
    with tracing.sent(sending_to(collector, sample_ratio=0.0), process="test"):
        with tracing.span("wanted", parent=CALLER):
            assert (tracing.current() or "").startswith(f"00-{TRACE}-")
        with tracing.span("root", begins=True):
            pass
    assert not collector.spans


def test_what_is_part_of_no_action_is_no_trace(collector: Collector) -> None:
    with tracing.sent(sending_to(collector), process="test"), tracing.span("bus.ping"):
        assert tracing.current() is None
    assert not collector.spans


def test_a_collector_that_is_away_holds_nothing_up(collector: Collector) -> None:
    away = Settings(tracing=Tracing(enabled="on", endpoint="http://127.0.0.1:1/v1/traces", send_timeout_s=0.2))
    with tracing.sent(away, process="test"), tracing.span("x", begins=True):
        pass
    assert tracing.current() is None


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Collector]]:
    """All processes on the real parts, sending to a collector beside them and answering to whoever scrapes them."""
    with Network(["san1", "san2"]) as network, Collector(f"{network.parts_address.rpartition('.')[0]}.254") as collector:
        changes: dict[str, dict[str, Any]] = {
            "tracing": {"enabled": "on", "endpoint": collector.endpoint, "send_interval_s": 0.1},
            "sanderling": {"metrics_host": "0.0.0.0"},
            "conductor": {"metrics_port": 9641, "balance": "off"},
            "iscsi_worker": {"metrics_port": 9642},
        }
        made = Cluster(tmp_path_factory.mktemp("traced"), network, changes=changes)
        made.start()
        try:
            yield made, collector
        finally:
            made.stop()


class Asked:
    """Requests that bring a trace of the caller's, and the spans of that trace."""

    def __init__(self, traced: tuple[Cluster, Collector]) -> None:
        self.cluster, self._collector = traced
        for title, part in (("RabbitMQ", self.cluster.rabbitmq), ("Consul", self.cluster.consul), ("Ceph", self.cluster.ceph)):
            usage.used(title, part.version)
        self.trace_id = secrets.token_hex(16)

    def post(self, path: str, body: dict[str, Any], *, state: str = "succeeded") -> dict[str, Any]:
        """The operation, once it has ended in this state."""
        answer = self.cluster.http.post(path, json=body, headers={"traceparent": f"00-{self.trace_id}-{SPAN}-01"})
        return self.cluster.wait_operation(answer, state=state)

    @property
    def spans(self) -> list[SeenSpan]:
        return [span for span in self._collector.spans if span.trace_id == self.trace_id]

    def found(self, *wanted: tuple[str, str]) -> dict[tuple[str, str], SeenSpan]:
        """The spans by process and name, once these are among them; they are printed as well."""
        waited(lambda: set(wanted) <= _by_name(self.spans).keys(), within_s=60, what="the spans of every process arrive")
        sys.stdout.write(f"{tree(self.spans)}\n")
        return _by_name(self.spans)


def _by_name(spans: list[SeenSpan]) -> dict[tuple[str, str], SeenSpan]:
    return {(span.service.removeprefix("sanderling-"), span.name): span for span in spans}


@pytest.fixture
def asked(traced: tuple[Cluster, Collector]) -> Asked:
    return Asked(traced)


def move(asked: Asked, name: str, *, state: str = "succeeded", refused: bool = False) -> None:
    """Create a disk, and then, in the trace, ask to move it to the other gateway."""
    cluster = asked.cluster
    disk = cluster.create_disk(name, paths=1)
    (path,) = disk["paths"]
    other = next(node for node in cluster.network.nodes if node != path["gateway"])
    with refusing(cluster, other) if refused else contextlib.nullcontext():
        body = {"planner": "manual", "paths": [path["address"]], "gateway": other}
        asked.post("/v1/assignments", body, state=state)


def test_one_trace_leads_from_the_request_over_the_conductor_to_the_worker(asked: Asked) -> None:
    operation = asked.post("/v1/disks", {"name": "created", "size_bytes": 64 << 20, "paths": 2, "allow_any": True})
    found = asked.found(("api", "POST /v1/disks"), ("conductor", "disk.create"), ("iscsi-worker", "take"))
    request, driven, take = found["api", "POST /v1/disks"], found["conductor", "disk.create"], found["iscsi-worker", "take"]
    assert request.parent_id == SPAN
    assert driven.parent_id == request.span_id
    assert take.parent_id == found["conductor", "do publish"].span_id
    for step in ("do create_image", "do describe", "do publish", "do await_served", "do settle"):
        assert found["conductor", step].parent_id == driven.span_id
    for part in ("lock", "start", "portal", "gate", "serving"):
        assert found["iscsi-worker", part].parent_id == take.span_id
    assert take.attributes["sanderling.operation_id"] == driven.attributes["sanderling.operation_id"] == operation["id"]
    for process in ("conductor-1", *asked.cluster.network.nodes):
        for line in asked.cluster.log(process):
            assert line.get("operation_id") != operation["id"] or line.get("trace_id") == asked.trace_id, line


def test_a_move_s_commands_and_what_both_gateways_do_are_one_trace(asked: Asked) -> None:
    move(asked, "moved")
    steps = ("export.path_host", "export.clean", "prepare", "handover", "pass_on", "activate")
    found = asked.found(("conductor", "do move_paths"), *(("iscsi-worker", name) for name in steps))
    step = found["conductor", "do move_paths"]
    commands = {span.span_id for span in asked.spans if span.name in {"export.path_host", "export.clean"}}
    assert {span.parent_id for span in asked.spans if span.span_id in commands} == {step.span_id}
    assert {found["iscsi-worker", name].parent_id for name in ("prepare", "handover", "activate")} <= commands


def test_a_move_that_failed_shows_what_failed_and_in_which_words(asked: Asked) -> None:
    move(asked, "refused", state="failed", refused=True)
    found = asked.found(("conductor", "do move_paths"), ("iscsi-worker", "prepare"), ("iscsi-worker", "start"))
    assert found["iscsi-worker", "start"].error
    assert found["iscsi-worker", "prepare"].error == found["iscsi-worker", "start"].error
    assert found["conductor", "do move_paths"].error


def test_no_token_is_in_what_was_sent(asked: Asked, traced: tuple[Cluster, Collector]) -> None:
    asked.post("/v1/disks", {"name": "unsaid", "size_bytes": 64 << 20, "paths": 1, "allow_any": True})
    asked.found(("api", "POST /v1/disks"))
    token = asked.cluster.http.headers["Authorization"].removeprefix("Bearer ")
    assert token.encode() not in traced[1].raw
    assert b"guest:guest" not in traced[1].raw


def scraped(url: str, token: str = "") -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Samples by name and labels."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(url, headers=headers, timeout=10)
    assert answer.status_code == 200, answer.text
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_each_process_measures_what_it_did(asked: Asked) -> None:
    cluster = asked.cluster
    cluster.create_disk("measured", paths=1)
    token = cluster.http.headers["Authorization"].removeprefix("Bearer ")
    api = scraped(f"{cluster.url}/metrics", token)
    assert api["sanderling_disks"][("state", "started"),] >= 1
    conductor = scraped(f"http://{cluster.network.parts_address}:9641/metrics")
    ended = (("kind", "disk.create"), ("state", "succeeded"))
    assert conductor["sanderling_operations_ended_total"][ended] >= 1
    assert conductor["sanderling_step_seconds_count"][("result", "done"), ("step", "publish"), ("way", "do")] >= 1

    def workers() -> list[dict[str, dict[tuple[tuple[str, str], ...], float]]]:
        return [scraped(f"http://{cluster.network.address(node, 'back')}:9642/metrics") for node in cluster.network.nodes]

    def serving() -> bool:
        return sum(one["sanderling_worker_exports"][("phase", "serving"),] for one in workers()) >= 1

    waited(serving, within_s=60, what="the workers count what they serve")
    assert sum(one["sanderling_worker_action_seconds_count"].get(_TAKEN, 0.0) for one in workers()) >= 1
    left = [one["sanderling_worker_lease_left_seconds"][()] for one in workers()]
    assert max(seconds for seconds in left if not math.isnan(seconds)) > 0, "of those that serve something"


_TAKEN = (("action", "take"), ("result", "done"))


def test_a_failover_is_measured_as_a_fence_and_a_gap(asked: Asked) -> None:
    cluster = asked.cluster
    disk = cluster.create_disk("failing-over", paths=1)
    owner = cluster.http.get(f"/v1/disks/{disk['id']}").json()["paths"][0]["gateway"]
    heir = next(node for node in cluster.network.nodes if node != owner)
    cluster.kill_node(owner)

    def measured() -> bool:
        seen = scraped(f"http://{cluster.network.address(heir, 'back')}:9642/metrics")
        fences = seen["sanderling_worker_fence_seconds_count"][("result", "done"),]
        return fences >= 1 and seen["sanderling_worker_gap_seconds_count"][("kind", "failover"),] >= 1

    try:
        waited(measured, within_s=60, what="the heir has measured its fence and the gap")
    finally:
        cluster.heal()
