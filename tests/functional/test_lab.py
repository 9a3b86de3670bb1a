"""The fault lab through its command: one scenario on real parts, its report, and that it is not run twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SANDERLING = Path(sys.executable).with_name("sanderling")
COMMAND = [str(SANDERLING), "lab", "run", "F4-export", "--rounds", "1", "--seed", "11", "--out"]


@pytest.mark.timeout(240)
def test_a_scenario_breaks_something_under_load_and_reports_that_it_held(tmp_path: Path, tgt: str, libiscsi: str) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "seed 11" in done.stderr
    told = json.loads((tmp_path / "report.json").read_text())
    (row,) = told["table"]
    assert told["passed"] is True
    assert (row["scenario"], row["rounds"], row["faults"]) == ("F4-export", 1, 1)
    assert row["writes"] > 50
    assert row["reads"] > 20
    assert 0 < row["gap_p50_s"] == row["gap_max_s"]
    assert (row["open_gates"], row["stale_or_lost"], row["left_open"], row["orphans"]) == (1, 0, 0, 0)
    assert "F4-export: export process killed" in (tmp_path / "report.md").read_text()
    assert "</svg>" in (tmp_path / "gaps.svg").read_text()
    again = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    assert "already done" in again.stderr
    assert not (tmp_path / "work").exists(), "its processes' folder is left behind"
