"""sanderling lab …: break an installation on purpose, on this machine, and see whether every promise holds."""

import secrets
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.commands.disks import AsJson
from cli.output import as_json, err, out, table
from sanderling.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="The fault lab: real parts in network namespaces, faults under load, checks.")

Out = Annotated[Path, typer.Option("--out", help="Folder of the results; what is finished there is not run again.")]
DEFAULT_OUT = Path("lab-report")


@app.command("list", epilog="Example: sanderling lab list")
def list_(json: AsJson = False) -> None:
    """List the scenarios."""
    from cli.lab.scenarios import ALL, NOT_APPLICABLE  # noqa: PLC0415  loads the whole lab

    found: list[dict[str, Any]] = [
        {"name": each.name, "title": each.title, "rounds": each.quick, "rounds_full": each.full} for each in ALL
    ]
    found += [
        {"name": name, "title": f"not applicable: {why}", "rounds": 0, "rounds_full": 0} for name, why in NOT_APPLICABLE.items()
    ]
    if json:
        as_json(found)
        return
    table(
        {
            "NAME": lambda row: row["name"],
            "ROUNDS": lambda row: row["rounds"],
            "FULL": lambda row: row["rounds_full"],
            "WHAT": lambda row: row["title"],
        },
        found,
        none="There are no scenarios.",
    )


@app.command(epilog="Example: sanderling lab run F4 F5-node --rounds 5")
def run(
    scenarios: Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Names or faults; all without.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Many rounds: up to 90 minutes instead of 15.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each scenario, instead of its own number.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Throw the same dice again.")] = None,
    out_folder: Out = DEFAULT_OUT,
    json: AsJson = False,
) -> None:
    """Run scenarios and write the report; exit code 1 when a promise was broken, or nothing was proved.

    Needs root and the packages of `scripts/install-system real`. An interrupted run is taken up again by the same command.
    """
    from cli.lab import needs, results, runner  # noqa: PLC0415
    from cli.lab.scenarios import chosen  # noqa: PLC0415

    picked = [each for each in chosen(scenarios or []) if scenarios or full or rounds or each.quick]
    needs.check()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything that was started is ended
    out_folder.mkdir(parents=True, exist_ok=True)
    thrown = seed if seed is not None else _kept_seed(out_folder)
    plan = runner.Plan(picked, thrown, full, rounds)
    results.want(out_folder, {each.name: plan.parameters(each) for each in picked})
    err.print(f"seed {thrown}; {len(picked)} scenarios; results in {out_folder}", highlight=False, markup=False)
    runner.run(plan, out_folder.resolve(), lambda line: err.print(line, highlight=False, markup=False))
    _report(out_folder, json=json)


@app.command(epilog="Example: sanderling lab report --out lab-report")
def report(out_folder: Out = DEFAULT_OUT, json: AsJson = False) -> None:
    """Write the report of what is in the folder again, and show it; exit code 1 as `run`, also for what was not run yet."""
    _report(out_folder, json=json)


def _report(folder: Path, *, json: bool) -> None:
    from cli.lab import report, results  # noqa: PLC0415
    from cli.lab.about import about  # noqa: PLC0415

    plan = results.wanted(folder)
    if not plan:
        raise NotFound(f"{folder} holds no run; run `sanderling lab run` first, or name the folder with --out")
    ordered = results.of_the_plan(results.stored(folder), plan)
    missing = [name for name in plan if name not in ordered]
    file = report.write(folder, ordered, missing=missing, about=about(ordered))
    if json:
        out.file.write((folder / results.REPORT).read_text())
    else:
        out.print(file.read_text(), highlight=False, markup=False)
    if report.faults(ordered, missing):
        raise typer.Exit(1)


def _kept_seed(folder: Path) -> int:
    """The seed of the run that this folder holds, so that it can be taken up again."""
    from cli.lab.results import wanted  # noqa: PLC0415

    return next((each.seed for each in wanted(folder).values()), secrets.randbelow(1_000_000))
