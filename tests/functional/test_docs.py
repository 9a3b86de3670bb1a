"""The pages, typed as they stand: every shell block that names a test of this file (tests/pages.py), in order, at a terminal."""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cli import access
from cli.lab.cluster import Cluster
from cli.lab.network import Network
from cli.lab.network import version as network_version
from cli.lab.parts.daemons import Daemon, spawn, waited
from tests.pages import ROOT, Piece, blocks, pieces
from tests.parts import usage

BIN = Path(sys.executable).parent
SECRETS = {"a": "one-way-s3cret", "b": "mutual-s3cret"}
REFUSED = re.compile(r"^(sanderling: |Pattern verification failed|discoveryconnect_cb: )", re.MULTILINE)
PROBLEM = re.compile(r'"status": ?(400|401|403|404|405|415|422|5\d\d)')
# What differs from one run to the next.
VARIES = {
    r"\d{4}-\d\d-\d\dT[\d:.]+Z?": "TIME",
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}": "ID",
    r"00-[0-9a-f]{32}-[0-9a-f]{16}-0\d": "TRACE",
    r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT": "DATE",
    r"\d\d\.\d\d sec \(.*\)": "SPEED",
    r"process \d+": "process PID",
}
READY_WITHIN_S = 120.0


class Terminal:
    """A shell at a terminal of its own in a folder, as somebody sits at it; `env` is added to what every process has."""

    def __init__(self, folder: Path, env: dict[str, str], *, inside: tuple[str, ...] = ()) -> None:
        path = f"{BIN}:{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "TERM": "dumb", "COLUMNS": "400", "LINES": "50", **env}
        self._folder, self._inside = folder, inside

    def type(self, block: str, *, secret: str = "", fails: bool = False) -> str:
        """What is printed; `secret` is typed when one is asked for. Fails when a command of the block does, or does not."""
        script = self._folder / ".block.sh"
        script.write_text(block)
        program, *words = [*self._inside, "bash", "-euo", "pipefail", str(script)]
        shell: Any = pexpect.spawn(
            program, words, env=self._env, cwd=str(self._folder), timeout=120, encoding="utf-8", dimensions=(50, 400)
        )
        printed = ""
        while shell.expect([r"secret: ", r"confirmation: ", pexpect.EOF]) < 2:
            printed += shell.before
            shell.sendline(secret)
        printed += shell.before
        shell.close()
        assert (shell.exitstatus != 0) is fails, f"{block}\n{printed}"
        return re.sub(r"\x1b\[\d*m", "", str(printed).replace("\r\n", "\n"))  # curl prints headers in bold


class Newcomer:
    """Somebody with a clone of the repository on a machine called san, and two shells: one for `make up`, one for the rest."""

    def __init__(self, folder: Path, netns: str) -> None:
        self._folder, self._log = folder, folder / ".up.out"
        (folder / ".venv").symlink_to(BIN.parent)
        self._inside = ("ip", "netns", "exec", netns, "unshare", "--uts", "sh", "-c", 'hostname san && exec "$@"', "sh")
        self._env = {"HOME": str(folder), "SANDERLING_CLIENT": "", "SANDERLING_CONFIG": ""}
        self._terminal = Terminal(folder, self._env, inside=self._inside)
        self._up: Daemon | None = None

    def type(self, block: str, *, fails: bool = False) -> str:
        """What a block prints. `make up` is typed in the first shell, as what it runs once everything is installed."""
        if block.strip().split("#")[0].strip() != "make up":
            return self._terminal.type(block, fails=fails)
        self._log.unlink(missing_ok=True)
        program = made("up")[-1].removeprefix("exec ")
        self._up = spawn("make up", [*self._inside, *program.split()], log=self._log, env=self._env, cwd=self._folder)
        waited(lambda: "path list" in self._printed(), within_s=READY_WITHIN_S, what="make up is ready")
        return self._printed()

    def interrupt(self) -> str:
        """Ctrl-C in the first shell; what it prints from there."""
        if self._up is None:
            return ""
        before = self._printed()
        self._up.signal(signal.SIGINT)
        self._up.wait(within_s=30)
        self._up = None
        return self._log.read_text().removeprefix(before)

    def same(self, text: str) -> list[str]:
        """Its lines without what differs from one run to the next, in an order of their own: two threads may both have news."""
        text = text.replace(str(self._folder), "/srv/sanderling")
        for pattern, name in VARIES.items():
            text = re.sub(pattern, name, text)
        lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
        return sorted(re.sub(r"^\d+ TIME", "N TIME", line) for line in lines if line)

    def _printed(self) -> str:
        assert self._up is not None
        text = self._log.read_text()
        assert self._up.alive, f"ended early: {text}"
        return text


