"""The systemd units: systemd accepts them, they are closed to what they do not need, and they work with what is left."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import spawn, waited
from cli.lab.processes import Process, write_ini
from tests import confinement

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "etc/systemd").glob("*.service"))
INSTALLED = "/opt/sanderling/.venv/bin"
EXPOSURE_MOST = {"sanderling-iscsi-worker.service": 30}  # in tenths, as systemd reckons it: 100 is no protection at all
EXPOSURE_MOST_OF_OTHERS = 16


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)


def test_every_process_of_the_project_has_a_unit() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {unit.stem for unit in UNITS} == set(scripts) - {"sanderling"}


def test_systemd_finds_no_fault_with_any(tmp_path: Path) -> None:
    here = Path(sys.executable).parent
    for unit in UNITS:
        assert f"ExecStart={INSTALLED}/{unit.stem}\n" in unit.read_text()
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, str(here)))
    done = analyze("verify", "--man=no", *map(str, tmp_path.glob("*.service")))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_line_that_systemd_does_not_know_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.service"
    wrong.write_text(
        UNITS[0].read_text().replace(INSTALLED, str(Path(sys.executable).parent)) + "\n[Service]\nProtectEverything=yes\n"
    )
    assert "ProtectEverything" in analyze("verify", "--man=no", str(wrong)).stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_a_process_does_not_need_is_closed_to_it(unit: Path) -> None:
    most = EXPOSURE_MOST.get(unit.name, EXPOSURE_MOST_OF_OTHERS)
    done = analyze("security", "--offline=true", f"--threshold={most}", "--no-pager", str(unit))
    assert done.returncode == 0, done.stdout + done.stderr
    tight = analyze("security", "--offline=true", f"--threshold={most - 1}", "--no-pager", str(unit))
    assert tight.returncode != 0, "it has become better: lower the bound"


@pytest.mark.timeout(300)
def test_every_process_does_its_work_with_what_its_unit_leaves_it(cluster: Cluster, unique: str, libiscsi: str) -> None:
    """A disk is made, served, moved and deleted, and somebody leads."""
    leader = Process("leader", "sanderling-leader", cluster.settings(name="leader"), cluster.folder, cluster.network.parts)
    confined = [cluster["api"], cluster["conductor-1"], cluster["worker-1"], cluster["worker-2"]]
    try:
        for process in (*confined, leader):
            process.terminate()
            _start_confined(process, writes=[cluster.records_folder])
        cluster.wait_until_ready()
        disk = cluster.create_disk(unique, paths=2)
        for gateway in ("worker-1", "worker-2"):
            moved = {"planner": "manual", "paths": [path["address"] for path in disk["paths"]], "gateway": gateway}
            answer = cluster.http.post("/v1/assignments", json=moved)
            if answer.status_code != 200:  # it was there already
                cluster.wait_operation(answer)
            shown = cluster.http.get(f"/v1/disks/{unique}").json()
            assert {path["gateway"] for path in shown["paths"]} == {gateway}
        cluster.delete_disk(unique)
        waited(lambda: bool(leader.log(event="leading")), within_s=90, what="the leader leads")
    finally:
        leader.terminate()
        for process in confined:
            process.terminate()
            process.start()


def _start_confined(process: Process, *, writes: list[Path]) -> None:
    unit = next(unit for unit in UNITS if unit.stem == process.program)
    ini = process.folder / f"{process.name}.ini"
    write_ini(process.settings, ini)
    own = Path(process.settings.sanderling.runtime_dir)
    process.daemon = spawn(
        process.name,
        confinement.argv(unit, [str(Path(sys.executable).with_name(process.program))], writes=[own, *writes]),
        log=process.log_file,
        env={"SANDERLING_CONFIG": str(ini), "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
        netns=process.netns,
        cwd=process.folder,
    )


TRACED = "import ctypes; ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0); raise OSError(ctypes.get_errno(), 'ptrace')"


@pytest.mark.parametrize(
    ("unit", "does"),
    [
        ("sanderling-api", "open('/etc/sanderling-was-here', 'w')"),
        ("sanderling-api", "import mmap; mmap.mmap(-1, 4096, prot=7)"),
        ("sanderling-api", "import os; os.setuid(os.getuid())"),
        ("sanderling-iscsi-worker", TRACED),
        ("sanderling-iscsi-worker", "open('/etc/sanderling-was-here', 'w')"),
        ("sanderling-leader", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    ],
)
def test_what_a_unit_takes_away_is_refused(unit: str, does: str, tmp_path: Path) -> None:
    """The confinement of the test above is one."""
    (file,) = (each for each in UNITS if each.stem == unit)
    argv = confinement.argv(file, [sys.executable, "-c", does], writes=[tmp_path])
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert re.search(r"PermissionError|Read-only file system", done.stderr), done.stderr
