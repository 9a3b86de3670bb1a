"""sanderling path …"""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client
from cli.commands.disks import AsJson
from cli.output import as_json, table

app = typer.Typer(no_args_is_help=True, help="See which gateway serves which path.")


@app.command("list", epilog="Example: sanderling path list --contains back")
def list_(
    disk: Annotated[str | None, typer.Option(help="Only the paths of this disk, by name or id.")] = None,
    contains: Annotated[str | None, typer.Option(help="Only paths of disks whose name contains this, in any case.")] = None,
    gateway: Annotated[str | None, typer.Option(help="Only paths that this gateway serves.")] = None,
    address: Annotated[str | None, typer.Option(help="Only the path with this address.")] = None,
    json: AsJson = False,
) -> None:
    """List paths."""
    found = Client(find()).pages("/v1/paths", "paths", disk=disk, disk_contains=contains, gateway=gateway, address=address)
    if json:
        as_json(list(found))
        return
    table(
        {
            "DISK": lambda path: path["disk"],
            "PATH": lambda path: path["index"],
            "ADDRESS": lambda path: path["address"],
            "SUBNET": lambda path: path["subnet"],
            "GATEWAY": lambda path: path["gateway"],
            "STATUS": lambda path: path["status"],
            "DESTINATION": lambda path: path["destination"],
            "MOVE": lambda path: path["move"],
        },
        found,
        none="No paths.",
    )
