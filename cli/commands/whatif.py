"""sanderling whatif: what the loss of gateways would do."""

from typing import Annotated

import typer

from cli.access import find
from cli.client import Client
from cli.commands.disks import AsJson
from cli.output import as_json, facts


def whatif(
    lose: Annotated[list[str], typer.Option(help="A gateway to lose; repeatable.")],
    json: AsJson = False,
) -> None:
    """Show who would take over, and what would be left badly served or not at all, if gateways died now."""
    told = Client(find()).get("/v1/whatif", lose=lose)
    if json:
        as_json(told)
        return
    unserved = [f"{one['disk']} ({one['reason']})" for one in told["unserved"]["exports"]]
    facts(
        [
            ("lost", told["lose"]),
            ("exports taken over", told["moves"]["count"]),
            ("exports before", [f"{name} {count}" for name, count in told["before"]["exports"].items()]),
            ("exports after", [f"{name} {count}" for name, count in told["after"]["exports"].items()]),
            ("not served", [f"{told['unserved']['count']}:", *unserved] if unserved else "nothing"),
            ("disks left with one path", told["one_path"]["disks"] or "none"),
            ("disks with two paths on one gateway", told["sharing"]["disks"] or "none"),
        ]
    )
