"""sanderling gateway …"""

import uuid
from typing import Annotated

import typer

from cli.access import find
from cli.client import Client, at
from cli.commands.assignments import accepted, show_plan
from cli.commands.disks import AsJson, DryRun, Wait
from cli.output import as_json, err, facts, table

app = typer.Typer(no_args_is_help=True, help="The nodes that serve paths: see them, take one out of use, put it back.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]


@app.command("list", epilog="Example: sanderling gateway list")
def list_(json: AsJson = False) -> None:
    """List gateways that live, and those that are drained."""
    found = Client(find()).pages("/v1/gateways", "gateways")
    if json:
        as_json(list(found))
        return
    table(
        {
            "NAME": lambda gateway: gateway["name"],
            "LIVE": lambda gateway: gateway["live"],
            "DRAINED": lambda gateway: gateway["drained"],
            "EXPORTS": lambda gateway: gateway["counts"]["exports"],
            "PATHS": lambda gateway: gateway["counts"]["paths"],
            "REFUSES": lambda gateway: len(gateway["refused"]),
            "WITHDRAWING": lambda gateway: gateway["withdrawing"],
        },
        found,
        none="No gateway is up.",
    )


@app.command(epilog="Example: sanderling gateway show node-1")
def show(name: Name, json: AsJson = False) -> None:
    """Show one gateway."""
    gateway = Client(find()).get(at("gateways", name))
    if json:
        as_json(gateway)
        return
    facts(
        [
            ("name", gateway["name"]),
            ("live", gateway["live"]),
            ("drained", gateway["drained"]),
            ("interfaces", gateway["interfaces"]),
            ("exports", gateway["exports"]),
            ("paths", gateway["counts"]["paths"]),
            ("refuses", [f"{export}: {reason}" for export, reason in gateway["refused"].items()]),
            ("cannot reach", [f"{peer} on {nic}" for nic, peers in gateway["unreachable"].items() for peer in peers]),
            ("cut off on", gateway["cut_off"]),
            ("claimed by others", [f"{address} ({hardware})" for address, hardware in gateway["claimed"].items()]),
            ("image store", _store(gateway["image_store"])),
            ("withdrawing", gateway["withdrawing"]),
        ]
    )


def _store(said: dict[str, bool]) -> str:
    if not said["cut_off"]:
        return "answers" if said["answers"] else "does not answer"
    return "answers again, and is not relied on yet" if said["answers"] else "answers others, not this gateway"


@app.command(epilog="Example: sanderling gateway drain node-1 --wait")
def drain(
    name: Name,
    confirm: Annotated[
        str | None,
        typer.Option(help="The name again; needed when disks would be left without a gateway, now or after one loss."),
    ] = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json: AsJson = False,
) -> None:
    """Move everything off a gateway, and give it nothing until it is undrained."""
    client, link = Client(find()), at("gateways", name, "drain")
    body = {"confirm": confirm} if confirm else {}
    if not dry_run:
        accepted(client, client.post(link, body, key=str(uuid.uuid4())), wait=wait, json=json)
        return
    plan = client.post(link, body, dry_run=True)
    show_plan(plan, json=json)
    for left, said in (("unplaced", "nobody else may have it, it would stay"), ("exposed", "one more loss would take it down")):
        for disk in () if json else dict.fromkeys(export["disk"] for export in plan[left]):
            err.print(f"Note: disk {disk}: {said}; this needs --confirm {name}", markup=False, highlight=False)


@app.command(epilog="Example: sanderling gateway undrain node-1 --wait")
def undrain(name: Name, dry_run: DryRun = False, wait: Wait = False, json: AsJson = False) -> None:
    """Let a gateway be given exports again."""
    client, link = Client(find()), at("gateways", name, "undrain")
    answer = client.post(link, dry_run=True) if dry_run else client.post(link, key=str(uuid.uuid4()))
    accepted(client, answer, wait=wait, json=json)


@app.command(epilog="Example: sanderling gateway score")
def score(json: AsJson = False) -> None:
    """Show whether any one gateway may be lost without a path staying down."""
    told = Client(find()).get("/v1/score")
    if json:
        as_json(told)
        return
    facts([("any one gateway may be lost", told["ok"]), ("worst to lose", told["worst"])])
    now = [{"gateway": "none, as things are", **told["unserved"]}] if told["unserved"]["count"] else []
    rows = now + [{"gateway": name, **loss} for name, loss in told["losses"].items()]
    if rows:
        table(
            {
                "LOST": lambda row: row["gateway"],
                "NOT SERVED": lambda row: row["count"],
                "DISKS": lambda row: list(dict.fromkeys(one["disk"] for one in row["exports"])),
            },
            rows,
            none="",
        )
