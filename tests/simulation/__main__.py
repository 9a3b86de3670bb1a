"""Runs schedules: `python -m tests.simulation --schedules 300`, or one again by its seed: `--seed 17 --trace`."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


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
    from tests.simulation import schedules  # noqa: PLC0415

    ground = schedules.Ground(folder)
    seeds = [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.schedules)
    began, said_at = time.monotonic(), time.monotonic()
    done, simulated_s, steps, accepted, written = 0, 0.0, 0, 0, 0
    struck, asked_for, violations = Counter[str](), Counter[str](), list[str]()
    for seed in seeds:
        outcome = schedules.run(seed, ground, trace=print if asked.trace else None)
        done, simulated_s, steps = done + 1, simulated_s + outcome.simulated_s, steps + outcome.steps
        accepted, written = accepted + outcome.accepted, written + outcome.written
        struck.update(outcome.struck)
        asked_for.update(outcome.asked)
        if outcome.violation:
            violations.append(f"seed {seed}: {outcome.violation}")
            print(violations[-1], flush=True)
            if asked.until_violated:
                break
        if time.monotonic() - said_at >= 30:
            said_at = time.monotonic()
            print(
                f"{done} of {len(seeds)} schedules, {simulated_s / 3600:.1f} simulated hours, {len(violations)} violations",
                flush=True,
            )
    took_s = time.monotonic() - began
    print(
        f"schedules        {done} (seeds {seeds[0]} to {seeds[0] + done - 1}), {took_s:.0f} s, {1000 * took_s / done:.0f} ms each"
    )
    print(f"simulated        {simulated_s / 3600:.1f} hours, {steps} steps")
    print(f"operations       {accepted} accepted; asked for: {_counted(asked_for)}")
    print(f"faults           {struck.total()}: {_counted(struck)}")
    print(f"writes           {written} acknowledged")
    print(f"violations       {len(violations)}")
    for violation in violations:
        print(f"  {violation}")
    return 1 if violations else 0


def _counted(counter: "Counter[str]") -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
