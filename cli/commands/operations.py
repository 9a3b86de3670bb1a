"""sanderling operation …"""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client, Json, at
from cli.commands.disks import AsJson
from cli.output import as_json, facts, out, table, watched

app = typer.Typer(no_args_is_help=True, help="What was asked for, how far it is, and how it ended.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The operation's id.")]


@app.command("list", epilog="Example: sanderling operation list --state running")
def list_(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    json: AsJson = False,
) -> None:
    """List operations, newest first."""
    found = Client(find()).get("/v1/operations", state=state, limit=limit)["operations"]
    if json:
        as_json(found)
        return
    table(
        {
            "ID": lambda operation: operation["id"],
            "KIND": lambda operation: operation["kind"],
            "ON": lambda operation: operation["resource_name"],
            "STATE": lambda operation: operation["state"],
            "SINCE": lambda operation: operation["created_at"],
        },
        found,
        none="No operations.",
    )


@app.command(epilog="Example: sanderling operation show 0d0c…")
def show(operation_id: Id, json: AsJson = False) -> None:
    """Show one operation with its steps."""
    operation = Client(find()).get(at("operations", operation_id))
    if json:
        as_json(operation)
        return
    facts(
        [
            ("id", operation["id"]),
            ("kind", operation["kind"]),
            ("on", operation["resource_name"]),
            ("state", operation["state"]),
            ("asked by", operation["requested_by"]),
            ("at", operation["created_at"]),
            ("ended", operation["ended_at"]),
            ("problem", (operation.get("problem") or {}).get("detail")),
        ]
    )
    table(
        {
            "STEP": lambda step: step["name"],
            "STATE": lambda step: step["state"],
            "ATTEMPTS": lambda step: step["attempts"],
            "DEADLINE (s)": lambda step: step["deadline_s"],
            "ENDED": lambda step: step["ended_at"],
        },
        operation["steps"],
        none="No steps.",
    )


@app.command(epilog="Example: sanderling operation explain 0d0c…")
def explain(operation_id: Id, json: AsJson = False) -> None:
    """Say why an operation is where it is: who has it, what it waits for, and what is safe to do."""
    explained = Client(find()).get(at("operations", operation_id, "explain"))
    if json:
        as_json(explained)
        return
    out.print(explained["summary"], highlight=False, markup=False)
    holder, step, following = explained["holder"], explained["step"], explained["next_deadline"]
    facts(
        [
            ("state", explained["state"]),
            ("held by", _held(holder) if holder else "nobody"),
            ("step", _at_work(step) if step else None),
            ("last told of", explained["told_at"]),
            ("next", f"{following['at']}: {following['then']}" if following else None),
        ]
    )
    for wait in explained["waits_for"]:
        out.print(f"- {wait['detail']}", highlight=False, markup=False)
    out.print(f"Do: {explained['safe_next_action']}", highlight=False, markup=False)


def _held(holder: Json) -> str:
    force = f"until {holder['until']}" if holder["is_live"] else "its claim is not in force"
    return f"{holder['conductor']} since {holder['since']}, {force} (claim {holder['claim_epoch']})"


def _at_work(step: Json) -> str:
    what = f"undoing {step['name']}" if step["is_undoing"] else step["name"]
    said = f"{what}, {step['number']} of {step['of']}, attempt {step['attempts']} of {step['attempts_max']}"
    return f"{said}, since {step['since']}" if step["since"] else said


@app.command(epilog="Example: sanderling operation watch 0d0c…")
def watch(operation_id: Id, json: AsJson = False) -> None:
    """Follow an operation to its end; exit code 3 unless it succeeded."""
    client = Client(find())
    ended = watched(client, client.get(at("operations", operation_id)), quiet=json)
    if json:
        as_json(ended)


@app.command(epilog="Example: sanderling operation cancel 0d0c…")
def cancel(operation_id: Id, json: AsJson = False) -> None:
    """Ask that an operation be undone."""
    operation = Client(find()).post(at("operations", operation_id, "cancel"))
    if json:
        as_json(operation)
    else:
        out.print(f"Operation {operation_id} is {operation['state']}; cancelling was asked for.", highlight=False)
