"""Schedules of faults in every run, each from its own seed; `make simulation` runs many more."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.simulation import mutants

ROOT: Final = Path(__file__).parents[2]
SCHEDULES: Final = 80


def simulated(*words: str, tree: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: it makes threads and random numbers its own."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "tests.simulation", *words]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
@pytest.mark.rows("W-MC-4", "W-PA-5", "W-PA-13", "W-IS-5", "W-LE-3")
def test_no_schedule_of_faults_violates_an_invariant() -> None:
    ran = simulated("--schedules", str(SCHEDULES))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"schedules    {SCHEDULES}" in ran.stdout


def test_a_seed_gives_the_same_schedule_again() -> None:
    first, second = (simulated("--seed", "10", "--trace").stdout.splitlines() for _ in range(2))
    assert len(first) > 30
    assert [line for line in first if "s each" not in line] == [line for line in second if "s each" not in line]


@pytest.mark.parametrize("mutant", mutants.table(), ids=lambda mutant: mutant.guard)
def test_every_guard_is_where_the_table_of_mutants_says(mutant: mutants.Mutant) -> None:
    assert mutant.applied(ROOT) != (ROOT / mutant.file).read_text()
    file, _, name = mutant.test.partition("::")
    assert not name or f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), mutant.test
