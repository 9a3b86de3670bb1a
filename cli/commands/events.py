"""sanderling event …"""

import sys
from typing import Annotated

import typer

from cli.client import Client, Json, find
from cli.commands.disks import AsJson
from cli.output import out

app = typer.Typer(no_args_is_help=True, help="The history: every change of state.")


@app.command(epilog="Example: sanderling event tail --after 0 --no-follow --json")
def tail(
    after: Annotated[int, typer.Option(min=0, help="Start behind the event with this number; 0 is the beginning.")] = 0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on as events happen.")] = True,
    json: AsJson = False,
) -> None:
    """Print events, oldest first; with --json one JSON document a line."""
    client = Client(find())
    found = client.events(after=after) if follow else client.pages("/v1/events", "events", after=after)
    for event in found:
        _print(event, json=json)


def _print(event: Json, *, json: bool) -> None:
    if json:
        import json as codec  # noqa: PLC0415  the option's name hides it

        sys.stdout.write(codec.dumps(event) + "\n")
        sys.stdout.flush()
        return
    data = event.get("data") or {}
    about = data.get("name") or data.get("resource_name") or event.get("resource_id") or ""
    more = data.get("step") or ""
    out.print(f"{event['id']:>6}  {event['at'][:23]}  {event['kind']:<24} {about} {more}  by {event['actor']}", highlight=False)