@pytest.fixture
def newcomer(tmp_path: Path, tgt: str, libiscsi: str) -> Iterator[Newcomer]:
    with Network(["host"]) as network:
        usage.used("network namespaces", network_version())
        somebody = Newcomer(tmp_path, network.netns("host"))
        try:
            yield somebody
        finally:
            somebody.interrupt()


@pytest.fixture
def terminal(cluster: Cluster, tmp_path: Path) -> Terminal:
    """With a client file of the site, and what a script in the language of HTTP needs."""
    token = cluster.http.headers["Authorization"].removeprefix("Bearer ")
    access.write(tmp_path / "client.json", access.Access(cluster.url, token))
    return Terminal(tmp_path, {"SANDERLING_CLIENT": str(tmp_path / "client.json"), "TOKEN": token, "URL": cluster.url})


def made(*words: str) -> list[str]:
    """The command lines that make would run."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/lab.md", "docs/simulation.md"])
def test_make_knows_what_the_page_tells_it_to_do(page: str) -> None:
    """What they do is seen elsewhere, or takes too long: `make test` is what runs this, `make lab` takes a quarter of an hour."""
    for block in blocks(page, "test_make_knows_what_the_page_tells_it_to_do"):
        for program, *words in block.commands:
            assert program == "make"
            for option in words[1:]:
                assert f"$({option.partition('=')[0]})" in (ROOT / "Makefile").read_text(), option
            assert made(*words)


def test_the_readme_s_first_disk_is_served(newcomer: Newcomer) -> None:
    newcomer.type("make up")
    for block in blocks("README.md", "test_the_readme_s_first_disk_is_served"):
        newcomer.type(block.text)
    newcomer.interrupt()
    newcomer.type("make up")
    newcomer.type("\n".join(line for line in block.text.splitlines() if "'read " in line))


def test_the_commands_that_pin_dependencies_have_the_options_that_the_page_gives_them() -> None:
    (block,) = blocks("README.md", "test_the_commands_that_pin_dependencies_have_the_options_that_the_page_gives_them")
    asked = re.sub(r"(?m)^(\$P .*)$", r"\1 --help >/dev/null", block.text)
    assert asked.count("--help") == 3
    done = subprocess.run(["bash", "-euc", asked], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(600)
def test_the_tutorial_prints_what_it_says(newcomer: Newcomer) -> None:
    printed, stale, wanted = "", "", list(pieces((ROOT / "docs/tutorial.md").read_text()))
    for number, piece in enumerate(wanted):
        if piece.is_commands:
            printed = newcomer.type(piece.text, fails=bool(REFUSED.search(_shown_below(wanted[number + 1 :]))))
        elif piece.kind is None and "Press Ctrl-C" in piece.text:
            printed = newcomer.interrupt()
        elif piece.is_output:
            missing = [line for line in newcomer.same(piece.text) if line not in newcomer.same(printed)]
            stale += f"{missing}\nare not in\n{printed}\n" if missing else ""
    assert not stale, stale


def _shown_below(rest: list[Piece]) -> str:
    """What a block is said to print: the output block that follows before any other commands."""
    following = next((each for each in rest if each.kind is not None), None)
    return following.text if following and following.is_output else ""


@pytest.mark.timeout(600)
def test_the_page_about_disks_does_what_it_says(cluster: Cluster, terminal: Terminal, tmp_path: Path, libiscsi: str) -> None:
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret)
    disk = cluster.create_disk("backup")
    key_file = tmp_path / "secrets.key"
    printed = []
    try:
        for block in blocks("docs/disks.md", "test_the_page_about_disks_does_what_it_says"):
            mine = block.text.replace("/etc/sanderling/secrets.key", str(key_file))
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


@pytest.mark.timeout(600)
def test_the_page_about_moving_paths_does_what_it_says(cluster: Cluster, terminal: Terminal, libiscsi: str) -> None:
    """With this site's names in place of the page's: gateways, addresses, and the id that the last command before printed."""
    disk = cluster.create_disk("backup", paths=2)
    one, two = (path["address"] for path in disk["paths"])
    site = {"10.0.1.5": one, "10.0.1.6": two, **{f"node{n}": node for n, node in enumerate(cluster.network.nodes, 1)}}
    try:
        for block in blocks("docs/assignments.md", "test_the_page_about_moving_paths_does_what_it_says"):
            mine, paused = block.text, None
            for theirs, ours in site.items():
                mine = mine.replace(theirs, ours)
            if "5f0ec0de-…" in mine:
                mine = mine.replace("5f0ec0de-…", _plan(cluster, one))
            if re.search(r"\bID\b", mine):
                paused = cluster[_elsewhere(cluster)] if "cancel ID" in mine else None
                mine = re.sub(r"\bID\b", _assignment(cluster, one, paused), mine)
            printed = terminal.type(mine)
            assert not PROBLEM.search(printed), printed
            if paused is not None:
                paused.resume()
            _settled(cluster)
    finally:
        cluster.heal()
        _settled(cluster)
        for node in cluster.network.nodes:
            if cluster.http.get(f"/v1/gateways/{node}").json()["drained"]:
                cluster.wait_operation(cluster.http.post(f"/v1/gateways/{node}/undrain"))
        cluster.delete_disk("backup")


def test_the_lab_s_own_commands_take_what_the_page_gives_them(tmp_path: Path) -> None:
    """A run of the lab is what test_lab.py is about; here is seen that these scenarios, options and verbs are there."""
    (block,) = blocks("docs/lab.md", "test_the_lab_s_own_commands_take_what_the_page_gives_them")
    listed = Terminal(tmp_path, {}).type("sanderling lab list")
    for program, *words in block.commands:
        Terminal(tmp_path, {}).type(" ".join([program, *words, "--help"]))
        for name in (word for word in words if re.fullmatch(r"F\d+(-\w+)?", word)):
            assert re.search(rf"^\W*{name}\b", listed, re.MULTILINE), name


def _elsewhere(cluster: Cluster) -> str:
    """A gateway that does not serve the disk."""
    serving = cluster.http.get("/v1/disks/backup").json()["paths"][0]["gateway"]
    return next(node for node in cluster.network.nodes if node != serving)


def _plan(cluster: Cluster, address: str) -> str:
    body = {"planner": "manual", "paths": [address], "gateway": _elsewhere(cluster)}
    answer = cluster.http.post("/v1/assignments", params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["plan_id"])


def _assignment(cluster: Cluster, address: str, paused: Any) -> str:
    """One that has been carried out; one under way, if its destination is to be paused first."""
    body = {"planner": "manual", "paths": [address], "gateway": paused.name if paused else _elsewhere(cluster)}
    if paused is not None:
        paused.pause()
    answer = cluster.http.post("/v1/assignments", json=body)
    if paused is None:
        cluster.wait_operation(answer)
    return str(answer.headers["Location"].rpartition("/")[2])


def _settled(cluster: Cluster) -> None:
    """Nothing of what was typed is under way any more."""

    def ended() -> bool:
        listed = cluster.http.get("/v1/operations", params={"limit": 20}).json()["operations"]
        return all(one["state"] not in ("pending", "running", "rolling_back") for one in listed)

    waited(ended, within_s=60, what="every operation has ended")
