"""The doctor against real parts: nothing to complain of when all is well, and each part that is broken named, with what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kombu.entity import Exchange

from cli.doctor import bus, coordination, images
from cli.doctor.base import Finding, State, examine
from cli.lab.cluster import Cluster
from cli.lab.parts.ceph import USER_CAPS, CephCluster
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import run, spawn, waited
from cli.lab.parts.rabbitmq import RabbitMQ
from rpc import topics
from rpc.connections import connection
from sanderling.clock import SystemClock
from sanderling.settings import Bus, Coordination, General, Images, Settings
from tests.parts import usage

CLOCK = SystemClock()
MASTER = "0e9c1b5e-6f2e-4a4c-9d3a-2b1f7c8d9e00"
LISTENER = "import socket; s = socket.create_server(('0.0.0.0', 3260)); print('listens', flush=True); s.accept()"


def asked(cluster: Cluster, node: str, *words: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """What `sanderling doctor --json` says on that node: exit code, the last finding by what was looked at, and all it wrote."""
    process = cluster[node]
    argv = ["ip", "netns", "exec", process.netns, Path(sys.executable).with_name("sanderling"), "doctor", "--json", *words]
    env = {
        **os.environ,
        "SANDERLING_CONFIG": str(process.folder / f"{node}.ini"),
        "SANDERLING_CLIENT": str(cluster.folder / "none"),
    }
    (process.folder / f"{node}.ini").chmod(0o640)
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=60, check=False, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    return done.returncode, {one["check"]: one for one in json.loads(done.stdout)}, done.stdout + done.stderr


def failed(found: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, one in found.items() if one["state"] == "fail"}


def by_name(found: Any) -> dict[str, Finding]:
    return {one.what: one for one in found}


def test_it_has_nothing_to_complain_of_where_all_runs_and_changes_nothing(cluster: Cluster) -> None:
    node = cluster.network.nodes[0]
    code, found, said = asked(cluster, node, "--role", "worker", "--role", "leader")
    assert not failed(found), said
    assert code == 0
    for what in ("consul rights", "rabbitmq rights", "ceph fence", "ceph data", "guard", "port 3260", f"gateway {node}"):
        assert found[what]["state"] == "ok", said
    code, found, said = asked(cluster, "conductor-1", "--role", "api", "--role", "conductor")
    assert (code, failed(found)) == (0, set()), said
    assert found["records' schema"]["state"] == "ok"
    assert cluster.rabbitmq.ctl("list_queues", "name").count("sanderling.doctor") == 0
    assert "sanderling.doctor" not in run(["rados", "--conf", cluster.ceph.conf, "-p", cluster.ceph.pool, "ls"])


def test_each_part_that_is_broken_is_named_and_the_rest_is_well(cluster: Cluster) -> None:
    node = cluster.network.nodes[0]
    breaks = {
        "consul": (
            cluster.agents[node].pause,
            cluster.agents[node].resume,
            {"consul", "consul rights", "interfaces", "gateways"},
        ),
        "rabbitmq": (cluster.rabbitmq.pause, cluster.rabbitmq.resume, {"rabbitmq"}),
        "ceph": (cluster.ceph.pause, cluster.ceph.resume, {"ceph"}),
    }
    for part, (break_it, mend_it, expected) in breaks.items():
        break_it()
        try:
            code, found, said = asked(cluster, node, "--role", "worker")
        finally:
            mend_it()
        cluster.wait_until_ready()  # a worker whose Consul agent stood still lives again before the next is broken
        assert code == 1, said
        assert part in failed(found) <= expected | {f"{part} agent's name"}, said
        assert all(found[name]["fix"] for name in failed(found))


def test_who_listens_on_every_address_of_port_3260_is_found(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.network.nodes[0]
    log = tmp_path / "listener"
    listener = spawn("listener", [sys.executable, "-c", LISTENER], log=log, netns=cluster.network.netns(node))
    try:
        waited(lambda: "listens" in log.read_text(), within_s=60, what="it listens")
        code, found, said = asked(cluster, node, "--role", "worker")
    finally:
        listener.kill()
    assert (code, failed(found)) == (1, {"port 3260"}), said
    assert "tgt.service" in found["port 3260"]["fix"]


def test_a_gateway_whose_worker_is_dead_is_named(cluster: Cluster) -> None:
    node, dead = cluster.network.nodes[:2]
    cluster[dead].kill()

    def named() -> bool:
        _, found, _ = asked(cluster, node, "--role", "leader")
        return failed(found) == {f"gateway {dead}"}

    waited(named, within_s=60, what="the dead gateway is named, and nothing else")


# rights, on parts of the test's own or under names of its own


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    made = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def vhost(broker: RabbitMQ, unique: str) -> str:
    """A virtual host, and a user of the same name who may do nothing yet."""
    usage.used("RabbitMQ", broker.version)
    broker.ctl("add_vhost", unique)
    broker.ctl("add_user", unique, "secret-canary")
    return unique


def url_of(broker: RabbitMQ, vhost: str, password: str = "secret-canary") -> str:
    return f"rabbit://{vhost}:{password}@{broker.url.rpartition('@')[2].rpartition('/')[0]}/{vhost}"


def looked(url: str) -> dict[str, Finding]:
    settings = Bus(url=url, send_timeout_s=5.0)
    found = by_name(bus.look(connection(settings, name="test"), within_s=5.0))
    assert "canary" not in repr(found)
    return found


def test_a_user_that_rabbitmq_does_not_let_in_or_who_may_do_nothing_is_told_what_it_lacks(broker: RabbitMQ, vhost: str) -> None:
    wrong = looked(url_of(broker, vhost, "wrong-canary"))["rabbitmq"]
    assert (wrong.state, "does not let this user in" in wrong.seen) == (State.FAIL, True)
    broker.ctl("set_permissions", "-p", vhost, vhost, "^$", "^$", "^$")
    refused = looked(url_of(broker, vhost))["rabbitmq rights"]
    assert (refused.state, refused.fix) == (State.FAIL, bus.RIGHTS)
    broker.ctl("set_permissions", "-p", vhost, vhost, ".*", ".*", ".*")
    assert {one.state for one in looked(url_of(broker, vhost)).values()} == {State.OK}


def test_an_exchange_that_is_not_durable_is_found_and_one_that_is_not_there_is_not_made(broker: RabbitMQ, vhost: str) -> None:
    broker.ctl("set_permissions", "-p", vhost, vhost, ".*", ".*", ".*")
    url, what = url_of(broker, vhost), f"rabbitmq exchange {topics.EXCHANGE}"
    assert "not there yet" in looked(url)[what].seen
    assert topics.EXCHANGE not in broker.ctl("list_exchanges", "-p", vhost, "name").split()
    with connection(Bus(url=url), name="test") as connected:
        Exchange(topics.EXCHANGE, type="topic", durable=False)(connected.channel()).declare()
    found = looked(url)[what]
    assert (found.state, "delete exchange" in found.fix) == (State.FAIL, True)


class GuardedConsul(ConsulAgent):
    """With ACLs: whoever has no token may do nothing."""

    def _configuration(self, *words: Any) -> dict[str, Any]:
        acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER, "agent": MASTER}}
        return {**super()._configuration(*words), "acl": acl}

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = urllib3.request("PUT", f"{self.url}{path}", json=body, headers={"X-Consul-Token": MASTER}, timeout=5)
        assert answer.status == 200, answer.data
        return dict(answer.json())

    def token(self, name: str, rules: str) -> str:
        policy = self.put("/v1/acl/policy", {"Name": name, "Rules": rules})
        return str(self.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedConsul]:
    agent = GuardedConsul(tmp_path_factory.mktemp("consul"), node_name="san1")
    agent.start(wait=False)
    asking = urllib3.PoolManager()

    def usable() -> bool:
        answer = asking.request(
            "GET", f"{agent.url}/v1/health/node/san1", headers={"X-Consul-Token": MASTER}, timeout=2, retries=False
        )
        return answer.status == 200 and any(one["CheckID"] == "serfHealth" for one in answer.json())

    def started() -> bool:
        try:
            return usable()
        except urllib3.exceptions.HTTPError:
            return False

    try:
        waited(started, within_s=60, what="Consul with ACLs is usable")
        yield agent
    finally:
        agent.kill()


ENOUGH = (
    'key_prefix "sanderling/" { policy = "write" }\nsession_prefix "" { policy = "write" }\nnode_prefix "" { policy = "write" }\n'
)
TOKENS = {
    "what the guide asks for": (ENOUGH, set()),
    "and the agent's settings": (ENOUGH + 'agent_prefix "" { policy = "read" }\n', set()),
    "no sessions": (ENOUGH.replace('session_prefix "" { policy = "write" }', ""), {"consul rights"}),
    "exports read only": (ENOUGH + 'key_prefix "sanderling/exports/" { policy = "read" }\n', {"consul rights"}),
    "nothing": ('key_prefix "other/" { policy = "read" }\n', {"consul rights"}),
}


@pytest.mark.parametrize("name", TOKENS)
def test_what_a_consul_token_may_not_do_is_told(guarded: GuardedConsul, unique: str, name: str) -> None:
    usage.used("Consul", guarded.version)
    rules, expected = TOKENS[name]
    own = Coordination(url=guarded.url, token=guarded.token(unique, rules))
    settings = Settings(sanderling=General(node="san1"), coordination=own)
    found, all_ended = examine(coordination.checks(settings, None, clock=CLOCK), timeout_s=20, clock=CLOCK)
    assert all_ended
    assert {one.what for one in found if one.state is State.FAIL} == expected, found
    assert own.token not in repr(found)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    """A Ceph that asks for keys, with users of different rights."""
    folder = tmp_path_factory.mktemp("ceph")
    cluster = CephCluster(folder, cephx=True)
    try:
        cluster.start()
        for user, *caps in (
            ("least", *USER_CAPS),
            ("unfencing", "mon", "allow r", "osd", "allow rw pool=rbd"),
            ("elsewhere", "mon", "profile rbd", "osd", "profile rbd pool=other"),
        ):
            file = folder / f"{user}.keyring"
            cluster.ceph("auth", "get-or-create", f"client.{user}", *caps, "-o", str(file))
            run(["ceph-authtool", str(folder / "keyring"), "--import-keyring", str(file)])
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.parametrize(
    ("user", "expected"),
    [("least", set()), ("unfencing", {"ceph fence"}), ("elsewhere", {"ceph data"}), ("unheard-of", {"ceph"})],
)
def test_what_a_ceph_user_may_not_do_is_told(keyed: CephCluster, user: str, expected: set[str]) -> None:
    usage.used("Ceph", keyed.version)
    own = Images(ceph_conf=keyed.conf, ceph_user=user, pool=keyed.pool)
    found = list(images.look(own, connect=lambda: images.RadosCluster(own)))
    assert {one.what for one in found if one.state is State.FAIL} == expected, found


def test_a_pool_that_is_not_there_is_told_with_how_to_make_it(keyed: CephCluster) -> None:
    usage.used("Ceph", keyed.version)
    own = Images(ceph_conf=keyed.conf, ceph_user="least", pool="absent")
    found = by_name(images.look(own, connect=lambda: images.RadosCluster(own)))
    assert found["ceph pool"].state is State.FAIL
    assert found["ceph pool"].fix == "ceph osd pool create absent && rbd pool init absent"
