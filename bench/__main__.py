"""Runs the benchmarks named, else all: `python -m bench [--quick] [--json] [name…]`.

A wrong answer fails the run; a missed goal is shown.
"""

import argparse
import json

from rich.console import Console

from bench import accept, failover, moves, planner, rebalance, reconcile, start

BENCHMARKS = {
    "planner": planner.run,
    "moves": moves.run,
    "failover": failover.run,
    "rebalance": rebalance.run,
    "reconcile": reconcile.run,
    "accept": accept.run,
    "start": start.run,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--json", action="store_true", help="every sample, for a program")
    asked = parser.parse_args()
    if unknown := set(asked.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    reports = []
    for name, run in BENCHMARKS.items():
        if name in asked.names or not asked.names:
            reports.append(run(quick=asked.quick))
            if not asked.json:
                reports[-1].show(Console())
    if asked.json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
