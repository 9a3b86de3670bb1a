"""sanderling assignment …"""

import uuid
from collections.abc import Callable
from typing import Annotated

import typer
from rich.text import Text

from cli.access import find
from cli.client import Client, Json, at
from cli.commands.disks import AsJson, Wait
from cli.output import as_json, err, facts, moves, out, table, watched
from sanderling.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Move paths between gateways: plan, apply, follow, cancel, undo.")

SHOWN_MAX = 20
Id = Annotated[str, typer.Argument(metavar="ID", help="The assignment's id.")]
Average = Annotated[bool, typer.Option("--average", help="Spread evenly, with the fewest moves.")]
Planner = Annotated[str | None, typer.Option(help="An installed planner, by its name.")]
Paths = Annotated[list[str] | None, typer.Option("--path", help="Only the path with this address; repeatable.")]
To = Annotated[str | None, typer.Option(help="Move the given paths to this gateway.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")]


@app.command("list", epilog="Example: sanderling assignment list --state failed")
def list_(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    json: AsJson = False,
) -> None:
    """List what moved paths, drains of gateways too, newest first."""
    found = Client(find()).get("/v1/assignments", state=state, limit=limit)["assignments"]
    if json:
        as_json(found)
        return
    table(
        {
            "ID": lambda one: one["id"],
            "KIND": lambda one: one["kind"],
            "ASKED BY": lambda one: one["requested_by"],
            "STATE": lambda one: one["state"],
            "MOVES": lambda one: [f"{count} {name}" for name, count in one["counts"].items() if count],
            "SINCE": lambda one: one["created_at"],
        },
        found,
        none="No assignments.",
    )


@app.command(epilog="Example: sanderling assignment show 0d0c…")
def show(assignment_id: Id, json: AsJson = False) -> None:
    """Show one assignment with all of its moves."""
    client = Client(find())
    assignment = client.get(at("assignments", assignment_id))
    assignment["moves"] = list(client.pages(at("assignments", assignment_id), "moves"))
    del assignment["next"]
    if json:
        as_json(assignment)
        return
    facts(
        [
            ("id", assignment["id"]),
            ("kind", assignment["kind"]),
            ("state", assignment["state"]),
            ("asked by", assignment["requested_by"]),
            ("at", assignment["created_at"]),
            ("ended", assignment["ended_at"]),
            ("problem", (assignment["problem"] or {}).get("detail")),
        ]
    )
    table(
        {
            "DISK": lambda move: move["disk"],
            "PATHS": lambda move: move["paths"],
            "FROM": lambda move: move["from"],
            "TO": lambda move: move["to"],
            "STATE": lambda move: move["state"],
            "GAP (s)": lambda move: move["gap_s"],
            "PROBLEM": lambda move: (move["problem"] or {}).get("detail"),
        },
        assignment["moves"],
        none="No moves.",
    )


@app.command(epilog="Example: sanderling assignment plan --path 10.0.1.5 --path 10.0.1.6 --to node2")
def plan(average: Average = False, planner: Planner = None, path: Paths = None, to: To = None, json: AsJson = False) -> None:
    """Show which paths would move where, what that risks and what comes of it; nothing is moved."""
    answer = Client(find()).post("/v1/assignments", _wanted(average, planner, path, to), dry_run=True)
    show_plan(answer, json=json)


@app.command(epilog="Example: sanderling assignment apply 5f0e… --wait")
def apply(
    plan_id: Annotated[str | None, typer.Argument(metavar="[PLAN_ID]", help="A plan that was shown; it must still hold.")] = None,
    average: Average = False,
    planner: Planner = None,
    path: Paths = None,
    to: To = None,
    wait: Wait = False,
    json: AsJson = False,
) -> None:
    """Move paths, as a plan says or straight away."""
    if plan_id is not None and (average or planner or path or to):
        raise InvalidInput.of("PLAN_ID", "contradicts the other options", "give one of the two")
    client, body = Client(find()), {"plan_id": plan_id} if plan_id is not None else _wanted(average, planner, path, to)
    accepted(client, client.post("/v1/assignments", body, key=str(uuid.uuid4())), wait=wait, json=json)


