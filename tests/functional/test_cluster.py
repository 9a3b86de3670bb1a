"""The cluster that functional tests run on: what a test breaks there it can break for real, and `heal` makes whole again."""

import contextlib

import pytest

import rpc.oslo
from cli.lab.cluster import Cluster
from cli.lab.parts.daemons import run, waited
from rpc import topics
from rpc.bus import Bus
from rpc.messages import Ping
from sanderling.errors import NotFound, Unavailable


def test_an_initiator_finds_a_disk_on_each_of_its_portals(cluster: Cluster, unique: str, libiscsi: str) -> None:
    disk = cluster.create_disk(unique, paths=2)
    for path in disk["paths"]:
        said = run(["iscsi-ls", "-s", f"iscsi://{path['address']}"], netns=cluster.network.initiator)
        assert disk["iqn"] in said
    served = cluster.log(disk["paths"][0]["gateway"], event="gate opened")
    assert any(entry["export"].startswith(disk["id"]) for entry in served)


def test_what_is_killed_frozen_or_cut_off_is_seen_and_healed(cluster: Cluster) -> None:
    killed, frozen, cut = cluster.network.nodes
    cluster[killed].kill()
    cluster.freeze(frozen)
    cluster.network.cut(cut)
    cluster["conductor-1"].pause()
    waited(lambda: not cluster.live(), within_s=60, what="no gateway is live")
    cluster.heal()
    assert cluster.live() == set(cluster.network.nodes)
    assert cluster["conductor-1"].alive
    assert not cluster["conductor-1"].paused


def test_a_broker_that_was_killed_is_started_again(cluster: Cluster, unique: str) -> None:
    cluster.rabbitmq.settle()
    cluster.rabbitmq.kill()
    accepted = cluster.http.post("/v1/disks", json={"name": unique, "size_bytes": 1 << 20, "paths": 1, "started": False})
    cluster.heal()
    cluster.wait_operation(accepted)


@pytest.mark.rows("MC-9", "MC-10", "MC-11")
def test_each_conductor_is_a_server_of_its_own_name_on_the_one_topic_and_answers_a_ping(cluster: Cluster, unique: str) -> None:
    second = cluster.add_conductor(f"conductor-{unique}")
    bus = rpc.oslo.connect(cluster.settings())
    try:
        second.start()
        second.wait_for_log("driving operations")
        for name in ("conductor-1", second.name):
            waited(lambda name=name: answers(bus, name), within_s=60, what=f"{name} answers")  # type: ignore[misc]
        with pytest.raises(NotFound):
            bus.call(topics.CONDUCTOR, "operation.forget", Ping(), server=second.name, timeout_s=30)
    finally:
        bus.close()
        cluster.discard(second.name)


def answers(bus: Bus, server: str) -> bool:
    with contextlib.suppress(Unavailable):
        return bool(bus.call(topics.CONDUCTOR, "bus.ping", Ping(), server=server, timeout_s=5)["server"] == server)
    return False


def test_a_process_that_a_test_added_is_gone_when_it_is_discarded(cluster: Cluster) -> None:
    second = cluster.add_conductor("conductor-2")
    second.start()
    second.wait_for_log("driving operations")
    pid = second.pid
    cluster.discard("conductor-2")
    assert str(pid) not in run(["ip", "netns", "pids", cluster.network.parts]).split()
