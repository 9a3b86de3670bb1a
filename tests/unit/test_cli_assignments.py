"""What the command line asks for and shows when paths are moved."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from cli import access
from cli.client import Client
from cli.commands.assignments import accepted, show_plan
from cli.main import app
from cli.output import OperationFailed
from sanderling.errors import InvalidInput
from tests.unit.api_app import listening, running
from tests.unit.api_site import Site

MOVE = {
    "disk": "db",
    "paths": ["10.1.0.1", "10.2.0.1"],
    "from": "node-a",
    "to": "node-b",
    "state": "moving",
    "gap_s": None,
    "problem": None,
}


def operation(state: str, **more: Any) -> dict[str, Any]:
    ended = "2026-11-21T00:00:00Z" if state in {"succeeded", "failed"} else None
    return {
        "id": "o",
        "kind": "paths.assign",
        "resource": "/v1/assignments/o",
        "resource_name": "assignments",
        "state": state,
        "steps": [],
        "ended_at": ended,
        "notes": ["db: its paths move together"],
        **more,
    }


def serving(answers: dict[str, Any], asked: list[httpx.Request]) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=answers[request.url.path])

    return Client(access.Access("http://test", "t"), transport=httpx.MockTransport(answer))


def test_waiting_for_an_assignment_shows_its_moves_and_how_each_ended(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[httpx.Request] = []
    ended = {"counts": {"succeeded": 1, "failed": 1, "pending": 0}, "moves": [{**MOVE, "state": "succeeded", "gap_s": 0.0214}]}
    client = serving({"/v1/operations/o": operation("succeeded"), "/v1/assignments/o": ended}, asked)
    accepted(client, operation("pending"), wait=True, json=False)
    said = capsys.readouterr().err
    assert "moves: 1 succeeded, 1 failed" in said
    assert "db 10.1.0.1, 10.2.0.1: node-a → node-b  gap 0.021 s" in said
    assert "Note: db: its paths move together" in said


@pytest.mark.rows("W-PA-17")
def test_an_assignment_that_fails_names_its_problem_and_is_a_failure() -> None:
    failed = operation("failed", problem={"detail": "1 of 2 moves failed: db"})
    page = {"counts": {"failed": 1}, "moves": [{**MOVE, "state": "failed", "problem": {"detail": "node-b refused it"}}]}
    client = serving({"/v1/operations/o": failed, "/v1/assignments/o": page}, [])
    with pytest.raises(OperationFailed, match="1 of 2 moves failed"):
        accepted(client, operation("pending"), wait=True, json=True)


def test_an_operation_that_moves_no_paths_is_waited_for_by_its_steps() -> None:
    asked: list[httpx.Request] = []
    done = operation("succeeded", resource="/v1/gateways/node-a")
    accepted(serving({"/v1/operations/o": done}, asked), {**done, "ended_at": None}, wait=True, json=False)
    assert {request.url.path for request in asked} == {"/v1/operations/o"}


@pytest.mark.parametrize(
    ("resource", "command"),
    [("/v1/assignments/o", "sanderling assignment show o"), ("/v1/gateways/node-a", "sanderling operation watch o")],
)
def test_what_is_accepted_is_followed_by_a_command_that_knows_it(
    capsys: pytest.CaptureFixture[str], resource: str, command: str
) -> None:
    accepted(serving({}, []), operation("pending", resource=resource), wait=False, json=False)
    assert capsys.readouterr().out.strip().endswith(f": {command}")


def test_nothing_to_do_is_said_and_never_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[httpx.Request] = []
    accepted(serving({}, asked), {"moves": [], "notes": ["nothing to do"]}, wait=True, json=False)
    assert "nothing to do" in capsys.readouterr().err
    assert asked == []


def test_a_plan_is_shown_with_what_moves_together_the_gap_to_expect_and_how_to_apply_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    move = {"disk": "db", "paths": ["10.1.0.1", "10.2.0.1"], "together": True, "from": None, "to": "node-b", "risk": "none"}
    plan = {
        "plan_id": "p",
        "moves": [{**move, "expected_gap_s": {"p50": 0.02, "p99": 0.5, "measured": 9}}],
        "before": {"exports": {"node-a": 2}},
        "after": {"exports": {"node-a": 1, "node-b": 1}},
        "score": {"ok": True},
        "notes": [],
    }
    show_plan(plan, json=False)
    said = capsys.readouterr().out
    for part in ("10.1.0.1, 10.2.0.1, together", "0.020/0.500", "node-a 1, node-b 1", "sanderling assignment apply p --wait"):
        assert part in said
    show_plan(plan, json=True)
    assert json.loads(capsys.readouterr().out) == plan


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("assignment plan", "--average"),
        ("assignment plan --average --planner best", "--planner"),
        ("assignment plan --average --to node-b", "--to"),
        ("assignment plan --to node-b", "--path"),
        ("assignment apply p --average", "PLAN_ID"),
        ("disk mark db", "--clear"),
        ("disk mark db --clear --pin node-a", "--clear"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anybody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, option: str
) -> None:
    access.write(tmp_path / "client.json", access.Access("http://127.0.0.1:9", "t"))
    monkeypatch.setenv("SANDERLING_CLIENT", str(tmp_path / "client.json"))
    fault = CliRunner().invoke(app, line.split()).exception
    assert isinstance(fault, InvalidInput)
    assert fault.context["errors"][0]["field"] == option


def typed(line: str) -> Result:
    """What the command prints; it succeeds."""
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, done.output
    return done


def test_an_undrain_that_is_only_shown_leaves_the_gateway_drained_and_the_real_one_is_an_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as api, listening(api, tmp_path / "client.json") as file:
        monkeypatch.setenv("SANDERLING_CLIENT", str(file))
        site = Site(api, "node-a", "node-b")
        shown = json.loads(typed("gateway undrain node-a --dry-run --json").stdout)
        assert (shown["drained"], shown["notes"]) == (False, ["nothing to do: node-a is not drained"])
        site.drain("node-a")
        before = api.tables()
        shown = json.loads(typed("gateway undrain node-a --dry-run --json").stdout)
        assert (shown["dry_run"], shown["drained"]) == (True, True)
        assert shown["notes"] == ["node-a would be given exports again, by balancing or by an assignment"]
        said = typed("gateway undrain node-a --dry-run --wait")
        assert (said.stdout, said.stderr.strip()) == ("", f"Note: {shown['notes'][0]}")
        assert api.tables() == before
        operation = json.loads(typed("gateway undrain node-a --json").stdout)
        assert (operation["kind"], operation["state"], operation["ended_at"]) == ("gateway.undrain", "pending", None)


@pytest.mark.rows("PA-7")
def test_who_has_paths_assigned_is_told_that_it_was_accepted_and_how_to_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as api, listening(api, tmp_path / "client.json") as file:
        monkeypatch.setenv("SANDERLING_CLIENT", str(file))
        site = Site(api, "node-a", "node-b")
        site.disk("db", "node-a")
        site.disk("log", "node-a")
        nothing = typed(f"assignment apply --path {site.address('db')} --to node-a")
        assert (nothing.stdout, "nothing to do" in nothing.stderr) == ("", True)
        said = typed(f"assignment apply --path {site.address('db')} --to node-b").stdout.split()
        (assignment,) = site.get("/v1/assignments")["assignments"]
        assert said == f"Operation {assignment['id']} accepted: sanderling assignment show {assignment['id']}".split()
        site.finish(assignment["id"])
        said = typed("assignment apply --average").stdout.split()
        assert said == []