@app.command(epilog="Example: sanderling assignment cancel 0d0c…")
def cancel(assignment_id: Id, json: AsJson = False) -> None:
    """Begin no further move of it; what has been moved stays."""
    assignment = Client(find()).post(at("assignments", assignment_id, "cancel"))
    if json:
        as_json(assignment)
    else:
        out.print(f"Assignment {assignment_id} is {assignment['state']}; cancelling was asked for.", highlight=False)


@app.command(epilog="Example: sanderling assignment undo 0d0c… --wait")
def undo(assignment_id: Id, dry_run: DryRun = False, wait: Wait = False, json: AsJson = False) -> None:
    """Move back what the last assignment has moved."""
    client = Client(find())
    link = at("assignments", assignment_id, "undo")
    if dry_run:
        show_plan(client.post(link, dry_run=True), json=json)
        return
    accepted(client, client.post(link, key=str(uuid.uuid4())), wait=wait, json=json)


def accepted(client: Client, answer: Json, *, wait: bool, json: bool) -> None:
    """Say what was accepted, or follow it to its end; an answer without an operation is that there is nothing to do."""
    if not json:
        for note in answer["notes"]:
            err.print(f"Note: {note}", markup=False, highlight=False)
    moves_paths = "id" in answer and answer["resource"].startswith("/v1/assignments/")
    if "id" in answer and wait:
        progress = _progress(client) if moves_paths else None
        answer = watched(client, answer, quiet=json, progress=progress)
    if json:
        as_json(answer)
    elif "id" in answer and not wait:
        follow = "assignment show" if moves_paths else "operation watch"
        out.print(f"Operation {answer['id']} accepted: sanderling {follow} {answer['id']}", highlight=False)


def show_plan(plan: Json, *, json: bool) -> None:
    """Print a plan, with how to apply it where it was kept."""
    if json:
        as_json(plan)
        return
    table(
        {
            "DISK": lambda move: move["disk"],
            "PATHS": lambda move: [*move["paths"], *(["together"] if move["together"] else [])],
            "FROM": lambda move: move["from"],
            "TO": lambda move: move["to"],
            "GAP p50/p99 (s)": _gap,
            "RISK": lambda move: move["risk"],
        },
        plan["moves"],
        none="No moves.",
    )
    for note in plan["notes"]:
        err.print(f"Note: {note}", markup=False, highlight=False)
    facts(
        [
            ("exports before", _counts(plan["before"])),
            ("exports after", _counts(plan["after"])),
            ("any one gateway may be lost", plan["score"]["ok"]),
        ]
    )
    if plan["plan_id"] and plan["moves"]:
        out.print(f"To apply it: sanderling assignment apply {plan['plan_id']} --wait", highlight=False)


def _counts(distribution: Json) -> list[str]:
    return [f"{name} {count}" for name, count in distribution["exports"].items()]


def _gap(move: Json) -> str | None:
    gap = move["expected_gap_s"]
    return f"{gap['p50']:.3f}/{gap['p99']:.3f}" if gap else None


def _wanted(average: bool, planner: str | None, paths: list[str] | None, to: str | None) -> Json:
    """The body of the request that these options mean."""
    if average and planner:
        raise InvalidInput.of("--planner", "contradicts --average", "give one of the two")
    if to is not None and (average or planner):
        raise InvalidInput.of("--to", "leaves nothing to a planner", "give --path with --to, or a planner without --to")
    if to is not None and not paths:
        raise InvalidInput.of("--path", "is needed with --to", f"give the address of each path that is to go to {to}")
    if to is not None:
        return {"planner": "manual", "paths": paths, "gateway": to}
    if not (average or planner or paths):
        raise InvalidInput.of("--average", "nothing says which paths are to move", "give --average, --planner or --path")
    return {"planner": planner or "average", **({"paths": paths} if paths else {})}


def _progress(client: Client) -> Callable[[Json], Text]:
    """What is moving, while it goes on; at the end how each move ended."""

    def shown(operation: Json) -> Text:
        state = None if operation["ended_at"] else "moving"
        page = client.get(at("assignments", operation["id"]), state=state, limit=SHOWN_MAX)
        return moves(operation, page["counts"], page["moves"])

    return shown
