"""The container image, built from the package by its script and used as it would be run. It takes minutes: `make hosts`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.functional.test_packages import BUILD_WITHIN_S, PROCESSES, ROOT, deb, run

__all__ = ["deb"]  # a fixture


@pytest.fixture(scope="module")
def image(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's own layout, unpacked from its archive."""
    folder = tmp_path_factory.mktemp("image")
    archive = folder / "image.tar"
    run(str(ROOT / "scripts/build-image"), str(deb), str(archive), within_s=BUILD_WITHIN_S)
    return _untarred(archive, folder / "oci")


@pytest.mark.timeout(2 * BUILD_WITHIN_S)
def test_the_image_is_the_installed_package_and_runs_as_nobody_in_particular(image: Path, tmp_path: Path) -> None:
    manifest = _blob(image, json.loads((image / "index.json").read_text())["manifests"][0]["digest"])
    config = _blob(image, manifest["config"]["digest"])["config"]
    assert (config["User"], config["Cmd"]) == ("sanderling", ["sanderling-api"])
    for layer in manifest["layers"]:
        _untarred(_path(image, layer["digest"]), tmp_path / "root")
    env = dict(each.split("=", 1) for each in config["Env"])
    inside = ("chroot", "--userspec=sanderling:sanderling", str(tmp_path / "root"))
    assert "sanderling 0" in run(*inside, "sanderling", "--version", env=env)
    for process in PROCESSES:
        said = run(*inside, process, code=1, env=env)
        assert said.startswith(f"{process}: "), said
        assert env["SANDERLING_CONFIG"] in said
    run(*inside, "python", "-Ic", "import rados, rbd", env=env)
    run(*inside, "tgtd", "-V", env=env)
    run(*inside, "touch", "/var/lib/sanderling/records.sqlite", env=env)
    run(*inside, "touch", "/opt/sanderling/x", code=1, env=env)


def _untarred(archive: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    run("tar", "--extract", "--file", str(archive), "--directory", str(folder), within_s=300)
    return folder


def _path(image: Path, digest: str) -> Path:
    return image / "blobs" / digest.replace(":", "/")


def _blob(image: Path, digest: str) -> Any:
    return json.loads(_path(image, digest).read_text())
