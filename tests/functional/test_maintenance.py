"""The operator's story of docs/operations.md, run as written: drain a gateway, reboot it, undrain it, see the spread return."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import access
from cli.lab.cluster import Cluster
from cli.lab.intervals import intervals, overlaps
from cli.lab.network import Network
from cli.lab.parts.daemons import waited
from tests.functional.test_serving import writing, wrong_blocks

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
NODES = ["san1", "san2", "san3"]
DISKS = 6


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    changes = {"conductor": {"balance": "on", "balance_cool_down_s": 2.0, "balance_interval_s": 0.5}}
    with Network(NODES) as network:
        cluster = Cluster(tmp_path_factory.mktemp("site"), network, changes=changes)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def commands() -> list[str]:
    """Every line of the section's shell blocks."""
    section = PAGE.read_text().partition("### Maintenance of a gateway\n")[2].partition("\n##")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def typed(site: Cluster, line: str) -> str:
    """What the command prints, as somebody with a client file of this site types it."""
    program, *words = shlex.split(line)
    assert program == "sanderling", line
    client = site.folder / "client.json"
    access.write(client, access.Access(site.url, site.http.headers["Authorization"].removeprefix("Bearer ")))
    environment = {**os.environ, "SANDERLING_CLIENT": str(client)}
    argv = ["ip", "netns", "exec", site.network.parts, str(Path(sys.executable).with_name(program)), *words]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def reboot(site: Cluster, node: str) -> None:
    """Every process of the node dies at once; then its Consul agent and its worker come up again."""
    site.kill_node(node)
    site.agents[node].kill()
    site.heal()


def spread(site: Cluster) -> dict[str, int]:
    gateways = json.loads(typed(site, "sanderling gateway list --json"))
    return {gateway["name"]: gateway["counts"]["exports"] for gateway in gateways}


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("libiscsi")
def test_a_gateway_is_drained_rebooted_and_undrained_as_the_page_says(site: Cluster) -> None:
    disks: list[dict[str, Any]] = [site.create_disk(f"disk-{number}", paths=1) for number in range(DISKS)]
    waited(lambda: set(spread(site).values()) == {2}, within_s=60, what="two exports each")
    with writing(site, disks[0]) as writer:
        for line in commands():
            if line == "ssh san2 reboot":
                assert spread(site)["san2"] == 0
                reboot(site, "san2")
            else:
                typed(site, line)
            writer.wrote(20)
        waited(lambda: set(spread(site).values()) == {2}, within_s=60, what="the spread is even again", every_s=0.5)
        writer.wrote(20)
    assert "balancer" in typed(site, "sanderling assignment list")
    assert overlaps(intervals({worker.name: worker.log() for worker in site.workers})) == []
    assert wrong_blocks(site, disks[0]["id"], writer.history) == []
