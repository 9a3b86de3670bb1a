"""The lab's checkers find what is planted, and nothing where nothing is: a report of zeros means nothing without this."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.lab.intervals import FOREVER, intervals, most_at_once, overlaps
from cli.lab.lab import Lab
from cli.lab.orphans import Observed, left_open, orphans
from cli.lab.processes import Process
from cli.lab.registers import NEVER_WRITTEN, UNREADABLE, History, Read, Write, violations
from cli.lab.scenarios.machines import CLAIM, must_notice
from sanderling.settings import Settings

HONEST = History(
    writes=[Write(7, 1, 1.0, 2.0), Write(7, 2, 3.0, 4.0), Write(7, 3, 9.0, None), Write(8, 4, 5.0, 6.0)],
    reads=[Read(7, 0, 0.0, 0.5), Read(7, 1, 1.2, 1.8), Read(7, 1, 3.5, 3.8), Read(7, 2, 5.0, 5.1), Read(7, 3, 9.5, 9.6)],
)


def test_an_honest_history_has_no_violation() -> None:
    assert violations(HONEST) == []


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (Read(7, 1, 5.2, 5.3), "write 2 was acknowledged, but write 1 is there: a stale or lost write"),
        (Read(8, NEVER_WRITTEN, 7.0, 7.1), "write 4 was acknowledged, but write 0 is there: a stale or lost write"),
        (Read(7, 2, 9.7, 9.8), "an earlier read returned write 3, this one the older write 2: it went back"),
        (Read(7, 3, 8.0, 8.5), "holds write 3, which had not been sent"),
        (Read(8, 99, 7.0, 7.1), "holds write 99, which had not been sent"),
        (Read(7, UNREADABLE, 5.0, 5.1), "holds what was never written to it"),
    ],
    ids=["stale write", "lost write", "going back", "from the future", "from nowhere", "torn"],
)
def test_a_planted_violation_is_found_alone(read: Read, said: str) -> None:
    found = violations(History(HONEST.writes, [*HONEST.reads, read]))
    assert len(found) == 1
    assert said in found[0]


def test_a_write_of_unknown_fate_may_be_seen_late_or_never() -> None:
    writes = [Write(1, 1, 1.0, 2.0), Write(1, 2, 3.0, None)]
    assert violations(History(writes, [Read(1, 1, 5.0, 6.0), Read(1, 2, 7.0, 8.0)])) == []
    assert violations(History(writes, [Read(1, 2, 5.0, 6.0), Read(1, 1, 7.0, 8.0)]))


def test_every_history_of_an_honest_disk_passes_and_every_rollback_of_an_acknowledged_write_is_found() -> None:
    dice = random.Random(5)
    for _ in range(200):
        writes, reads, held, now = [], [], 0, 0.0
        for number in range(1, 30):
            begun = now + dice.random()
            done = begun + dice.random()
            acknowledged = dice.random() < 0.8
            writes.append(Write(0, number, begun, done if acknowledged else None))
            held = number if acknowledged or dice.random() < 0.5 else held
            reads.append(Read(0, held, done, done + 0.1))
            now = done + 0.2
        assert violations(History(writes, reads)) == []
        last = max(write.number for write in writes if write.acknowledged_at is not None)
        assert violations(History(writes, [*reads, Read(0, last - 1, now, now + 1)]))


def opened(at: float, client: str) -> dict[str, Any]:
    return {"event": "gate opened", "export": "d/0", "at": at, "client": client}


def entry(event: str, at: float, **more: Any) -> dict[str, Any]:
    return {"event": event, "export": "d/0", "at": at, **more}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([opened(1, "a"), entry("gate closed", 2, client="a")], [opened(2, "b")]),
        ([opened(1, "a")], [entry("fenced", 2, client="a"), opened(2.1, "b")]),
        ([opened(1, "a"), entry("export ended", 2, reason="killed")], [opened(2.1, "b")]),
        ([opened(1, "a"), entry("export ended", 9, reason="fenced")], [entry("fenced", 2, client="a"), opened(2.1, "b")]),
    ],
    ids=["given up", "fenced", "ended", "fenced long before it noticed"],
)
def test_owners_one_after_another_do_not_overlap(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    found = intervals({"n1": one, "n2": other})
    assert [each.client for each in found["d/0"]] == ["a", "b"]
    assert found["d/0"][1].closed == FOREVER
    assert overlaps(found) == []
    assert most_at_once(found) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([opened(1, "a")], [opened(5, "b")]),
        ([opened(1, "a"), entry("gate closed", 5.001, client="a")], [opened(5, "b")]),
        ([opened(1, "a")], [opened(5, "b"), entry("fenced", 5.5, client="a")]),
        ([opened(1, "a"), entry("export ended", 6, reason="lease_lapsed")], [opened(5, "b")]),
        ([opened(1, "a"), entry("gate closed", 2, client="a"), opened(4, "a")], [opened(5, "b")]),
    ],
    ids=["never closed", "closed too late", "fenced too late", "ended too late", "opened again"],
)
def test_two_open_gates_are_found(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    found = intervals({"n1": one, "n2": other})
    assert len(overlaps(found)) == 1
    assert most_at_once(found) == 2


def test_other_exports_and_the_same_client_again_are_no_overlap() -> None:
    found = intervals({"n1": [opened(1, "a"), opened(2, "a"), opened(2, "z") | {"export": "d/1"}]})
    assert overlaps(found) == []


WHOLE = Observed(
    addresses={"n1": frozenset({"10.0.0.100"}), "n2": frozenset()},
    processes={"n1": ("d/0",), "n2": ()},
    watchers={"d": frozenset({"c1"})},
    keys=("disks/d", "exports/d/0", "nodes/n1", "leaders/x"),
    exports={"d/0": {"node": "n1", "client": "c1"}},
    disks=({"id": "d", "name": "one", "started": True, "paths": [{"address": "10.0.0.100", "gateway": "n1"}]},),
    open_operations=(),
)


def test_a_whole_installation_has_no_orphans() -> None:
    assert orphans(WHOLE) == []
    assert left_open(WHOLE) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"addresses": dict(WHOLE.addresses) | {"n2": frozenset({"10.0.0.100"})}}, "n2 has 10.0.0.100, which is not its to have"),
        ({"addresses": dict(WHOLE.addresses) | {"n1": frozenset()}}, "n1 lacks 10.0.0.100"),
        ({"processes": dict(WHOLE.processes) | {"n2": ("d/0",)}}, "n2 runs a target process of d/0 too many"),
        ({"processes": dict(WHOLE.processes) | {"n1": ("d/0", "d/0")}}, "n1 runs a target process of d/0 too many"),
        ({"processes": dict(WHOLE.processes) | {"n1": ()}}, "n1 has no target process of d/0"),
        ({"watchers": {"d": frozenset({"c1", "c0"})}}, "the image of one is open to c0, which no export names"),
        ({"keys": (*WHOLE.keys, "exports/gone/0")}, "key exports/gone/0 belongs to no disk"),
        ({"keys": (*WHOLE.keys, "rubbish")}, "key rubbish is of no known kind"),
    ],
)
def test_a_planted_orphan_is_found_alone(change: dict[str, Any], said: str) -> None:
    assert orphans(replace(WHOLE, **change)) == [said]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ([], True),
        (["10.0.0.100"], True),
        (["10.0.0.100", "10.0.0.101"], True),
        (["10.0.0.100", "10.0.0.100"], False),
    ],
    ids=["nothing", "an earlier one", "another address", "this one"],
)
def test_a_claim_that_the_worker_does_not_notice_is_found(tmp_path: Path, said: list[str], *, found: bool) -> None:
    lab, worker = Lab(tmp_path), Process("n1", "sanderling-iscsi-worker", Settings(), tmp_path, netns="")
    worker.log_file.write_text("".join(f'{{"event": "{CLAIM}", "address": "{address}"}}\n' for address in said))
    must_notice(lab, worker, "10.0.0.100", before=1, within_s=0.01)
    assert [each.checker for each in lab.findings] == (["F13"] if found else [])
    assert bool(lab.measured) is not found


def test_an_operation_left_open_is_found() -> None:
    assert left_open(replace(WHOLE, open_operations=("o1",))) == ["operation o1 has not ended"]
