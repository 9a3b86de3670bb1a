"""sanderling leader …"""

import typer

from cli.client import Client, find
from cli.commands.disks import AsJson
from cli.output import as_json, facts, out

app = typer.Typer(no_args_is_help=True, help="Who leads: runs what only one process may run.")


@app.command(epilog="Example: sanderling leader show --json")
def show(json: AsJson = False) -> None:
    """Show the leader; "none" is an answer, "cannot know" is exit code 4."""
    found = Client(find()).get("/v1/leaders")["leaders"]
    if json:
        as_json(found)
        return
    for leader in found:
        if leader.get("node"):
            facts([("leader", leader["node"]), ("term", leader["term"]), ("since", leader["since"])])
        else:
            out.print("There is no leader now.", highlight=False)
