"""sanderling subnet …"""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client, at
from cli.commands.disks import AsJson
from cli.output import as_json, facts, out, table

app = typer.Typer(no_args_is_help=True, help="Subnets that path addresses are taken from.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The subnet's name.")]


@app.command(
    epilog="Example: sanderling subnet create front --cidr 10.78.0.0/16 --interface eth1 --first 10.78.1.1 --last 10.78.1.254"
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and hyphens.")],
    cidr: Annotated[str, typer.Option(help="Such as 10.78.0.0/16.")],
    interface: Annotated[str, typer.Option(help="The network interface that carries it on every gateway.")],
    first: Annotated[str | None, typer.Option(help="First address that may be given to a path.")] = None,
    last: Annotated[str | None, typer.Option(help="Last address that may be given to a path.")] = None,
    json: AsJson = False,
) -> None:
    """Add a subnet."""
    body = {"name": name, "cidr": cidr, "interface": interface, "pool_first": first, "pool_last": last}
    made = Client(find()).post("/v1/subnets", {field: value for field, value in body.items() if value is not None})
    if json:
        as_json(made)
    else:
        out.print(f"Subnet {made['name']} added: paths get {made['pool_first']} to {made['pool_last']}.", highlight=False)


@app.command("list", epilog="Example: sanderling subnet list --json")
def list_(json: AsJson = False) -> None:
    """List subnets."""
    found = Client(find()).pages("/v1/subnets", "subnets")
    if json:
        as_json(list(found))
        return
    table(
        {
            "NAME": lambda subnet: subnet["name"],
            "CIDR": lambda subnet: subnet["cidr"],
            "INTERFACE": lambda subnet: subnet["interface"],
            "FIRST": lambda subnet: subnet["pool_first"],
            "LAST": lambda subnet: subnet["pool_last"],
        },
        found,
        none="No subnets.",
    )


@app.command(epilog="Example: sanderling subnet show front")
def show(name: Name, json: AsJson = False) -> None:
    """Show one subnet."""
    subnet = Client(find()).get(at("subnets", name))
    if json:
        as_json(subnet)
        return
    facts(
        [
            ("name", subnet["name"]),
            ("cidr", subnet["cidr"]),
            ("interface", subnet["interface"]),
            ("first", subnet["pool_first"]),
            ("last", subnet["pool_last"]),
        ]
    )


@app.command(epilog="Example: sanderling subnet delete front")
def delete(name: Name, json: AsJson = False) -> None:
    """Remove a subnet that no path uses."""
    Client(find()).delete(at("subnets", name))
    if json:
        as_json({"name": name, "deleted": True})
    else:
        out.print(f"Subnet {name} removed.", highlight=False)
