"""sanderling statistics: what the leader has measured."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from cli.access import find
from cli.client import Client, Json
from cli.commands.disks import AsJson
from cli.output import as_json, size, table

NOW_MINUTES = 5


def statistics(
    gateway: Annotated[str | None, typer.Option(help="What this gateway has done.")] = None,
    disk: Annotated[str | None, typer.Option(help="What the exports of this disk have done.")] = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="How far to look back; 60 with --gateway or --disk.")] = None,
    coarse: Annotated[bool, typer.Option("--coarse", help="Averages, which are kept for longer; not of disks.")] = False,
    json: AsJson = False,
) -> None:
    """Show the cluster and its gateways as last measured, or the course of one gateway or disk."""
    is_course = bool(gateway or disk)
    since = datetime.now(UTC) - timedelta(minutes=minutes or (60 if is_course else NOW_MINUTES))
    asked = {"since": since.isoformat(), "resolution": "coarse" if coarse else "fine", "limit": 1000}
    client = Client(find())
    wanted = [f"gateway/{gateway}"] if gateway else [f"disk/{disk}"] if disk else ["cluster", "gateway/"]
    found = [row for resource in wanted for row in client.pages("/v1/statistics", "statistics", resource=resource, **asked)]
    if not is_course:
        found = list({row["resource"]: row for row in found}.values())
    if json:
        as_json(found)
    elif disk:
        _show_exports(found)
    else:
        _show_gateways(found)


def _show_gateways(found: Sequence[Json]) -> None:
    table(
        {
            "AT": lambda row: row["at"],
            "OF": lambda row: row["resource"],
            "LIVE": lambda row: row["figures"].get("live", row["figures"].get("gateways")),
            "EXPORTS": lambda row: row["figures"]["exports"],
            "CONNECTIONS": lambda row: row["figures"]["connections"],
            "USED": lambda row: _size(row["figures"].get("used_bytes")),
            "FREE": lambda row: _size(row["figures"].get("free_bytes")),
        },
        found,
        none="Nothing was measured: does anybody lead (sanderling leader show)?",
    )


def _show_exports(found: Sequence[Json]) -> None:
    table(
        {
            "AT": lambda row: row["at"],
            "EXPORT": lambda row: row["resource"].removeprefix("export/"),
            "GATEWAY": lambda row: row["figures"]["gateway"],
            "PHASE": lambda row: row["figures"]["phase"],
            "CONNECTIONS": lambda row: row["figures"]["connections"],
        },
        found,
        none="Nothing was measured of this disk.",
    )


def _size(size_bytes: Any) -> str | None:
    return None if size_bytes is None else size(int(size_bytes))
