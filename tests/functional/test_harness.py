"""The harness itself: a full run that skipped something, or that left a real part unused, is a failed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import rows
from tests.parts.usage import PARTS

ROOT = Path(__file__).parents[2]
USE = "from tests.parts.usage import PARTS, used\ndef test_all():\n    for part in PARTS: used(part, '1')\n"
USE_ALL_BUT_CEPH = USE.replace("in PARTS:", "in set(PARTS) - {'Ceph'}:")
SKIP = "import pytest\n@pytest.mark.skip\ndef test_skipped(): ...\n"


def run_suite(folder: Path, text: str, *, full: bool = True) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SANDERLING_FULL_SUITE": "1" if full else "0"}
    argv = [sys.executable, "-m", "pytest", "-p", "tests.summary", "-p", "tests.rows", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_run_that_used_every_part_succeeds_and_says_how_often(tmp_path: Path) -> None:
    done = run_suite(tmp_path, USE)
    assert done.returncode == 0, done.stdout
    for part in PARTS:
        assert any(line.startswith(part) and line.endswith("1 tests") for line in done.stdout.split("\n")), done.stdout


@pytest.mark.parametrize(
    ("text", "reason"),
    [(USE + SKIP, "1 tests were skipped"), (USE_ALL_BUT_CEPH, "no test used Ceph")],
    ids=["a skip", "an unused part"],
)
def test_a_full_run_fails_over(tmp_path: Path, text: str, reason: str) -> None:
    done = run_suite(tmp_path, text)
    assert done.returncode == 1, done.stdout
    assert f"this run does not count: {reason}" in done.stdout
    assert run_suite(tmp_path, text, full=False).returncode == 0


def test_a_marker_that_names_an_unknown_row_stops_the_collection(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "import pytest\n@pytest.mark.rows('XX-1')\ndef test_it(): ...\n", full=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_it names row XX-1" in done.stderr


def test_the_table_of_rows_shows_tests_and_their_absence() -> None:
    page = rows.table({"Things": {"A-1": "one", "A-2": "two"}}, {"A-1": ["tests/x.py::test_b", "tests/x.py::test_a"]})
    assert "1 of 2 rows have a test." in page
    assert "| A-1 | one | `tests/x.py::test_a`<br>`tests/x.py::test_b` |" in page
    assert "| A-2 | two | no test yet |" in page
