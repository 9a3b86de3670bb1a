"""The lab's own network: a cut is a cut, a mend mends, and nothing is left behind."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab import network
from cli.lab.network import Network
from cli.lab.parts.daemons import run, spawn, waited
from tests.parts import usage

NAMES = Path("/run/netns")
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7000), timeout=1)"
LISTEN = "import socket, threading; s = socket.create_server((__import__('sys').argv[1], 7000)); threading.Event().wait()"


@pytest.fixture
def pair() -> Iterator[Network]:
    usage.used("network namespaces", network.version())
    with Network(["one", "two"]) as made:
        yield made


def reaches(netns: str, address: str) -> bool:
    argv = ["ip", "netns", "exec", netns, sys.executable, "-c", CONNECT, address]
    return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode == 0


def test_a_cut_separates_the_sides_it_names_and_a_mend_joins_them_again(pair: Network, tmp_path: Path) -> None:
    back, front = pair.address("two", "back"), pair.address("two", "front")
    for name, address in (("back", back), ("front", front)):
        spawn(name, [sys.executable, "-c", LISTEN, address], log=tmp_path / name, netns=pair.netns("two"))
        waited(lambda at=address: reaches(pair.netns("one"), at), within_s=60, what=f"{address} answers")  # type: ignore[misc]
    assert reaches(pair.initiator, front)
    assert not reaches(pair.initiator, back), "an initiator stands on the front alone"
    pair.cut("two", sides=["front"])
    assert not reaches(pair.initiator, front)
    assert reaches(pair.netns("one"), back)
    pair.cut("two")
    assert not reaches(pair.netns("one"), back)
    pair.mend("two")
    waited(lambda: reaches(pair.initiator, front) and reaches(pair.netns("one"), back), within_s=60, what="both sides are back")


def test_closing_kills_what_a_test_left_running_and_removes_every_name(tmp_path: Path) -> None:
    with Network(["one"]) as made:
        names = [made.netns("one"), made.parts, made.initiator]
        left = spawn("left", ["sleep", "1000"], log=tmp_path / "left", netns=made.netns("one"))
        assert all((NAMES / name).exists() for name in names)
    assert not left.alive
    assert not any((NAMES / name).exists() for name in names)


def test_the_next_run_removes_what_a_killed_run_left_behind() -> None:
    run(["ip", "netns", "add", "san-249-1-1-parts"])  # pid 1 never started at tick 1
    with Network(["one"]):
        assert not (NAMES / "san-249-1-1-parts").exists()
