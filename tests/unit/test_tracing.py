"""One trace for one action: what is taken over from outside, what is passed on, and what log lines say of it."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from rpc.dispatch import Dispatch
from rpc.messages import ExportCommand, ExportReport, Message
from sanderling import logs, tracing
from sanderling.clock import SystemClock
from sanderling.errors import Unavailable
from sanderling.model.disks import Disk
from sanderling.model.exports import ExportId, ExportPhase
from sanderling.model.operations import Cause, OperationKind
from sanderling.records.database import Records
from sanderling.settings import General
from sanderling.settings import Records as RecordsSettings
from tests.house import Gateways, House
from tests.unit.api_app import GIB, Api, running
from tests.unit.test_worker import Node

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
HOSTILE = {
    "empty": "",
    "upper case": GIVEN.upper(),
    "no trace": f"00-{'0' * 32}-{SPAN}-01",
    "no span": f"00-{TRACE}-{'0' * 16}-01",
    "the version that is none": f"ff-{TRACE}-{SPAN}-01",
    "version 0 with more": f"{GIVEN}-more",
    "short": GIVEN[:-1],
    "long": f"01-{TRACE}-{SPAN}-01-{'a' * 5000}",
    "a line of its own": f"{GIVEN}\n",
    "a forged log line": f"00-{TRACE}-{SPAN}-01\r\nX: y",
    "not hexadecimal": f"00-{'g' * 32}-{SPAN}-01",
    "digits of another script": f"00-{TRACE[:-1]}\u0663-{SPAN}-01",
}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged meanwhile, as a process would."""
    before, handlers, level = structlog.get_config(), logging.getLogger().handlers[:], logging.getLogger().level
    text = io.StringIO()
    logs.configure(General(node="here"), process="test", to=text)
    yield text
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def said(lines: io.StringIO, event: str) -> list[dict[str, str]]:
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_traceparent_is_taken_for_none(given: str) -> None:
    assert tracing.accepted(given) is None
    with tracing.span("x", parent=given):
        assert tracing.current() is None


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        (GIVEN, GIVEN),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", GIVEN),
        (f"cc-{TRACE}-{SPAN}-01", GIVEN),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-then", GIVEN),
    ],
)
def test_a_traceparent_is_passed_on_as_far_as_it_is_known(given: str, passed_on: str) -> None:
    assert tracing.accepted(given) == passed_on


@pytest.mark.parametrize("given", [value for value in HOSTILE.values() if value.isascii() and value.isprintable()])
def test_a_request_with_a_hostile_traceparent_is_answered_with_a_trace_of_our_own(api: Api, given: str) -> None:
    answer = api.client.get("/healthz", headers={"traceparent": given})
    own = tracing.accepted(answer.headers["traceparent"])
    assert answer.status_code == 200
    assert own is not None
    assert TRACE not in own


def test_two_traceparents_are_none(api: Api) -> None:
    answer = api.client.get("/healthz", headers=[("traceparent", GIVEN), ("traceparent", GIVEN)])
    assert TRACE not in answer.headers["traceparent"]


def test_a_request_s_trace_is_stored_with_its_operation_and_goes_with_its_wake_up(api: Api) -> None:
    answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB}, headers={"traceparent": GIVEN})
    assert answer.json()["traceparent"] == GIVEN
    assert answer.headers["traceparent"] == GIVEN


def test_the_line_of_an_accepted_request_names_its_operation_and_its_trace(api: Api, lines: io.StringIO) -> None:
    answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB}, headers={"traceparent": GIVEN})
    (line,) = said(lines, "accepted")
    assert (line["operation_id"], line["trace_id"]) == (answer.json()["id"], TRACE)


def test_a_disk_is_shown_without_what_only_workers_are_told(api: Api) -> None:
    api.disk("db")
    plan = api.client.post("/v1/disks", json={"name": "d2", "size_bytes": GIB}, params={"dry_run": "true"}).json()
    assert "cause" not in api.client.get("/v1/disks/db").json()
    assert "cause" not in plan["disk"]


def test_a_part_of_an_action_has_its_trace_and_what_follows_has_not() -> None:
    with tracing.span("whole", parent=GIVEN):
        with tracing.span("part"):
            assert tracing.current() == GIVEN
        with tracing.span("of another", parent=f"00-{'a' * 32}-{SPAN}-01"):
            assert tracing.current() != GIVEN
        assert tracing.current() == GIVEN
    assert tracing.current() is None


def test_what_begins_has_a_trace_that_nobody_records_while_tracing_is_off() -> None:
    with tracing.span("begins", begins=True):
        begun = tracing.current()
    assert begun is not None
    assert tracing.accepted(begun) == begun
    assert begun.endswith("-00")
    with tracing.span("of nothing"):
        assert tracing.current() is None


def test_the_lines_of_a_command_name_its_operation_and_its_trace(lines: io.StringIO) -> None:
    log = structlog.get_logger("test")

    def handle(_: Message) -> None:
        log.info("handled")

    command = {"operation_id": "o1", "disk_id": "d", "index": 0, "generation": 1, "counter": 1, "traceparent": GIVEN}
    methods = {"export.clean": (ExportCommand, handle)}
    Dispatch("iscsi_worker", methods, park=lambda *_: None, payload_max_bytes=1000).answer("export.clean", command)
    log.info("after")
    (line,) = said(lines, "handled")
    assert (line["operation_id"], line["trace_id"], line["process"], line["node"]) == ("o1", TRACE, "test", "here")
    (after,) = said(lines, "after")
    assert not {"operation_id", "trace_id", "method"} & after.keys()


