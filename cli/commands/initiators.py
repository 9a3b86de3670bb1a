"""sanderling disk connections, usage and initiator-settings: who uses a disk, how much of it, and how they are set up for it."""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client, at
from cli.commands.disks import AsJson, Name, app
from cli.output import as_json, facts, out, size, table
from sanderling.model.initiators import System


@app.command(epilog="Example: sanderling disk connections backup")
def connections(name: Name, json: AsJson = False) -> None:
    """Show who is connected to each path of a disk."""
    found = Client(find()).get(at("disks", name, "connections"))
    if json:
        as_json(found)
        return
    table(
        {
            "PATH": lambda one: one["path"],
            "ADDRESS": lambda one: one["address"],
            "GATEWAY": lambda one: one["gateway"],
            "INITIATOR": lambda one: one["initiator"],
            "FROM": lambda one: f"{one['initiator_address']} port {one['initiator_port']}",
        },
        found["connections"],
        none="Nobody is connected.",
    )


@app.command(epilog="Example: sanderling disk usage backup")
def usage(name: Name, json: AsJson = False) -> None:
    """Count what a disk's data takes up, before replication."""
    found = Client(find()).get(at("disks", name, "usage"))
    if json:
        as_json(found)
        return
    facts([("size", size(found["size_bytes"])), ("used", size(found["used_bytes"]))])


@app.command("initiator-settings", epilog="Example: sanderling disk initiator-settings backup --for esxi")
def initiator_settings(
    name: Name, system: Annotated[System, typer.Option("--for", help="The initiator's system.")] = System.OPEN_ISCSI
) -> None:
    """Print what to type on an initiator so that it finds the disk and outlasts the cluster's longest gap."""
    out.out(Client(find()).text(at("disks", name, "initiator-settings"), **{"for": system.value}), end="", highlight=False)
