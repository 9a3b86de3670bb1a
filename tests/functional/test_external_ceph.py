"""A Ceph that is somebody else's: a user with the fewest rights that do, and nothing of its configuration is ever written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab.cluster import Cluster
from cli.lab.initiator import SECTOR, Initiator
from cli.lab.network import Network
from cli.lab.network import version as network_version
from tests.functional.test_serving import gateway_of, inside, moved
from tests.parts.usage import used

HOST = "iqn.2026-11.io.sanderling.tests:external"
CONFIGURATION = ("config", "dump"), ("auth", "ls"), ("osd", "pool", "get", "rbd", "all"), ("config-key", "ls")


@pytest.fixture
def site(tmp_path: Path, tgt: str, libiscsi: str) -> Iterator[Cluster]:
    with Network(["worker-1", "worker-2"]) as network:
        cluster = Cluster(tmp_path, network, cephx=True)
        try:
            cluster.start()
            for title, part in (("RabbitMQ", cluster.rabbitmq), ("Consul", cluster.consul), ("Ceph", cluster.ceph)):
                used(title, part.version)
            used("network namespaces", network_version())
            yield cluster
        finally:
            cluster.stop()


def connected(cluster: Cluster, disk: dict[str, object]) -> Initiator:
    paths = disk["paths"]
    assert isinstance(paths, list)
    with inside(cluster.network.initiator):
        portals = [f"{path['address']}:3260" for path in paths]
        initiator = Initiator(str(disk["iqn"]), portals, initiator_name=HOST, timeout_s=60.0)
        initiator.login()
        return initiator


def test_a_disks_whole_life_needs_no_more_than_the_two_profiles_and_leaves_the_configuration_as_it_was(
    site: Cluster, unique: str
) -> None:
    before = [site.ceph.ceph(*words, "--format", "json") for words in CONFIGURATION]
    assert "allow *" not in site.ceph.ceph("auth", "get", f"client.{site.ceph.client_user}")
    disk = site.create_disk(unique)
    initiator = connected(site, disk)
    initiator.write(0, b"a" * SECTOR)
    site.wait_operation(site.http.post(f"/v1/disks/{unique}/snapshots", json={"name": "before"}))
    owner = gateway_of(site, disk["id"])
    assert owner is not None
    site.freeze(owner)  # its heir fences it, which is the right that a site forgets
    heir = moved(site, disk["id"], away_from=owner)
    with inside(site.network.initiator), initiator:
        assert initiator.read(0) == b"a" * SECTOR
        initiator.write(0, b"b" * SECTOR)
    site.thaw(owner)
    site.heal()
    assert site.log(heir, event="fenced")
    site.wait_operation(site.http.patch(f"/v1/disks/{unique}", json={"size_bytes": 96 << 20}))
    clone = site.create_disk(f"{unique}-c", size_bytes=None, source={"disk": unique, "snapshot": "before"})
    copied = connected(site, clone)
    assert copied.read(0) == b"a" * SECTOR
    copied.close()
    site.delete_disk(f"{unique}-c")
    site.wait_operation(site.http.post(f"/v1/disks/{unique}/stop"))
    site.wait_operation(site.http.delete(f"/v1/disks/{unique}/snapshots/before"))
    site.delete_disk(unique)
    assert site.ceph.ceph("osd", "blocklist", "ls"), "the fence left an entry"
    assert [site.ceph.ceph(*words, "--format", "json") for words in CONFIGURATION] == before
