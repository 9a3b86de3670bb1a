"""sanderling leader …"""

import typer

from cli.access import find
from cli.client import Client
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
    for one in found:
        if one["leader"]:
            facts([("service", one["service"]), *one["leader"].items()])
        else:
            out.print(f"{one['service']} has no leader now.", highlight=False)
    if not found:
        out.print("No service has ever had a leader.", highlight=False)
