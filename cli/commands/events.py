"""sanderling event …"""

import sys
from json import dumps
from typing import Annotated

import typer

from cli.access import find
from cli.client import Client, Json
from cli.commands.disks import AsJson
from cli.output import out

app = typer.Typer(no_args_is_help=True, help="The history: every change of state.")


@app.command(epilog="Example: sanderling event tail --after 0 --no-follow --json")
def tail(
    after: Annotated[
        int | None, typer.Option(min=0, help="Start behind the event with this number; 0 is the beginning. Default: now.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on as events happen.")] = True,
    json: AsJson = False,
) -> None:
    """Print events, oldest first; with --json one JSON document a line."""
    client = Client(find())
    for event in client.events(after=after) if follow else client.history(after=after or 0):
        if json:
            sys.stdout.write(dumps(event) + "\n")
            sys.stdout.flush()
        else:
            out.print(_line(event), highlight=False)


def _line(event: Json) -> str:
    data = event.get("data") or {}
    about = data.get("name") or data.get("resource_name") or event.get("resource_id") or ""
    words = [f"{event['id']:>6}", event["at"][:23], f"{event['kind']:<24}", about, data.get("step") or "", f"by {event['actor']}"]
    return "  ".join(word for word in words if word)
