"""The built wheel: it holds what runs and nothing else, and nobody but us owns our plain package names."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
OWNERS = "import importlib.metadata, json; print(json.dumps(importlib.metadata.packages_distributions()))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(argv, cwd=ROOT, check=True, timeout=110, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_our_packages_whole_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not set(tracked) - set(names), "left out"
    assert not [name for name in names if name.endswith((".so", ".pyc"))], "built here, for this machine"


def test_every_command_of_the_project_leads_to_a_function_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert (file := f"{module.replace('.', '/')}.py") in names, target
        assert f"def {function}(" in zipfile.ZipFile(wheel).read(file).decode(), target


def test_our_package_names_belong_to_nobody_else_of_those_installed(wheel: Path, tmp_path: Path) -> None:
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        str(tmp_path),
        str(wheel),
    ]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=60, capture_output=True)
    said = subprocess.run(
        [sys.executable, "-c", OWNERS],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    owners = json.loads(said.stdout)
    assert {name: set(owners[name]) for name in PACKAGES} == {name: {"sanderling"} for name in PACKAGES}
