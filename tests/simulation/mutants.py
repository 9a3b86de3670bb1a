"""Takes out one guard of the product at a time and sees what notices: `python -m tests.simulation.mutants`.

Each mutant is made in a copy of the tree. One that neither the simulation nor the test named for it catches has survived, and the
exit status is 1; a guard whose text is no longer there ends it at once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = Path(__file__).with_name("mutants.toml")
PACKAGES: Final = ("api", "cli", "conductor", "iscsi_worker", "leader", "rpc", "sanderling", "tests", "etc")
TEST_S: Final = 120
SIMULATION_S: Final = 600


@dataclass(frozen=True, slots=True)
class Mutant:
    """A guard, the text that makes it, and what is there without it. `seed` is where the simulation is begun."""

    guard: str
    file: str
    old: str
    new: str
    test: str = ""
    seed: int = 1

    def applied(self, tree: Path) -> str:
        """The file without the guard."""
        text = (tree / self.file).read_text()
        if text.count(self.old) != 1:
            sys.exit(f"{self.guard}: its text is {text.count(self.old)} times in {self.file}, not once; mend {TABLE.name}")
        return text.replace(self.old, self.new)


def table() -> list[Mutant]:
    return [Mutant(**one) for one in tomllib.loads(TABLE.read_text())["mutant"]]


@contextmanager
def _copied() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for package in PACKAGES:
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield Path(folder)


def _caught(mutant: Mutant, tree: Path, schedules: int, *, schedules_alone: bool) -> str:
    """What notices that the guard is gone; empty for nothing."""
    file = tree / mutant.file
    whole = file.read_text()
    file.write_text(mutant.applied(tree))
    try:
        return _by_test(mutant, tree) if mutant.test and not schedules_alone else _by_simulation(mutant, tree, schedules)
    except subprocess.TimeoutExpired:
        return ""  # on a busy machine that says nothing
    finally:
        file.write_text(whole)


def _by_simulation(mutant: Mutant, tree: Path, schedules: int) -> str:
    words = ["-m", "tests.simulation", "--schedules", str(schedules), "--first", str(mutant.seed), "--until-violated"]
    ran = _python(tree, words, timeout_s=SIMULATION_S)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("seed ")]
    if ran.returncode and not lines:
        sys.exit(f"{mutant.guard}: the simulation did not run:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return f"simulation, {lines[0]}" if lines else ""


def _by_test(mutant: Mutant, tree: Path) -> str:
    ran = _python(tree, ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test], timeout_s=TEST_S)
    failed = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("FAILED ")]
    if ran.returncode not in {0, 1}:
        sys.exit(f"{mutant.guard}: {mutant.test} did not run:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return failed[0] if failed else ""


def _python(tree: Path, words: list[str], *, timeout_s: int) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def main() -> int:
    """Exit status 1 when a mutant survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants")
    parser.add_argument("--schedules", type=int, default=400, help="the most that one mutant is given")
    parser.add_argument("--simulation-alone", action="store_true", help="also those that a test is named for")
    parser.add_argument("--only", default="", help="those whose guard has this in it")
    asked = parser.parse_args()
    mutants = [mutant for mutant in table() if asked.only in mutant.guard]
    for mutant in table():
        mutant.applied(ROOT)
    survived = []
    by_simulation = 0
    with _copied() as tree:
        for number, mutant in enumerate(mutants, 1):
            began = time.monotonic()
            caught = _caught(mutant, tree, asked.schedules, schedules_alone=asked.simulation_alone)
            by_simulation += caught.startswith("simulation")
            if not caught:
                survived.append(mutant.guard)
            verdict = f"caught by {caught}" if caught else "SURVIVED"
            _say(f"{number:2} {mutant.guard} ({mutant.file})\n   {verdict}  [{time.monotonic() - began:.0f} s]")
    caught_all = len(mutants) - len(survived)
    _say(f"mutants {len(mutants)}, caught {caught_all}, of these by the simulation {by_simulation}; survived {len(survived)}")
    for guard in survived:
        _say(f"  survived: {guard}")
    return 1 if survived else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
