"""F4: any process killed at any moment, with SIGKILL."""

import random
import signal

from cli.lab.lab import NODES, Lab
from cli.lab.scenarios.base import Scenario

ANSWERS_WITHIN_S = 30.0
AWAY_S = (0.0, 0.5, 12.0)  # at once, as by a supervisor; soon; later than another node takes over


def _kill_and_start(lab: Lab, name: str, *, away_s: float) -> None:
    lab.cluster[name].kill()
    lab.did(f"SIGKILL {name}, started again after {away_s} s")
    lab.hold(away_s)
    lab.cluster[name].start()
    if name == "api":
        lab.until(lab.cluster.answers, within_s=ANSWERS_WITHIN_S, what="the API answers again")  # to say who serves what


def worker(lab: Lab, dice: random.Random) -> None:
    node = lab.busy_node(dice)
    lab.hold(dice.random())
    _kill_and_start(lab, node, away_s=dice.choice(AWAY_S))


def export(lab: Lab, dice: random.Random) -> None:
    lab.hold(dice.random())
    node, pid, name = lab.busy_target(dice)
    lab.signal(pid, signal.SIGKILL)
    lab.did(f"SIGKILL the target process of {name} on {node}")
    lab.hold(1.0)


def worker_and_exports(lab: Lab, dice: random.Random) -> None:
    node = lab.busy_node(dice)
    lab.cluster[node].kill()
    for pid, _ in lab.targets(node):
        lab.signal(pid, signal.SIGKILL)
    lab.did(f"SIGKILL {node} and every target process on it")
    lab.hold(dice.choice(AWAY_S))


def conductor(lab: Lab, dice: random.Random) -> None:
    lab.ask()
    lab.hold(dice.random() * 0.5)
    _kill_and_start(lab, "conductor-1", away_s=dice.choice((0.0, 3.0)))


def api(lab: Lab, dice: random.Random) -> None:
    lab.ask()
    lab.hold(dice.random() * 0.2)
    _kill_and_start(lab, "api", away_s=dice.choice((0.0, 2.0)))


def agent(lab: Lab, dice: random.Random) -> None:
    """Its Consul agent: the gossip of the others finds the node dead, though it can serve."""
    node, away_s = lab.busy_node(dice), dice.choice(AWAY_S)
    lab.cluster.agents[node].kill()
    lab.did(f"SIGKILL the Consul agent of {node}, started again after {away_s} s")
    lab.hold(away_s)
    lab.cluster.agents[node].start()


def anything(lab: Lab, dice: random.Random) -> None:
    lab.ask()
    for _ in range(3):
        victim = dice.choice([*NODES, "conductor-1", "api", "a target process"])
        if victim == "a target process":
            export(lab, dice)
        else:
            _kill_and_start(lab, victim, away_s=dice.random() * 2)


SCENARIOS = (
    Scenario("F4-export", "export process killed", export, quick=2, full=15),
    Scenario("F4-worker", "worker killed, started again at once or late", worker, quick=1, full=12),
    Scenario("F4-node", "worker and every export process of a node killed", worker_and_exports, quick=1, full=8),
    Scenario("F4-conductor", "conductor killed while it creates a disk", conductor, quick=1, full=8),
    Scenario("F4-api", "API killed after it has accepted a disk", api, quick=1, full=5),
    Scenario("F4-agent", "Consul agent of a node killed, started again at once or late", agent, quick=1, full=4),
    Scenario("F4-anything", "three kills at random", anything, quick=1, full=8),
)
