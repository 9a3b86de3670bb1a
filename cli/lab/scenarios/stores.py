"""F2: Consul loses its leader, its quorum, or everything."""

import random

import httpx

from cli.lab.lab import Lab, LabFailed
from cli.lab.parts.consul import ConsulAgent
from cli.lab.scenarios.base import PATIENT_S, Scenario


def _leader(lab: Lab) -> ConsulAgent:
    for server in lab.cluster.servers:
        try:
            said = httpx.get(f"{server.url}/v1/status/leader", timeout=5.0).json()
        except (httpx.TransportError, ValueError):
            continue
        for each in lab.cluster.servers:
            if each.address == said.partition(":")[0]:
                return each
    raise LabFailed("Consul has no leader to begin with")


def leader_killed(lab: Lab, dice: random.Random) -> None:
    leader = _leader(lab)
    lab.hold(dice.random())
    leader.kill()
    lab.did(f"SIGKILL Consul's leader {leader.node_name}")
    lab.hold(8.0)
    leader.start(wait=False)


def quorum_frozen(lab: Lab, dice: random.Random) -> None:
    frozen = dice.sample(lab.cluster.servers, 2)
    for server in frozen:
        server.pause()
    lab.did(f"SIGSTOP {' and '.join(server.node_name for server in frozen)}")
    _outage(lab)
    for server in frozen:
        server.resume()
    _after(lab)


def all_killed(lab: Lab, _dice: random.Random) -> None:
    for server in lab.cluster.servers:
        server.kill()
    lab.did("SIGKILL every Consul server")
    _outage(lab)
    for server in lab.cluster.servers:
        server.start(wait=False)
    _after(lab)


def all_frozen(lab: Lab, _dice: random.Random) -> None:
    for server in lab.cluster.servers:
        server.pause()
    lab.did("SIGSTOP every Consul server")
    _outage(lab)
    for server in lab.cluster.servers:
        server.resume()
    _after(lab)


def node_lost_meanwhile(lab: Lab, dice: random.Random) -> None:
    """Nobody can know that the node is dead, so nobody takes over before Consul is back: slow, and safe."""
    node = lab.busy_node(dice)
    for server in lab.cluster.servers:
        server.kill()
    lab.did("SIGKILL every Consul server")
    lab.hold(5.0)
    lab.network.cut(node)
    lab.cluster.freeze(node)
    lab.did(f"{node} frozen and cut off")
    lab.hold(lab.span(6.0, 10.0))
    for server in lab.cluster.servers:
        server.start(wait=False)
    lab.hold(lab.span(12.0, 20.0))


def _outage(lab: Lab) -> None:
    lab.hold(lab.span(10.0, 60.0))


def _after(lab: Lab) -> None:
    """An owner may also be lost when Consul comes back."""
    lab.hold(lab.span(4.0, 60.0))


SCENARIOS = (
    Scenario("F2-leader", "Consul's leader killed", leader_killed, quick=1, full=4, keeps=True, patience_s=PATIENT_S),
    Scenario("F2-quorum", "two of three Consul servers frozen", quorum_frozen, quick=0, full=1, keeps=True, patience_s=PATIENT_S),
    Scenario("F2-killed", "all three Consul servers killed", all_killed, quick=1, full=1, keeps=True, patience_s=PATIENT_S),
    Scenario("F2-frozen", "all three Consul servers frozen", all_frozen, quick=1, full=1, keeps=True, patience_s=PATIENT_S),
    Scenario("F2-node", "a node lost while Consul is down", node_lost_meanwhile, quick=1, full=2),
)