def test_the_lines_of_an_operation_name_it_and_its_trace_also_in_a_step_s_thread(house: House, lines: io.StringIO) -> None:
    gateways = Gateways(house.coordination)
    gateways.start()
    operation = house.done(OperationKind.CREATE_DISK, house.disk())
    gateways.stop()
    for event in ("driving", "operation ended"):
        (line,) = said(lines, event)
        assert line["operation_id"] == operation.id
        assert line["trace_id"]


def test_the_line_of_an_operation_that_cannot_go_on_names_its_trace(house: House, tmp_path: Path, lines: io.StringIO) -> None:
    operation = house.ask(OperationKind.CREATE_DISK, house.disk())

    class Away(Records):
        """Gone once the operation has been claimed."""

        claims = 0

        def begin(self) -> Any:
            self.claims += 1
            if self.claims > 1:
                raise Unavailable("the records are away")
            return super().begin()

    away = Away(RecordsSettings(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=SystemClock())
    house.stores = replace(house.stores, records=away)
    house.drive(operation)
    away.close()
    (line,) = said(lines, "cannot go on; a sweep will")
    assert line["operation_id"] == operation.id
    assert line["trace_id"]


def test_workers_are_told_in_a_disk_s_key_which_operation_published_it(house: House) -> None:
    gateways = Gateways(house.coordination)
    gateways.start()
    disk = house.disk()
    operation = house.done(OperationKind.CREATE_DISK, disk)
    gateways.stop()
    entry = house.coordination.get(f"disks/{disk.id}")
    assert entry is not None
    cause = Disk.model_validate_json(entry.value).cause
    assert cause.operation_id == operation.id
    assert tracing.accepted(cause.traceparent)
    described = house.described(disk)
    assert described is not None
    assert described.cause == Cause(), "the image's own description is nobody's doing"


def reports(node: Node, seen: str) -> list[ExportReport]:
    return [one for one in list(node.worker._reports._queue.queue) if one is not None and one.seen == seen]


def publish(node: Node, *, started: bool = True, revision: int = 1, address: str = "10.0.0.1") -> ExportId:
    export = node.publish("1", started=started, revision=revision)
    entry = node.store.get("disks/1")
    assert entry is not None
    disk = Disk.model_validate_json(entry.value)
    cause = Cause(operation_id=f"o{revision}", traceparent=f"00-{revision:032x}-{SPAN}-01")
    paths = (disk.paths[0].model_copy(update={"address": address}),)
    told = disk.model_copy(update={"cause": cause, "paths": paths})
    node.store.put("disks/1", told.model_dump_json().encode())
    return export


def test_a_worker_that_takes_or_gives_up_what_was_published_does_it_in_that_operation_s_trace(
    node: Node, lines: io.StringIO
) -> None:
    export = publish(node)
    node.serve(export)
    node.turn_until(lambda: bool(reports(node, "served")), "it is reported")
    assert (reports(node, "served")[0].traceparent or "").split("-")[1] == f"{1:032x}"
    (taking,) = said(lines, "taking")
    assert (taking["operation_id"], taking["trace_id"]) == ("o1", f"{1:032x}")
    publish(node, started=False, revision=2)
    node.turn_until(lambda: bool(reports(node, "left")), "it is given up")
    assert (reports(node, "left")[0].traceparent or "").split("-")[1] == f"{2:032x}"


def test_a_failover_long_after_an_operation_is_no_part_of_its_trace(node: Node, lines: io.StringIO) -> None:
    export = publish(node)
    node.serve(export)
    del node.node.processes[export]
    node.turn_until(lambda: len(said(lines, "taking")) == 2, "it is taken again")
    again = said(lines, "taking")[1]
    assert "operation_id" not in again
    assert again["trace_id"] not in {"", f"{1:032x}"}


def test_what_follows_from_a_command_is_part_of_its_operation_s_trace(node: Node, lines: io.StringIO) -> None:
    export = publish(node)
    node.serve(export)
    command = node.command(export).model_copy(update={"operation_id": "o9", "traceparent": GIVEN})
    with tracing.span("export.clean", parent=command.traceparent):
        node.told("clean", command)
    node.turn_until(lambda: node.value(export).phase is ExportPhase.LEFT, "it is given up")
    node.turn_until(lambda: bool(said(lines, "given up")), "it says so")
    assert said(lines, "given up")[0]["operation_id"] == "o9"
    assert said(lines, "given up")[0]["trace_id"] == TRACE


def test_the_line_of_an_action_that_failed_names_its_operation_too(node: Node, lines: io.StringIO) -> None:
    publish(node, address="192.0.2.1")  # the node's own: it cannot be lent
    node.turn_until(lambda: bool(said(lines, "action failed")), "it fails")
    (failed, *_) = said(lines, "action failed")
    assert (failed["operation_id"], failed["trace_id"]) == ("o1", f"{1:032x}")


def test_a_cause_that_is_nonsense_does_not_keep_an_export_from_being_taken(node: Node) -> None:
    export = node.publish("1")
    entry = node.store.get("disks/1")
    assert entry is not None
    disk = Disk.model_validate_json(entry.value)
    told = disk.model_copy(update={"cause": Cause(operation_id="o", traceparent="nonsense-" * 1000)})
    node.store.put("disks/1", told.model_dump_json().encode())
    node.serve(export)
