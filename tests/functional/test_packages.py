"""The Debian package, built by its script and used where nothing else of the project is. The image: tests/hosts/test_image.py."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
VENV = "opt/sanderling/.venv"
PROCESSES = [name for name in SCRIPTS if name != "sanderling"]
# In a mount namespace of its own, what was unpacked stands where it will stand on a host; the machine's own /opt is not touched.
AS_INSTALLED = (
    'mount -t tmpfs none /opt && mkdir /opt/sanderling && mount --bind "$0/opt/sanderling" /opt/sanderling && exec "$@"'
)
GUARD = "from iscsi_worker.targets.guard import GuardLibrary; print(GuardLibrary('').path)"
BUILD_WITHIN_S = 900


def run(*argv: str, code: int = 0, within_s: float = 60, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=within_s, check=False, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    run(str(ROOT / "scripts/build-deb"), str(folder), within_s=BUILD_WITHIN_S)
    (built,) = folder.glob("*.deb")
    return built


@pytest.fixture(scope="module")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("dpkg-deb", "--extract", str(deb), str(folder))
    return folder


def installed(unpacked: Path, *argv: str, code: int = 0, settings: str = "") -> str:
    """What a program prints where the package is installed, without anything of this tree."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "SANDERLING_CONFIG": settings}
    return run("unshare", "--mount", "sh", "-c", AS_INSTALLED, str(unpacked), *argv, code=code, env=env)


@pytest.mark.timeout(BUILD_WITHIN_S)
def test_the_package_installs_what_it_names_and_nothing_of_the_place_where_it_was_built(unpacked: Path) -> None:
    tops = {str(path.relative_to(unpacked)) for path in unpacked.glob("*/*")}
    assert tops == {"lib/systemd", "opt/sanderling", "usr/bin", "usr/lib", "usr/share"}
    for name in SCRIPTS:
        assert (unpacked / VENV / "bin" / name).read_text().startswith(f"#!/{VENV}/bin/python\n")
    home = (unpacked / VENV / "pyvenv.cfg").read_text()
    assert "/tmp" not in home, home
    assert not [path for path in (unpacked / VENV).rglob("*.pth") if "sanderling" in path.name], "an editable installation"


@pytest.mark.timeout(BUILD_WITHIN_S)
def test_the_command_line_runs_as_installed(unpacked: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed(unpacked, f"/{VENV}/bin/sanderling", "--version").strip() == f"sanderling {version}"
    assert "whatif" in installed(unpacked, f"/{VENV}/bin/sanderling", "--help")
    assert (unpacked / "usr/bin/sanderling").readlink() == Path(f"/{VENV}/bin/sanderling")


@pytest.mark.timeout(BUILD_WITHIN_S)
@pytest.mark.parametrize("process", PROCESSES)
def test_each_process_gets_as_far_as_its_settings_and_refuses_wrong_ones_in_one_line(
    unpacked: Path, process: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.conf"
    wrong.write_text("[sanderling]\nlog_format = pictures\n")
    said = installed(unpacked, f"/{VENV}/bin/{process}", code=1, settings=str(wrong))
    assert said.startswith(f"{process}: "), said
    assert "log_format" in said
    assert said.count("\n") == 1, said


@pytest.mark.timeout(BUILD_WITHIN_S)
def test_the_guard_and_ceph_s_own_bindings_are_there(unpacked: Path) -> None:
    python = f"/{VENV}/bin/python"
    assert "tgt_guard.so" in installed(unpacked, python, "-Ic", GUARD)
    installed(unpacked, python, "-Ic", "import rados, rbd; rados.Rados(rados_id='x'); rbd.RBD().version()")


@pytest.mark.timeout(BUILD_WITHIN_S)
def test_systemd_accepts_the_package_s_units_as_they_are(unpacked: Path) -> None:
    units = sorted(map(str, (unpacked / "lib/systemd/system").glob("*.service")))
    assert [Path(unit).stem for unit in units] == PROCESSES
    assert installed(unpacked, "systemd-analyze", "verify", "--man=no", *units) == ""
