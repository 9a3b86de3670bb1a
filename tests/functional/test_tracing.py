"""Spans as a collector gets them: one trace from request to worker, no secret in it, and nothing loaded while it is off."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab.cluster import Cluster
from cli.lab.network import Network
from cli.lab.parts.daemons import waited
from sanderling import tracing
from sanderling.errors import TargetFailed
from sanderling.model.operations import OperationState
from sanderling.settings import Settings, Tracing
from tests.parts import usage
from tests.parts.collector import Collector, SeenSpan, tree

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{SPAN}-01"
GIB = 1 << 30
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
            raise TargetFailed("tgtadm: out of memory")
        with pytest.raises(ValueError, match="canary"), tracing.span("b", begins=True):
            raise ValueError("password=canary")
    told, untold = collector.spans
    assert told.error == "tgtadm: out of memory"
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


@pytest.fixture
def traced(tmp_path: Path, network: Network, tgt: str) -> Iterator[tuple[Cluster, Collector]]:
    """All processes on the real parts, sending to a collector beside them."""
    with Collector(f"{network.parts_address.rpartition('.')[0]}.254") as collector:
        changes = {"tracing": {"enabled": "on", "endpoint": collector.endpoint, "send_interval_s": 0.1}}
        made = Cluster(tmp_path, network, changes=changes)
        try:
            made.start()
            for title, part in (("RabbitMQ", made.rabbitmq), ("Consul", made.consul), ("Ceph", made.ceph)):
                usage.used(title, part.version)
            yield made, collector
        finally:
            made.stop()


def ended(cluster: Cluster, answer: dict[str, str]) -> None:
    def has() -> bool:
        state = cluster.http.get(f"/v1/operations/{answer['id']}").json()["state"]
        return bool(state == OperationState.SUCCEEDED)

    waited(has, within_s=60, what="the operation succeeds")


def by_name(spans: list[SeenSpan]) -> dict[tuple[str, str], SeenSpan]:
    return {(span.service.removeprefix("sanderling-"), span.name): span for span in spans}


def test_one_trace_leads_from_the_request_over_the_conductor_to_the_worker(traced: tuple[Cluster, Collector]) -> None:
    cluster, collector = traced
    body = {"name": "db", "size_bytes": GIB, "allow_any": True, "start": True}
    answer = cluster.http.post("/v1/disks", json=body, headers={"traceparent": CALLER})
    assert answer.status_code == 202, answer.text
    ended(cluster, answer.json())
    wanted = {("api", "POST /v1/disks"), ("conductor", "disk.create"), ("iscsi-worker", "take"), ("iscsi-worker", "serving")}

    def spans() -> list[SeenSpan]:
        return [span for span in collector.spans if span.trace_id == TRACE]

    waited(lambda: wanted <= by_name(spans()).keys(), within_s=20, what="the spans of all three processes arrive")
    print(tree(spans()))  # noqa: T201
    found = by_name(spans())
    request, driven, take = found["api", "POST /v1/disks"], found["conductor", "disk.create"], found["iscsi-worker", "take"]
    assert request.parent_id == SPAN
    assert driven.parent_id == request.span_id
    assert take.parent_id == found["conductor", "do publish"].span_id
    for step in ("do create_image", "do describe", "do publish", "do await_served", "do settle"):
        assert found["conductor", step].parent_id == driven.span_id
    for part in ("lock", "start", "portal", "gate", "serving"):
        assert found["iscsi-worker", part].parent_id == take.span_id
    assert take.attributes["sanderling.operation_id"] == driven.attributes["sanderling.operation_id"] == answer.json()["id"]
    assert cluster.http.headers["Authorization"].partition(" ")[2].encode() not in collector.raw


def test_a_move_s_commands_and_what_both_gateways_do_are_one_trace(traced: tuple[Cluster, Collector]) -> None:
    cluster, collector = traced
    created = cluster.http.post("/v1/disks", json={"name": "db", "size_bytes": GIB, "allow_any": True, "start": True})
    ended(cluster, created.json())
    (path,) = cluster.http.get("/v1/paths").json()["paths"]
    other = next(node for node in cluster.network.nodes if node != path["gateway"])
    body = {"planner": "manual", "paths": [path["address"]], "gateway": other}
    answer = cluster.http.post("/v1/assignments", json=body, headers={"traceparent": CALLER})
    assert answer.status_code == 202, answer.text
    ended(cluster, answer.json())
    wanted = {("conductor", "do move_paths")} | {
        ("iscsi-worker", name) for name in ("export.path_host", "export.clean", "prepare", "handover", "activate", "pass_on")
    }

    def spans() -> list[SeenSpan]:
        return [span for span in collector.spans if span.trace_id == TRACE]

    waited(lambda: wanted <= by_name(spans()).keys(), within_s=20, what="the spans of the move arrive")
    print(tree(spans()))  # noqa: T201
    found = by_name(spans())
    step = found["conductor", "do move_paths"]
    commands = {span.span_id for span in spans() if span.name in {"export.path_host", "export.clean"}}
    assert all(span.parent_id == step.span_id for span in spans() if span.span_id in commands)
    assert {found["iscsi-worker", name].parent_id for name in ("prepare", "handover")} <= commands
