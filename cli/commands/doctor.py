"""sanderling doctor"""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.commands.disks import AsJson
from cli.doctor.base import Finding, Role, State, examine
from cli.output import as_json, err, table
from sanderling.clock import SystemClock

TIMEOUT_S: Final = 20.0
UNITS: Final = Path("/etc/systemd/system")
PROGRAMS: Final = {
    Role.API: "sanderling-api",
    Role.CONDUCTOR: "sanderling-conductor",
    Role.WORKER: "sanderling-iscsi-worker",
    Role.LEADER: "sanderling-leader",
}
Roles = Annotated[
    list[Role] | None,
    typer.Option(
        "--role", help="Check what this process needs; may be repeated. Without it: those enabled on this host, or all."
    ),
]


def doctor(role: Roles = None, json: AsJson = False) -> None:
    """Check everything that this host's processes need, and say what to mend. Exit code 1 when anything fails."""
    from cli.doctor import checks  # noqa: PLC0415  it loads whatever any process loads, which takes a second
    from sanderling import logs, settings  # noqa: PLC0415

    clock, file = SystemClock(), next(iter(settings.found()), None)
    loaded = settings.load()
    quiet = settings.General(node=loaded.sanderling.node, log_level="ERROR", log_format="console")
    logs.configure(quiet, process="doctor")  # what the parts log meanwhile the findings say too
    found, all_ended = examine(checks.of(loaded, file, role or enabled(UNITS), clock=clock), timeout_s=TIMEOUT_S, clock=clock)
    _show(found, json=json)
    failed = any(finding.state is State.FAIL for finding in found)
    if not all_ended:  # whatever a check still waits for in a library is not waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    raise typer.Exit(1 if failed else 0)


def enabled(units: Path) -> Collection[Role]:
    """Those that systemd starts on this host; all when it starts none."""
    wanted = {link.name.removesuffix(".service") for link in units.glob("*.wants/sanderling-*.service")}
    return [role for role, program in PROGRAMS.items() if program in wanted] or list(Role)


def _show(found: Sequence[Finding], *, json: bool) -> None:
    rows = [{"check": one.what, "state": one.state.value, "seen": one.seen, "fix": one.fix} for one in found]
    if json:
        as_json(rows)
        return
    columns = {name.upper(): (lambda row, name=name: row[name]) for name in ("check", "state", "seen", "fix")}
    table(columns, rows, none="Nothing to check.")
    counts = {state: sum(one.state is state for one in found) for state in State}
    said = f"{counts[State.OK]} ok, {counts[State.WARN]} to look at, {counts[State.FAIL]} failed"
    err.print(said, highlight=False)
