"""sanderling gateway …"""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client
from cli.commands.disks import AsJson
from cli.output import as_json, facts, table

app = typer.Typer(no_args_is_help=True, help="The nodes that serve paths now.")


@app.command("list", epilog="Example: sanderling gateway list")
def list_(json: AsJson = False) -> None:
    """List live gateways."""
    found = Client(find()).pages("/v1/gateways", "gateways")
    if json:
        as_json(list(found))
        return
    table(
        {
            "NAME": lambda gateway: gateway["name"],
            "EXPORTS": lambda gateway: len(gateway["exports"]),
            "REFUSES": lambda gateway: len(gateway["refused"]),
            "WITHDRAWING": lambda gateway: gateway["withdrawing"],
        },
        found,
        none="No gateway is up.",
    )


@app.command(epilog="Example: sanderling gateway show node-1")
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")], json: AsJson = False) -> None:
    """Show one gateway."""
    gateway = Client(find()).get(f"/v1/gateways/{name}")
    if json:
        as_json(gateway)
        return
    facts(
        [
            ("name", gateway["name"]),
            ("interfaces", gateway["interfaces"]),
            ("exports", gateway["exports"]),
            ("refuses", [f"{export}: {reason}" for export, reason in gateway["refused"].items()]),
            ("withdrawing", gateway["withdrawing"]),
        ]
    )
