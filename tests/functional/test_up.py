"""The first five minutes: `sanderling up` and the commands a newcomer types, as real processes on a real tgt."""

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.lab.network import Network
from cli.lab.network import version as network_version
from cli.lab.parts.daemons import Daemon, run, spawn, waited
from tests.parts import usage

SANDERLING = str(Path(".venv/bin/sanderling").resolve())
READY_WITHIN_S = 120.0


class Host:
    """A machine of its own (a network namespace) on which somebody types commands."""

    def __init__(self, home: Path, netns: str) -> None:
        self.home, self.netns = home, netns
        self.state = home / "sanderling-state"
        self.log = home / "up.out"
        self._up: Daemon | None = None

    def up(self, *options: str, **env: str) -> Daemon:
        """Start it and wait until it says that it is ready."""
        self.log.unlink(missing_ok=True)
        self._up = spawn(
            "sanderling up", [SANDERLING, "up", *options], log=self.log, env={**self.env, **env}, netns=self.netns, cwd=self.home
        )

        def ready() -> bool:
            assert self._up is not None
            assert self._up.alive, f"ended early: {self.log.read_text()}"
            return "Ready at" in self.log.read_text()

        waited(ready, within_s=READY_WITHIN_S, what="sanderling up is ready")
        return self._up

    def down(self) -> None:
        if self._up is not None:
            self._up.signal(signal.SIGINT)
            self._up.wait(within_s=30)

    @property
    def env(self) -> dict[str, str]:
        return {"HOME": str(self.home), "SANDERLING_CLIENT": "", "SANDERLING_CONFIG": ""}

    def typed(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """One command line, whatever comes of it."""
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, SANDERLING, *words],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **self.env, **env},
            cwd=self.home,
            check=False,
        )

    def asked(self, *words: str, **env: str) -> Any:
        """What a command prints as JSON."""
        done = self.typed(*words, "--json", **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def tool(self, *words: str) -> str:
        return run(words, netns=self.netns, within_s=30)

    def targets(self) -> list[int]:
        """Pids of the target processes of this machine."""
        pids = run(["ip", "netns", "pids", self.netns]).split()
        return [int(pid) for pid in pids if "tgtd" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture
def host(tmp_path: Path, tgt: str) -> Iterator[Host]:
    with Network(["host"]) as network:
        usage.used("network namespaces", network_version())
        machine = Host(tmp_path, network.netns("host"))
        try:
            yield machine
        finally:
            machine.down()


def test_data_written_through_one_path_is_read_through_the_other_and_is_there_at_the_next_start(host: Host) -> None:
    """Show 1: a 1 GiB disk with two paths, both portals, qemu-io, Ctrl-C and up again."""
    first = host.up()
    operation = host.asked("disk", "create", "first", "--size", "1G", "--paths", "2", "--allow-any", "--wait")
    assert operation["state"] == "succeeded"
    disk = host.asked("disk", "show", "first")
    one, two = (path["address"] for path in disk["paths"])
    for address in (one, two):
        listed = host.tool("iscsi-ls", "-s", f"iscsi://{address}")
        assert disk["iqn"] in listed
        assert re.search(r"Lun:1\s+Type:DIRECT_ACCESS \(Size:1023M\)", listed), listed  # its last block's number in MiB
    host.tool("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", f"iscsi://{one}/{disk['iqn']}/1")
    host.tool("qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 64k", f"iscsi://{two}/{disk['iqn']}/1")

    first.signal(signal.SIGINT)
    first.wait(within_s=30)
    assert host.targets() == []

    host.up()
    waited(
        lambda: all(path["status"] == "serving" for path in host.asked("disk", "show", "first")["paths"]),
        within_s=20,
        what="the disk is served again",
    )
    host.tool("qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 64k", f"iscsi://{one}/{disk['iqn']}/1")


@pytest.mark.rows("IS-3")
def test_a_kill_takes_the_targets_with_it_or_they_are_adopted_and_the_data_stays(host: Host) -> None:
    first = host.up()
    disk = host.asked("disk", "show", "demo")
    path = f"iscsi://{disk['paths'][0]['address']}/{disk['iqn']}/1"
    host.tool("qemu-io", "-f", "raw", "-c", "write -P 0x33 0 64k", path)
    first.kill()
    host.up()
    assert len(host.targets()) == 1
    host.tool("qemu-io", "-f", "raw", "-c", "read -P 0x33 0 64k", path)


def test_a_disk_whose_making_was_interrupted_is_finished_at_the_next_start(host: Host) -> None:
    first = host.up()
    accepted = host.asked("disk", "create", "first", "--size", "64M", "--allow-any")
    first.signal(signal.SIGINT)
    first.wait(within_s=30)
    host.up()
    assert host.asked("operation", "watch", accepted["id"])["state"] == "succeeded"
    waited(lambda: host.asked("disk", "show", "first")["paths"][0]["status"] == "serving", within_s=60, what="it is served")


def test_the_client_file_is_its_owners_alone_and_a_lost_one_is_written_again(host: Host) -> None:
    up = host.up("--no-demo")
    own = host.home / ".config" / "sanderling" / "client.json"
    for file in (own, host.state / "client.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.unlink()
    up.signal(signal.SIGINT)
    up.wait(within_s=30)
    assert host.typed("disk", "list").returncode == 5
    host.up("--no-demo")
    assert host.asked("disk", "list") == []


def test_another_services_client_file_is_not_written_over(host: Host) -> None:
    own = host.home / ".config" / "sanderling" / "client.json"
    own.parent.mkdir(parents=True)
    kept = json.dumps({"url": "https://san.example", "token": "kept"})
    own.write_text(kept)
    host.up("--no-demo")
    assert own.read_text() == kept
    assert f"SANDERLING_CLIENT={host.state}/client.json" in host.log.read_text()


def test_a_home_that_cannot_be_written_keeps_nothing_from_running(host: Host) -> None:
    host.up("--no-demo", HOME="/proc/nowhere")
    assert f"SANDERLING_CLIENT={host.state}/client.json" in host.log.read_text()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (["--no-demo"], ["--port", "0"], "in use by process"),
        (["--no-demo"], ["--state", "other"], "8080"),
        ([], ["--state", "other", "--port", "0"], "127.0.1.1 port 3260"),
    ],
    ids=["folder", "port", "portal"],
)
def test_a_folder_or_a_port_in_use_is_one_clear_line(host: Host, first: list[str], second: list[str], said: str) -> None:
    host.up(*first)
    done = host.typed("up", *second)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("disk", "create", "Bad_Name", "--size", "1G"), 1, "name"),
        (("disk", "create", "x", "--size", "0"), 1, "size_bytes"),
        (("disk", "create", "x", "--size", "lots"), 1, "--size"),
        (("disk", "create", "x", "--size", "1G", "--address", "10.9.9.9"), 1, "addresses[0]"),
        (("disk", "show", "none-such"), 1, "none-such"),
        (("disk", "delete", "demo"), 1, "demo is started"),
        (("disk", "delete", "demo", "--force", "--confirm", "dome"), 1, "confirm"),
        (("disk", "create"), 2, "NAME"),
        (("operation", "watch", "none-such"), 1, "none-such"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(served: Host, words: tuple[str, ...], code: int, said: str) -> None:
    done = served.typed(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1


def test_commands_show_what_there_is(served: Host) -> None:
    assert served.asked("subnet", "list")[0]["cidr"] == "127.0.1.0/24"
    gateway = served.asked("gateway", "list")[0]["name"]
    assert served.asked("gateway", "show", gateway)["exports"]
    assert {path["gateway"] for path in served.asked("path", "list", "--disk", "demo")} == {gateway}
    waited(lambda: any(one["leader"] for one in served.asked("leader", "show")), within_s=90, what="somebody leads")
    events = [
        json.loads(line) for line in served.typed("event", "tail", "--after", "0", "--no-follow", "--json").stdout.splitlines()
    ]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert "disk.started" in {event["kind"] for event in events}


def test_a_disk_is_stopped_started_and_deleted(served: Host) -> None:
    served.asked("disk", "create", "cycle", "--size", "64M", "--allow-any", "--wait")
    for verb, state in (("stop", "stopped"), ("start", "started"), ("stop", "stopped")):
        assert served.asked("disk", verb, "cycle", "--wait")["state"] == "succeeded"
        assert served.asked("disk", "show", "cycle")["state"] == state
    plan = served.asked("disk", "delete", "cycle", "--dry-run")
    assert plan["plan"]["at_risk"]
    assert served.asked("disk", "delete", "cycle", "--wait")["state"] == "succeeded"
    assert served.typed("disk", "show", "cycle").returncode == 1
    assert not any("cycle" in path.name for path in (served.state / "images").iterdir())


def test_subnets_and_tokens_are_made_shown_and_removed_by_scripts(served: Host) -> None:
    made = served.asked("subnet", "create", "spare", "--cidr", "127.0.9.0/24", "--interface", "lo")
    assert served.asked("subnet", "show", "spare") == made
    assert made["cidr"] in served.typed("subnet", "show", "spare").stdout
    assert served.asked("subnet", "delete", "spare") == {"name": "spare", "deleted": True}
    token = served.asked("token", "create", "script", "--role", "reader", "--valid-days", "2", "--note", "for a script")
    listed = next(one for one in served.asked("token", "list") if one["name"] == "script")
    assert (listed["note"], listed["expires_at"]) == ("for a script", token["expires_at"])
    assert listed["expires_at"] is not None
    assert served.asked("token", "delete", "script") == {"name": "script", "deleted": True}


def test_the_first_token_is_made_by_scripts(served: Host) -> None:
    file = served.home / "first.json"
    records = {"OS_RECORDS__URL": f"sqlite:///{served.home / 'other.sqlite'}"}
    made = served.asked("token", "init", "--client-file", str(file), **records)
    assert made == {"name": "first", "client_file": str(file), "url": "http://127.0.0.1:8080"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_reader_sees_and_changes_nothing(served: Host) -> None:
    file = served.home / "reader.json"
    assert served.typed("token", "create", "watcher", "--role", "reader", "--client-file", str(file)).returncode == 0
    env = {**os.environ, **served.env, "SANDERLING_CLIENT": str(file)}
    inside = ["ip", "netns", "exec", served.netns, SANDERLING]
    assert subprocess.run([*inside, "disk", "list"], env=env, capture_output=True, timeout=60, check=False).returncode == 0
    refused = subprocess.run([*inside, "disk", "stop", "demo"], env=env, capture_output=True, timeout=60, check=False)
    assert refused.returncode == 5
    assert served.typed("token", "delete", "watcher").returncode == 0
    assert subprocess.run([*inside, "disk", "list"], env=env, capture_output=True, timeout=60, check=False).returncode == 5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tgt: str) -> Iterator[Host]:
    """One machine for the tests that only look or clean up after themselves."""
    with Network(["host"]) as network:
        machine = Host(tmp_path_factory.mktemp("served"), network.netns("host"))
        try:
            machine.up()
            yield machine
        finally:
            machine.down()
