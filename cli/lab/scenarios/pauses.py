"""F5: a process, or a whole node, that stands still for longer than its lease and then goes on."""

import random
import signal

from cli.lab.lab import Lab
from cli.lab.scenarios.base import Scenario


def worker(lab: Lab, dice: random.Random) -> None:
    node, pause_s = lab.busy_node(dice), dice.choice((3.0, 8.0, lab.span(8.0, 15.0)))
    lab.cluster[node].pause()
    lab.did(f"SIGSTOP {node}'s worker for {pause_s} s")
    lab.hold(pause_s)
    lab.cluster[node].resume()


def target(lab: Lab, dice: random.Random) -> None:
    (node, pid, name), pause_s = lab.busy_target(dice), dice.choice((2.0, 8.0, lab.span(8.0, 25.0)))
    lab.signal(pid, signal.SIGSTOP)
    lab.did(f"SIGSTOP the target process of {name} on {node} for {pause_s} s")
    lab.hold(pause_s)
    lab.signal(pid, signal.SIGCONT)


def agent(lab: Lab, dice: random.Random) -> None:
    """The worker can prove nothing any more, and the others find the node dead."""
    victim, pause_s = lab.busy_node(dice), dice.choice((2.0, 8.0, lab.span(8.0, 25.0)))
    lab.cluster.agents[victim].pause()
    lab.did(f"SIGSTOP the Consul agent of {victim} for {pause_s} s")
    lab.hold(pause_s)
    lab.cluster.agents[victim].resume()


def node(lab: Lab, dice: random.Random) -> None:
    """With the cables still in: what is in the sockets is read when it goes on."""
    victim, pause_s = lab.busy_node(dice), dice.choice((4.0, lab.span(9.0, 15.0)))
    lab.cluster.freeze(victim)
    lab.did(f"SIGSTOP every process of {victim} for {pause_s} s")
    lab.hold(pause_s)
    lab.cluster.thaw(victim)


SCENARIOS = (
    Scenario("F5-worker", "worker stopped and resumed", worker, quick=1, full=8),
    Scenario("F5-target", "export process stopped and resumed", target, quick=1, full=8),
    Scenario("F5-agent", "Consul agent of a node stopped and resumed", agent, quick=1, full=3),
    Scenario("F5-node", "whole node stopped and resumed", node, quick=1, full=10),
)
