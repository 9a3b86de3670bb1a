"""A node that initiators cannot reach, while Consul and Ceph still can: it loses its paths, in order, and is used again later."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

import sanderling.coordination
from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import run, waited
from iscsi_worker.addresses.netlink import Netlink
from sanderling.clock import SystemClock
from sanderling.model.exports import Front, Gateway
from tests.functional.test_serving import gateway_of, inside, intervals, moved, overlapping, writing, wrong_blocks

CLOCK = SystemClock()
IN, OUT = "iifname eth1", "oifname eth1"


@contextlib.contextmanager
def cut_in_front(cluster: Cluster, node: str, fault: str) -> Iterator[None]:
    """Within this, the node's front side is broken in the named way; its back side is as it was."""
    if fault == "link down":
        cluster.network.cut(node, sides=["front"])
        yield
        cluster.network.mend(node, sides=["front"])
        return
    rules = {"nothing comes in": [("input", IN)], "nothing goes out": [("output", OUT)]}.get(
        fault, [("input", IN), ("output", OUT)]
    )
    inside = cluster.network.netns(node)
    try:
        run(["nft", "add", "table", "inet", "cut"], netns=inside)
        for hook, where in rules:
            run(["nft", f"add chain inet cut {hook} {{ type filter hook {hook} priority 0 ; }}"], netns=inside)
            run(["nft", f"add rule inet cut {hook} {where} drop"], netns=inside)
        yield
    finally:
        run(["nft", "delete", "table", "inet", "cut"], netns=inside)


def neighbour(cluster: Cluster, address: str) -> str:
    """The hardware address that the initiator sends to for a path's address."""
    said = run(["ip", "neigh", "show", "to", address], netns=cluster.network.initiator)
    found = re.search(r"lladdr (\S+)", said)
    return found[1] if found else said


def add(cluster: Cluster, disks: list[dict[str, Any]], more: int) -> set[str | None]:
    """Create this many more disks; the nodes that serve them."""
    made = [cluster.create_disk(f"{disks[0]['name']}-{len(disks) + number}", paths=1) for number in range(more)]
    disks += made
    return {gateway_of(cluster, disk["id"]) for disk in made}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["link down", "nothing passes", "nothing comes in", "nothing goes out"])
def test_a_node_that_initiators_cannot_reach_loses_its_paths_and_is_offered_exports_again_once_they_can(
    cluster: Cluster, disks: list[dict[str, Any]], fault: str
) -> None:
    disk = disks[0]
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    worker = cluster[node]
    cut, given_up, back = (len(worker.log(event=event)) for event in ("cut off in front", "given up", "reached again in front"))
    with writing(cluster, disk) as writer:
        with cut_in_front(cluster, node, fault):
            heir = moved(cluster, disk["id"], away_from=node)
            writer.wrote(50)
            for path in disk["paths"]:
                assert neighbour(cluster, path["address"]) == cluster.network.mac(cluster.network.netns(heir), "eth1")
            assert node not in add(cluster, disks, 2), "nothing is placed where nobody can reach it"
            assert node in cluster.live(), "only its front side was cut"
        stands_back_s = worker.log(event="cut off in front")[cut]["stands_back_s"]
        worker.wait_for_log("reached again in front", after=back, within_s=stands_back_s + 60)
        writer.wrote(50)
        assert node in add(cluster, disks, 1), "the emptiest gateway is used again"
    assert worker.log(event="given up")[given_up]["drained"], "it could still reach Ceph, so it left in order"
    found = intervals(cluster, disk["id"])
    assert len(found) == 2, found
    assert overlapping(found) == []
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


@pytest.mark.timeout(600)
def test_when_no_gateway_reaches_another_nothing_moves(cluster: Cluster, disks: list[dict[str, Any]]) -> None:
    """Who is cut off cannot be told then, and there is nowhere to go."""
    disk, nodes = disks[0], cluster.network.nodes
    node = gateway_of(cluster, disk["id"])
    with contextlib.ExitStack() as cuts:
        for each in nodes:
            cuts.enter_context(cut_in_front(cluster, each, "nothing passes"))
        waited(
            lambda: all(set(unreachable(cluster, each)) == set(nodes) - {each} for each in nodes),
            within_s=30,
            what="every gateway says that it reaches nobody",
        )
        assert gateway_of(cluster, disk["id"]) == node
    waited(lambda: not any(unreachable(cluster, each) for each in nodes), within_s=90, what="all reach each other again")
    with writing(cluster, disk) as writer:
        writer.wrote(50)
    assert gateway_of(cluster, disk["id"]) == node
    assert len(intervals(cluster, disk["id"])) == 1
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


@contextlib.contextmanager
def rival(cluster: Cluster, address: str) -> Iterator[None]:
    """One more machine on the front network, which has the address as well and says so to all."""
    parts, name = cluster.network.parts, f"{cluster.network.parts}-rival"
    try:
        run(["ip", "netns", "add", name])
        run(["ip", "-n", parts, "link", "add", "rival", "type", "veth", "peer", "name", "eth1", "netns", name])
        run(["ip", "-n", parts, "link", "set", "rival", "master", "front", "up"])
        run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth1"])
        run(["ip", "-n", name, "link", "set", "eth1", "up"])
        with inside(name):
            Netlink().announce(address, interface="eth1")
        yield
    finally:
        run(["ip", "netns", "delete", name])


@pytest.mark.timeout(600)
def test_a_machine_that_claims_a_paths_address_is_found_and_the_path_is_won_back(
    cluster: Cluster, disks: list[dict[str, Any]]
) -> None:
    """F13: initiators' packets go astray for a moment; nothing moves, nothing is lost."""
    disk, address = disks[0], disks[0]["paths"][0]["address"]
    node = gateway_of(cluster, disk["id"])
    assert node is not None
    own = cluster.network.mac(cluster.network.netns(node), "eth1")
    with writing(cluster, disk) as writer:
        with rival(cluster, address):
            waited(lambda: address in front(cluster, node).claimed, within_s=90, what="the claim is published")
            waited(lambda: neighbour(cluster, address) == own, within_s=90, what="the initiator knows whose address it is")
            writer.wrote(50)
        waited(lambda: not front(cluster, node).claimed, within_s=90, what="the claim is over")
        writer.wrote(50)
    assert gateway_of(cluster, disk["id"]) == node
    assert len(intervals(cluster, disk["id"])) == 1
    assert wrong_blocks(cluster, disk["id"], writer.history) == []


def unreachable(cluster: Cluster, node: str) -> list[str]:
    return [peer for peers in front(cluster, node).unreachable.values() for peer in peers]


def front(cluster: Cluster, node: str) -> Front:
    """What the gateway publishes of the networks of the paths."""
    store = sanderling.coordination.connect(cluster.settings(), clock=CLOCK)
    try:
        entry = store.get(f"nodes/{node}")
    finally:
        store.close()
    assert entry is not None
    return Gateway.model_validate_json(entry.value).front
