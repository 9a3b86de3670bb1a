"""A whole cluster that is switched off and on again, in any order, with a Consul that remembers another day: nobody has to help.

A run does it twice; SANDERLING_FULL=1 does it ten times. The order is drawn anew each time, and printed.
"""

import contextlib
import os
import random
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.lab.cluster import Cluster
from cli.lab.initiator import SECTOR, Initiator
from cli.lab.network import Network
from cli.lab.network import version as network_version
from cli.lab.parts.daemons import run, waited
from tests.functional.test_serving import inside
from tests.parts.usage import used

HOST = "iqn.2026-11.io.sanderling.tests:cold"
TIMES = 10 if os.environ.get("SANDERLING_FULL") else 2
SERVED_WITHIN_S = 120.0


class Site:
    """Three nodes with all their parts, of which Consul's data can be put back to an earlier day."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.cluster, self._network = Cluster(folder, network, objectstore="bluestore", consul_servers=3), network
        self._yesterday: dict[str, Path] = {}
        self._folder = folder

    def switch_off(self) -> None:
        """Every process of every machine dies at once; what lay in memory, addresses and runtime folders, is gone."""
        cluster = self.cluster
        for process in cluster.processes.values():
            process.kill()
        for node in self._network.nodes:
            cluster.kill_node(node)
        parts: list[Any] = [*self._agents(), cluster.rabbitmq, cluster.ceph]
        for part in parts:
            part.kill()
        for folder in self._folder.glob("run-*"):
            shutil.rmtree(folder)
            folder.mkdir()
        for node in self._network.nodes:
            for address in self._addresses(node):
                with contextlib.suppress(AssertionError):  # its lifetime was over first
                    run(["ip", "addr", "del", address, "dev", "eth1"], netns=self._network.netns(node))

    def _addresses(self, node: str) -> list[str]:
        shown = run(["ip", "-o", "-4", "addr", "show", "dev", "eth1"], netns=self._network.netns(node))
        own = self._network.address(node, "front")
        return [words[3] for line in shown.splitlines() if (words := line.split())[3].split("/")[0] != own]

    def remember(self) -> None:
        """Keep what Consul has on its disks now, to be what it wakes up with later; only while it is switched off."""
        for agent in self._agents():
            kept = self._folder / f"yesterday-{agent.node_name}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(agent.folder / "data", kept)
            self._yesterday[agent.node_name] = kept

    def turn_back(self) -> None:
        """Let Consul wake up with what it remembered."""
        for agent in self._agents():
            agent.forget()
            shutil.copytree(self._yesterday[agent.node_name], agent.folder / "data")

    def switch_on(self, order: random.Random) -> list[str]:
        """Everything at once, begun in an order of chance; in which."""
        cluster = self.cluster
        starts: dict[str, Any] = {process.name: process.start for process in cluster.processes.values()}
        starts |= {f"consul of {agent.node_name}": lambda agent=agent: agent.start(wait=False) for agent in self._agents()}
        starts |= {"rabbitmq": cluster.rabbitmq.start, "ceph": cluster.ceph.start}
        names = list(starts)
        order.shuffle(names)
        with ThreadPoolExecutor(len(names)) as pool:
            for done in [pool.submit(starts[name]) for name in names]:
                done.result()
        return names

    def _agents(self) -> list[Any]:
        return [*self.cluster.servers, self.cluster.consul, *self.cluster.agents.values()]

    def running(self) -> dict[str, list[str]]:
        """The target processes of each node, by what they serve."""
        found = {}
        for node in self._network.nodes:
            folder = Path(self.cluster[node].settings.sanderling.runtime_dir) / "targets"
            found[node] = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        return found


@pytest.fixture
def site(tmp_path: Path, tgt: str, libiscsi: str) -> Iterator[Site]:
    with Network(["worker-1", "worker-2", "worker-3"]) as network:
        made = Site(tmp_path, network)
        try:
            made.cluster.start()
            cluster = made.cluster
            for title, part in (("RabbitMQ", cluster.rabbitmq), ("Consul", cluster.consul), ("Ceph", cluster.ceph)):
                used(title, part.version)
            used("network namespaces", network_version())
            yield made
        finally:
            made.cluster.stop()


def written(site: Site, disk: dict[str, Any], data: bytes | None = None) -> bytes:
    """The first sector at the initiator; with `data`, after writing it."""
    with inside(site.cluster.network.initiator):
        portals = [f"{path['address']}:3260" for path in disk["paths"]]
        with Initiator(disk["iqn"], portals, initiator_name=HOST, timeout_s=60.0) as initiator:
            if data is not None:
                initiator.write(0, data)
            return initiator.read(0)


@pytest.mark.timeout(3600)
@pytest.mark.rows("IS-2")
def test_what_was_started_is_served_again_once_whatever_consul_remembers(
    site: Site, unique: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, seed = site.cluster, random.SystemRandom().randrange(2**32)
    order = random.Random(seed)
    disks = [cluster.create_disk(f"{unique}-{number}") for number in range(3)]
    stopped = cluster.create_disk(f"{unique}-stopped")
    said = []
    for turn in range(TIMES):
        contents = {disk["id"]: bytes([65 + turn + at]) * SECTOR for at, disk in enumerate(disks)}
        for disk in disks:
            written(site, disk, contents[disk["id"]])
        site.switch_off()
        if turn == 0:
            site.remember()  # the disk that is stopped next was served then, and the one made next was not there
            site.switch_on(order)
            cluster.wait_until_ready(within_s=SERVED_WITHIN_S)
            cluster.wait_operation(cluster.http.post(f"/v1/disks/{stopped['id']}/stop"), within_s=SERVED_WITHIN_S)
            disks.append(cluster.create_disk(f"{unique}-late"))
            contents[disks[-1]["id"]] = b"l" * SECTOR
            written(site, disks[-1], contents[disks[-1]["id"]])
            site.switch_off()
        site.turn_back()
        names = site.switch_on(order)
        said.append(" ".join(names))

        def served() -> bool:
            shown = cluster.http.get("/v1/paths").json()["paths"] if cluster.answers("/readyz") else []
            found = {path["disk_id"]: path["status"] for path in shown}
            return all(found.get(disk["id"]) == "serving" for disk in disks) and found.get(stopped["id"]) == "stopped"

        waited(served, within_s=SERVED_WITHIN_S, what=f"everything is served again (seed {seed}, order {names})", every_s=0.1)
        serving = [name for names in site.running().values() for name in names]
        assert sorted(serving) == sorted(f"{disk['id']}.0" for disk in disks), site.running()
        for disk in disks:
            assert written(site, disk) == contents[disk["id"]], disk["name"]
    with capsys.disabled():
        sys.stdout.write(f"\ncold starts: {TIMES}, seed {seed}; began with {', '.join(line.split()[0] for line in said)}\n")
