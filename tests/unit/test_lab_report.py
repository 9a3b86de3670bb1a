"""The lab's report: what counts as a success, what adds up, what is not run again."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from cli.commands.lab import app
from cli.lab import report, results
from cli.lab.initiator import SECTOR, BlockHistory
from cli.lab.lab import Finding, Injected, Lab
from cli.lab.load import Load, number_in
from cli.lab.picture import svg
from cli.lab.registers import NEVER_WRITTEN, UNREADABLE, Read, Write
from cli.lab.results import Parameters, Result, Round
from cli.lab.runner import Plan, begun, check_answers, waiting
from cli.lab.scenarios import ALL, NOT_APPLICABLE, chosen
from cli.lab.scenarios.moves import over_budget
from conductor.balancer import BALANCER
from sanderling.errors import NotFound
from sanderling.settings import Conductor

ROUND = Round(1, [Injected(1.0, "SIGKILL")], {"a": 0.5, "b": 1.5}, healed_after_s=0.7, took_s=3.0)


def result(name: str = "F4-export") -> Result:
    return Result(
        name, name[:2], "killed", Parameters(7, 1, full=False), rounds=[ROUND], writes=100, reads=50, sessions=3, gates_at_once=1
    )


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    told = replace(result(), findings=[Finding("C1", "lost", 1)], errors=["e"], broken="x")
    assert results.read(results.write(told, tmp_path)) == told
    assert results.stored(tmp_path) == {"F4-export": told}


def test_a_run_without_findings_passes(tmp_path: Path) -> None:
    file = report.write(tmp_path, {"F4-export": result()}, missing=[], about={"seed": 7})
    assert report.faults({"F4-export": result()}, []) == []
    assert "**passed**" in file.read_text()
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is True


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (replace(result(), findings=[Finding("C2", "two gates", 1)]), "C2, round 1: two gates"),
        (replace(result(), rounds=[]), "no fault was injected"),
        (replace(result(), rounds=[ROUND, replace(ROUND, number=2, injected=[])]), "no fault was injected in round 2"),
        (replace(result(), writes=0), "no I/O"),
        (replace(result(), reads=0), "no I/O"),
        (replace(result(), broken="LabFailed: no leader"), "not finished: LabFailed: no leader"),
    ],
    ids=["finding", "no fault", "no fault in one round", "no writes", "no reads", "broken"],
)
def test_a_finding_and_a_run_that_proved_nothing_are_failures(tmp_path: Path, told: Result, said: str) -> None:
    found = {"F4-export": told, "F5-node": result("F5-node")}
    assert any(said in fault for fault in report.faults(found, []))
    text = report.write(tmp_path, found, missing=[], about={}).read_text()
    assert "**FAILED**" in text
    assert said in text
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False


def test_a_scenario_that_was_asked_for_and_not_run_is_a_failure() -> None:
    assert report.faults({"F4-export": result()}, ["F5-node"]) == ["F5-node: not run"]
    assert report.faults({}, [])


def test_the_table_adds_up_over_scenarios_and_rounds(tmp_path: Path) -> None:
    two = replace(result(), rounds=[ROUND, replace(ROUND, number=2, gaps_s={"a": 9.0})], parameters=Parameters(7, 3, full=False))
    (row,) = report.rows({"F4-export": two})
    assert (row["gap_p50_s"], row["gap_p99_s"], row["gap_max_s"]) == (1.5, 9.0, 9.0)
    text = report.write(tmp_path, {"F4-export": two, "F5-node": result("F5-node")}, missing=[], about={}).read_text()
    assert "2 of 3" in text
    cells = [cell.strip() for cell in re.findall(r"\| \*\*all\*\* \|.*", text)[0].strip("|").split("|")]
    assert cells == ["**all**", "3", "3", "200", "100", "", "", "", "", "1", "0", "0", "0", "0", "passed"]


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.99, 4.0), (0.0, 1.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert report.percentile([4.0, 1.0, 3.0, 2.0], share) == value
    assert report.percentile([], share) == 0.0


def test_the_picture_has_a_dot_for_each_round_in_order_of_length() -> None:
    drawn = ElementTree.fromstring(svg({"F4-<x>": [0.02, 2.0, 500.0], "F5": []}))
    dots = [float(dot.get("cx", "")) for dot in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(dots) == 3
    assert dots == sorted(dots)


def test_what_is_finished_with_the_same_parameters_is_not_run_again() -> None:
    scenario = chosen(["F4-export"])[0]
    plan = Plan([scenario], seed=7, full=False, rounds=1)
    assert waiting(plan, {"F4-export": result()}) == []
    assert waiting(plan, {}) == [scenario]
    assert waiting(plan, {"F4-export": replace(result(), broken="interrupted")}) == [scenario]
    for other in (replace(plan, seed=8), replace(plan, rounds=2), replace(plan, full=True)):
        assert waiting(other, {"F4-export": result()}) == [scenario]


CUT_SHORT = replace(result(), parameters=Parameters(7, 50, full=True), cut_short=True)


def test_rounds_that_there_was_no_time_for_are_added_by_the_next_run() -> None:
    scenario = chosen(["F4-export"])[0]
    plan = Plan([scenario], seed=7, full=True, rounds=50)
    assert waiting(plan, {"F4-export": CUT_SHORT}) == [scenario]
    assert begun(plan, scenario, {"F4-export": CUT_SHORT}) == replace(CUT_SHORT, cut_short=False)
    for other in (replace(CUT_SHORT, broken="x"), replace(CUT_SHORT, parameters=Parameters(8, 50, full=True))):
        assert begun(plan, scenario, {"F4-export": other}).rounds == []


def test_a_full_run_that_lacks_rounds_is_no_success(tmp_path: Path) -> None:
    assert report.faults({"F4-export": CUT_SHORT}, []) == ["F4-export: 1 of 50 rounds; run again, it goes on"]
    text = report.write(tmp_path, {"F4-export": CUT_SHORT}, missing=[], about={}).read_text()
    assert "| 1 of 50 |" in text
    assert "passed" not in text
    quick = replace(CUT_SHORT, parameters=Parameters(7, 50, full=False))
    assert report.faults({"F4-export": quick}, []) == []


@pytest.mark.parametrize(
    "there",
    [None, Parameters(8, 1, full=False), Parameters(7, 2, full=False), Parameters(7, 1, full=True)],
    ids=["nothing", "another seed", "other rounds", "another kind"],
)
def test_a_report_knows_what_was_not_run(tmp_path: Path, there: Parameters | None) -> None:
    results.want(tmp_path, {"F4-export": Parameters(7, 1, full=False), "F5-node": Parameters(7, 1, full=False)})
    results.write(result(), tmp_path)
    if there is not None:
        results.write(replace(result("F5-node"), parameters=there), tmp_path)
    said = CliRunner().invoke(app, ["report", "--out", str(tmp_path)])
    assert said.exit_code == 1
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["missing"], told["faults"]) == (["F5-node"], ["F5-node: not run"])
    assert [row["scenario"] for row in told["table"]] == ["F4-export"]
    results.write(result("F5-node"), tmp_path)
    assert CliRunner().invoke(app, ["report", "--out", str(tmp_path)]).exit_code == 0


def test_a_plan_grows_with_runs_of_its_kind_and_is_replaced_by_others(tmp_path: Path) -> None:
    one, two = {"F4-export": Parameters(7, 1, full=True)}, {"F5-node": Parameters(7, 2, full=True)}
    results.want(tmp_path, one)
    assert results.want(tmp_path, two) == one | two == results.wanted(tmp_path)
    other = {"F5-node": Parameters(8, 2, full=True)}
    assert results.want(tmp_path, other) == other == results.wanted(tmp_path)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    results.want(tmp_path, {"F4-export": Parameters(7, 1, full=False)})
    results.write(result(), tmp_path)
    (tmp_path / "foreign.json").write_text('{"hello": 1}')
    assert results.stored(tmp_path) == {"F4-export": result()}
    assert CliRunner().invoke(app, ["report", "--out", str(tmp_path)]).exit_code == 0


def test_what_a_scenario_measured_is_said_over_its_rounds(tmp_path: Path) -> None:
    two = replace(result(), rounds=[replace(ROUND, measured_s={"even": value_s}) for value_s in (6.0, 8.5)])
    assert results.read(results.write(two, tmp_path)) == two
    text = report.write(tmp_path, {"F4-export": two}, missing=[], about={}).read_text()
    assert "- F4-export: even after 6.00 s (median of 2), 8.50 s at most" in text
    assert "measured" not in report.write(tmp_path, {"F4-export": result()}, missing=[], about={}).read_text()


def balanced(second: int, moves: int, *, by: str = BALANCER) -> dict[str, Any]:
    at = f"2026-11-21T10:00:{second:02}Z"
    return {"created_at": at, "requested_by": by, "counts": {"done": moves - 1, "failed": 1}}


@pytest.mark.parametrize(
    ("assignments", "most"),
    [
        ([balanced(20, 2), balanced(9, 2), balanced(0, 2)], None),
        ([balanced(30, 9, by="admin"), balanced(9, 2), balanced(0, 2)], None),
        ([balanced(18, 3), balanced(9, 2), balanced(0, 2)], 5),
        ([balanced(9, 3), balanced(0, 2)], 5),
        ([balanced(0, 6)], 6),
    ],
    ids=["spread out", "asked for by people", "late", "early", "at once"],
)
def test_more_balancing_than_the_budget_allows_in_any_window_is_found(
    assignments: list[dict[str, Any]], most: int | None
) -> None:
    said = over_budget(assignments, Conductor(balance_moves_max=4, balance_window_s=10.0))
    assert said == (f"balancing asked for {most} moves within 10.0 s and may for 4" if most else None)


def test_scenarios_are_chosen_by_name_and_by_fault() -> None:
    assert chosen([]) == list(ALL)
    assert {each.fault for each in chosen(["F2", "F5-node"])} == {"F2", "F5"}
    assert [each.name for each in chosen(["F5-node"])] == ["F5-node"]
    with pytest.raises(NotFound, match="no power management"):
        chosen(["F12"])
    with pytest.raises(NotFound, match="sanderling lab list"):
        chosen(["F4-nothing"])


def test_every_fault_of_the_table_has_a_scenario_or_a_reason() -> None:
    assert {each.fault for each in ALL} | set(NOT_APPLICABLE) >= {f"F{number}" for number in range(1, 14)}


def test_a_journal_becomes_a_history_with_its_gaps(tmp_path: Path) -> None:
    load = Load("a", tmp_path, netns="", pace_s=0.01)
    load.journal.write_text(
        "l 0.9\ns 1 1 1.0\na 1 1 1.1\nr 1 1 1.2 1.3\ns 2 2 1.4\ns 2 2 6.0\na 2 2 6.1\ne 7.0 CHECK CONDITION\ns 3 3 7"
    )
    load.follow()
    assert load.history.writes == [Write(1, 1, 1.0, 1.1), Write(2, 2, 1.4, 6.1)]
    assert load.history.reads == [Read(1, 1, 1.2, 1.3)]
    assert (load.sessions, len(load.errors)) == (1, 1)
    with load.journal.open("a") as more:
        more.write(".5\n")
    load.follow()
    assert load.everything().writes[-1] == Write(3, 3, 7.5, None)
    assert load.gap(1.0, 8.0).length_s == pytest.approx(4.8)
    assert load.gap(2.0, 3.0).length_s == pytest.approx(4.8), "a gap that covers the window counts whole"


def test_a_command_that_was_answered_with_an_error_is_found_once(tmp_path: Path) -> None:
    lab, told = Lab(tmp_path), result()
    load = lab.loads["a"] = Load("a", tmp_path, netns="", pace_s=0.01)
    load.journal.write_text("e 7.0 CHECK CONDITION, sense key 3, code 0x1100\n")
    load.follow()
    check_answers(lab, told)
    (found,) = lab.findings
    assert found.checker == "H11"
    assert "disk a at 7.0 CHECK CONDITION, sense key 3" in found.what
    check_answers(lab, told)
    assert (len(lab.findings), len(told.errors)) == (1, 1)


def test_a_sector_is_known_by_the_write_it_holds_whole() -> None:
    blocks = BlockHistory(5)
    whole = blocks.block(3, 9)
    assert number_in(blocks, 3, whole) == 9
    assert number_in(blocks, 3, bytes(SECTOR)) == NEVER_WRITTEN
    assert number_in(blocks, 4, whole) == UNREADABLE, "it belongs elsewhere"
    assert number_in(BlockHistory(6), 3, whole) == UNREADABLE, "another wrote it"
    assert number_in(blocks, 3, whole[:256] + bytes(256)) == UNREADABLE, "half of it"
    assert number_in(blocks, 3, b"x" * SECTOR) == UNREADABLE
