"""How results are shown: tables and live progress for people, JSON for scripts."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.client import Client, Json, at
from sanderling.clock import SystemClock
from sanderling.errors import Problem

PIPE_WIDTH = 240  # where there is no terminal, nothing is folded into one
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, soft_wrap=True)
POLL_S = 0.25
_COLOURS = {
    "succeeded": "green",
    "done": "green",
    "started": "green",
    "serving": "green",
    "running": "cyan",
    "moving": "cyan",
    "failed": "red",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}
_MARKS = {"pending": "·", "running": "▸", "done": "✓", "failed": "✗", "undone": "↩"}
_MOVES = {"moving": "▸", "succeeded": "✓", "failed": "✗", "cancelled": "-"}


class OperationFailed(Problem):
    """An operation that was waited for ended in another way than succeeded."""

    code, status, title = "operation-failed", 409, "The operation did not succeed"


def as_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def table(columns: Mapping[str, Callable[[Json], Any]], rows: Iterable[Json], *, none: str) -> None:
    """A table with one line a row; `none` when there are no rows."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(value(row)) for value in columns.values()))
    if shown.row_count:
        out.print(shown)
    else:
        err.print(none)


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values of one thing, a line each."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in pairs:
        shown.add_row(name, _cell(value))
    out.print(shown)


def size(size_bytes: int) -> str:
    """Bytes as people say them, in powers of 1024."""
    amount, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"


def watched(
    client: Client,
    operation: Json,
    *,
    quiet: bool = False,
    told: threading.Event | None = None,
    progress: Callable[[Json], Text] | None = None,
) -> Json:
    """Follow an operation to its end, showing its steps, or what `progress` makes of it; `OperationFailed` unless it succeeded.

    Once `told` is set, the operation is returned as it is, whether it has ended or not.
    """
    clock, stop, shown = SystemClock(), told or threading.Event(), progress or steps
    with Live(console=err, auto_refresh=False) if err.is_terminal and not quiet else contextlib.nullcontext() as live:
        while True:
            if live is not None:
                live.update(shown(operation), refresh=True)
            if operation["ended_at"]:
                break
            if clock.wait(stop, POLL_S):
                return operation
            operation = client.get(at("operations", operation["id"]))
    if not err.is_terminal and not quiet:
        err.print(shown(operation))
    if operation["state"] != "succeeded":
        problem = operation.get("problem") or {}
        reason = problem.get("detail") or f"it was {operation['state']}"
        raise OperationFailed(f"operation {operation['id']} {operation['state']}: {reason}", operation=operation)
    return operation


def steps(operation: Json) -> Text:
    """An operation with its steps, a line each."""
    line = Text(f"{operation['kind']} {operation['resource_name']}: ")
    line.append(str(operation["state"]), style=_COLOURS.get(str(operation["state"]), ""))
    for step in operation["steps"]:
        again = f" (attempt {step['attempts']})" if step["attempts"] > 1 else ""
        style = _COLOURS.get(step["state"], "dim")
        line.append(f"\n  {_MARKS.get(step['state'], '?')} {step['name']}{again}", style=style)
    return line


def moves(operation: Json, counts: Json, shown: Sequence[Json]) -> Text:
    """An operation that moves paths: its steps, how many moves are in which state, and these of them, a line each."""
    lines = steps(operation)
    said = [f"{count} {state}" for state, count in counts.items() if count]
    lines.append(f"\n  moves: {', '.join(said) or 'none yet'}")
    for move in shown:
        gap = "" if move["gap_s"] is None else f"  gap {move['gap_s']:.3f} s"
        reason = f"  {move['problem']['detail']}" if move["problem"] else ""
        lines.append(f"\n    {_MOVES.get(move['state'], '·')} {move['disk']} {', '.join(move['paths'])}: ")
        lines.append(f"{move['from'] or 'nobody'} → {move['to']}{gap}{reason}", style=_COLOURS.get(move["state"], "dim"))
    return lines


def _cell(value: Any) -> Text:
    if value is None or value == "":
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, list | tuple):
        return Text(", ".join(str(item) for item in value) or "-")
    return Text(str(value), style=_COLOURS.get(str(value), ""))
