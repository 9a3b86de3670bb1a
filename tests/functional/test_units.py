"""The systemd units: systemd accepts them, they are closed to what they do not need, and a worker can live with what is left."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cli.lab.parts.daemons import spawn

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "etc/systemd").glob("*.service"))
INSTALLED = "/opt/sanderling/.venv/bin"
EXPOSURE_MOST = {"sanderling-iscsi-worker.service": 30}  # in tenths, as systemd reckons it: 100 is no protection at all
EXPOSURE_MOST_OF_OTHERS = 16
# The file system as ProtectSystem=strict shows it: nothing can be written but in the runtime folder, /dev, /proc and /sys.
STRICT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind / && exec "$@"'


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)


def service(unit: Path) -> list[tuple[str, str]]:
    """What the unit's [Service] says, in order: some keys come twice."""
    lines = unit.read_text().partition("[Service]")[2].partition("\n[")[0].splitlines()
    return [(key, value) for key, _, value in (line.partition("=") for line in lines if line[:1].isalpha())]


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


def test_a_worker_serves_with_the_rights_of_its_unit_and_writes_nowhere_but_in_its_runtime_folder(
    cluster: Any, unique: str, libiscsi: str
) -> None:
    worker = cluster["worker-1"]
    unit = next(unit for unit in UNITS if unit.stem == worker.program)
    rights = dict(service(unit))["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
    worker.terminate()
    own = worker.settings.sanderling.runtime_dir
    argv = ["unshare", "--mount", "sh", "-c", STRICT, own, "setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(rights)}"]
    worker.daemon = spawn(
        worker.name,
        [*argv, str(Path(sys.executable).with_name(worker.program))],
        log=worker.log_file,
        env={"SANDERLING_CONFIG": str(worker.folder / f"{worker.name}.ini"), "PYTHONUNBUFFERED": "1"},
        netns=worker.netns,
        cwd=worker.folder,
    )
    cluster.wait_until_ready()
    held = Path(f"/proc/{worker.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in held
    disk = cluster.create_disk(unique, paths=2)
    try:
        if _gateways(cluster, disk) != {worker.name}:
            moved = {"planner": "manual", "paths": [path["address"] for path in disk["paths"]], "gateway": worker.name}
            cluster.wait_operation(cluster.http.post("/v1/assignments", json=moved))
        assert _gateways(cluster, disk) == {worker.name}
    finally:
        cluster.delete_disk(disk["name"])
        worker.terminate()
        worker.start()


def _gateways(cluster: Any, disk: dict[str, Any]) -> set[str]:
    return {path["gateway"] for path in cluster.http.get(f"/v1/disks/{disk['id']}").json()["paths"]}
