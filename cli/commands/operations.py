"""sanderling operation …"""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client
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
    operation = Client(find()).get(f"/v1/operations/{operation_id}")
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


@app.command(epilog="Example: sanderling operation watch 0d0c…")
def watch(operation_id: Id, json: AsJson = False) -> None:
    """Follow an operation to its end; exit code 3 unless it succeeded."""
    client = Client(find())
    ended = watched(client, client.get(f"/v1/operations/{operation_id}"), quiet=json)
    if json:
        as_json(ended)


@app.command(epilog="Example: sanderling operation cancel 0d0c…")
def cancel(operation_id: Id, json: AsJson = False) -> None:
    """Ask that an operation be undone."""
    operation = Client(find()).post(f"/v1/operations/{operation_id}/cancel")
    if json:
        as_json(operation)
    else:
        out.print(f"Operation {operation_id} is {operation['state']}; cancelling was asked for.", highlight=False)
