"""Runs schedules: `python -m tests.simulation --schedules 300`, or one again by its seed: `--seed 17 --trace`."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.simulation.schedules import Outcome

SAY_EVERY_S: Final = 30


def main() -> int:
    """Exit status 1 when an invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--schedules", type=int, default=300)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what the processes log")
    parser.add_argument("--until-violated", action="store_true", help="stop at the first violation")
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings would differ from run to run
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], os.environ | {"PYTHONHASHSEED": "0"})
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=memory) as folder:
        return _run(asked, Path(folder))


def _run(asked: argparse.Namespace, folder: Path) -> int:
    from tests.simulation import schedules  # noqa: PLC0415  once hashes are what they are to be

    seeds = [asked.seed] if asked.seed is not None else list(range(asked.first, asked.first + asked.schedules))
    ground, outcomes = schedules.Ground(folder), list[schedules.Outcome]()
    began = said_at = time.monotonic()
    for seed in seeds:
        outcome = schedules.run(seed, ground, trace=_say if asked.trace else None)
        outcomes.append(outcome)
        if outcome.violation:
            _say(f"seed {seed}: {outcome.violation}")
            if asked.until_violated:
                break
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            violations = sum(bool(one.violation) for one in outcomes)
            hours = sum(one.simulated_s for one in outcomes) / 3600
            _say(f"{len(outcomes)} of {len(seeds)} schedules, {hours:.1f} simulated hours, {violations} violations")
    return _told(outcomes, time.monotonic() - began)


def _told(outcomes: "Sequence[Outcome]", took_s: float) -> int:
    struck, asked_for, operations, moves = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for outcome in outcomes:
        operations.update(outcome.operations)
        moves.update(outcome.moves)
        struck.update(outcome.struck)
        asked_for.update(outcome.asked)
    count, violations = len(outcomes), [outcome for outcome in outcomes if outcome.violation]
    _say(f"schedules    {count}, seeds {outcomes[0].seed} to {outcomes[-1].seed}, {took_s / count:.2f} s each")
    hours, steps = sum(one.simulated_s for one in outcomes) / 3600, sum(one.steps for one in outcomes)
    _say(f"simulated    {hours:.1f} hours in {steps} steps")
    _say(f"operations   {sum(one.accepted for one in outcomes)} accepted of: {_counted(asked_for)}")
    _say(f"ended        {_counted(operations)}; moves: {_counted(moves)}")
    _say(f"faults       {struck.total()}: {_counted(struck)}")
    _say(f"writes       {sum(one.written for one in outcomes)} acknowledged")
    _say(f"violations   {len(violations)}")
    for outcome in violations:
        _say(f"  seed {outcome.seed}: {outcome.violation}")
    return 1 if violations else 0


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
