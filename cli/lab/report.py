"""One report of all results in a folder: report.md for people, report.json for programs, gaps.svg for the distribution."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.lab.picture import svg
from cli.lab.results import REPORT, Result
from cli.lab.scenarios import NOT_APPLICABLE

COLUMNS = (
    "scenario",
    "rounds",
    "faults",
    "writes",
    "reads",
    "gap p50",
    "gap p99",
    "gap max",
    "served again, max",
    "open gates",
    "stale or lost",
    "errors",
    "left open",
    "orphans",
    "verdict",
)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def rows(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """The table, as values; times in seconds."""
    return [
        {
            "scenario": result.scenario,
            "title": result.title,
            "rounds": len(result.rounds),
            "rounds_wanted": result.parameters.rounds,
            "faults": result.faults_injected,
            "writes": result.writes,
            "reads": result.reads,
            "gap_p50_s": percentile(result.gaps_s, 0.5),
            "gap_p99_s": percentile(result.gaps_s, 0.99),
            "gap_max_s": max(result.gaps_s, default=0.0),
            "served_again_max_s": max((each.healed_after_s for each in result.rounds), default=0.0),
            "open_gates": result.gates_at_once,
            "stale_or_lost": result.stale_or_lost,
            "errors": len(result.errors),
            "left_open": result.left_open,
            "orphans": result.orphans,
            "faulty": result.faulty,
        }
        for result in results.values()
    ]


def faults(results: Mapping[str, Result], missing: Sequence[str]) -> list[str]:
    """Why the run is no success; empty when it is."""
    said = [f"{name}: {fault}" for name, result in results.items() for fault in result.faulty]
    said += [f"{name}: not run" for name in missing]
    return said or ([] if results else ["nothing was run"])


def write(folder: Path, results: Mapping[str, Result], *, missing: Sequence[str], about: Mapping[str, Any]) -> Path:
    """All three files; the path of report.md. `missing` names scenarios that belong to the run and have no result."""
    failed = faults(results, missing)
    whole = {"about": about, "passed": not failed, "faults": failed, "missing": list(missing), "table": rows(results)}
    whole |= {"not_applicable": NOT_APPLICABLE, "results": [asdict(result) for result in results.values()]}
    (folder / REPORT).write_text(json.dumps(whole, indent=1))
    (folder / "gaps.svg").write_text(svg({name: result.gaps_s for name, result in results.items()}))
    file = folder / "report.md"
    file.write_text(_markdown(results, failed, about))
    return file


def _markdown(results: Mapping[str, Result], failed: Sequence[str], about: Mapping[str, Any]) -> str:
    lines = ["# Fault lab", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += [f"**{'FAILED' if failed else 'passed'}**", "", _line(COLUMNS), _line(["---", *["---:"] * 13, "---"])]
    lines += [_line(_cells(row)) for row in rows(results)]
    total = rows(results)
    sums = [sum(row[name] for row in total) for name in ("rounds", "faults", "writes", "reads")]
    sums += ["", "", "", "", max((row["open_gates"] for row in total), default=0)]
    sums += [sum(row[name] for row in total) for name in ("stale_or_lost", "errors", "left_open", "orphans")]
    lines += [_line(["**all**", *sums, "FAILED" if failed else "passed"]), "", "![gaps](gaps.svg)", ""]
    lines += [
        "A gap is the longest time without a completed I/O on any disk of the round, in seconds. docs/lab.md explains all.",
        "",
    ]
    lines += [f"- {name}: not applicable, {why}" for name, why in NOT_APPLICABLE.items()]
    if measured := [each for result in results.values() for each in _measured(result)]:
        lines += ["", "## What scenarios measured themselves", "", *measured]
    if failed:
        lines += ["", "## What failed", "", *(f"- {each}" for each in failed)]
    if errors := [f"- {name}: {each}" for name, result in results.items() for each in result.errors[:20]]:
        lines += ["", "## Errors at the initiator (20 at most of each scenario)", "", *errors]
    return "\n".join([*lines, ""])


def _measured(result: Result) -> list[str]:
    values = defaultdict(list)
    for each in result.rounds:
        for what, value_s in each.measured_s.items():
            values[what].append(value_s)
    return [
        f"- {result.scenario}: {what} after {percentile(found, 0.5):.2f} s (median of {len(found)}), {max(found):.2f} s at most"
        for what, found in values.items()
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    rounds = str(row["rounds"]) if row["rounds"] == row["rounds_wanted"] else f"{row['rounds']} of {row['rounds_wanted']}"
    times = [f"{row[name]:.2f}" for name in ("gap_p50_s", "gap_p99_s", "gap_max_s", "served_again_max_s")]
    counts = [str(row[name]) for name in ("open_gates", "stale_or_lost", "errors", "left_open", "orphans")]
    counted = [str(row[name]) for name in ("faults", "writes", "reads")]
    return [f"{row['scenario']}: {row['title']}", rounds, *counted, *times, *counts, "FAILED" if row["faulty"] else "passed"]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
