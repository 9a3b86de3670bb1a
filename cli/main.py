"""The command line: `sanderling NOUN VERB`. Every failure is one line on standard error and an exit code that means something."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from cli.commands import (
    assignments,
    changes,  # noqa: F401 - adds verbs to disks
    disks,
    doctor,
    events,
    gateways,
    initiators,  # noqa: F401 - likewise
    lab,
    leaders,
    notifications,
    operations,
    paths,
    secrets,
    snapshots,
    statistics,
    subnets,
    tokens,
    up,
    whatif,
)
from cli.output import OperationFailed, err, out
from sanderling.errors import Forbidden, Problem, Unauthenticated, Unavailable

EPILOG = (
    "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the operation that was waited for did not succeed, "
    "4 the service or a part of it cannot be reached, 5 not allowed."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Operate a Sanderling SAN. The service is found through a client file: $SANDERLING_CLIENT, "
    "~/.config/sanderling/client.json or ./sanderling-state/client.json.",
    epilog=EPILOG,
)
for name, noun in {
    "disk": disks,
    "snapshot": snapshots,
    "path": paths,
    "subnet": subnets,
    "gateway": gateways,
    "assignment": assignments,
    "operation": operations,
    "event": events,
    "leader": leaders,
    "notification": notifications,
    "token": tokens,
    "key": secrets,
    "lab": lab,
}.items():
    app.add_typer(noun.app, name=name)
app.command("whatif", epilog="Example: sanderling whatif --lose node-1 --lose node-2")(whatif.whatif)
app.command("statistics", epilog="Example: sanderling statistics --disk first")(statistics.statistics)
app.command("doctor", epilog="Example: sanderling doctor --role worker --json")(doctor.doctor)
app.command("up", epilog="Example: sanderling up --state /srv/try --port 9000")(up.up)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"sanderling {version('sanderling')}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show which version this is.")] = False,
) -> None:
    """Say which version this is, or leave it to a command."""


def run() -> None:
    """The entry point: runs a command and turns whatever happens into a line and an exit code."""
    try:
        app()
    except Problem as problem:
        _say(problem)
        sys.exit(_exit_code(problem))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what reads us has seen enough
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SANDERLING_DEBUG"):
            raise
        fault = type(error).__name__  # its text may hold a secret
        err.print(f"sanderling: a fault of ours: {fault}; set SANDERLING_DEBUG=1 to see where", markup=False, highlight=False)
        sys.exit(1)


def _say(problem: Problem) -> None:
    err.print(f"sanderling: {problem.detail}", markup=False, highlight=False)


def _exit_code(problem: Problem) -> int:
    match problem:
        case OperationFailed():
            return 3
        case Unavailable():
            return 4
        case Unauthenticated() | Forbidden():
            return 5
    return 1
