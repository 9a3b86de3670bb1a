"""The pages of docs, typed as they stand: every shell block of a page, in order, at a terminal."""

import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cli import access
from cli.lab.cluster import Cluster

DOCS = Path(__file__).parents[2] / "docs"
SECRETS = {"a": "one-way-s3cret", "b": "mutual-s3cret"}


def blocks(page: str) -> list[str]:
    """The page's shell blocks."""
    return re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


class Terminal:
    """A shell at a terminal of its own in an empty folder, as somebody with a client file of the site sits at it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        token = cluster.http.headers["Authorization"].removeprefix("Bearer ")
        access.write(folder / "client.json", access.Access(cluster.url, token))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._env = {**os.environ, "SANDERLING_CLIENT": str(folder / "client.json"), "PATH": path, "TERM": "dumb"}
        self._folder = folder

    def type(self, block: str, *, secret: str) -> str:
        """What is printed; `secret` is typed when one is asked for. Fails when a command of the block does."""
        script = self._folder / "block.sh"
        script.write_text(block)
        shell: Any = pexpect.spawn(
            "bash", ["-euo", "pipefail", str(script)], env=self._env, cwd=str(self._folder), timeout=120, encoding="utf-8"
        )
        printed = ""
        while shell.expect([r"secret: ", r"confirmation: ", pexpect.EOF]) < 2:
            printed += shell.before
            shell.sendline(secret)
        printed += shell.before
        shell.close()
        assert shell.exitstatus == 0, f"{block}\n{printed}"
        return str(printed)


@pytest.mark.timeout(600)
def test_the_page_about_disks_does_what_it_says(cluster: Cluster, tmp_path: Path, libiscsi: str) -> None:
    terminal = Terminal(cluster, tmp_path)
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret)
    disk = cluster.create_disk("backup")
    key_file = tmp_path / "secrets.key"
    printed = []
    try:
        for block in blocks("disks.md"):
            mine = block.replace("/etc/sanderling/secrets.key", str(key_file))
            typed = secrets.token_hex(7)
            printed.append(terminal.type(mine, secret=typed))
            assert typed not in printed[-1]
        assert key_file.read_text().strip()
        shown = cluster.http.get("/v1/disks/archive").json()
        assert (shown["id"], shown["size_bytes"], shown["chap"], shown["state"]) == (disk["id"], 20 << 30, None, "started")
        assert any("Nobody is connected" in text for text in printed)
        assert all(path["address"] in "".join(printed) for path in disk["paths"])
    finally:
        cluster.heal()
        for name in ("try", "archive", "backup"):
            if cluster.http.get(f"/v1/disks/{name}").status_code == 200:
                cluster.delete_disk(name)
