"""F3, F14: a node that cannot reach some or all of the others, in one or both directions; links that lose packets."""

import contextlib
import random
from collections.abc import Iterator, Sequence

from cli.lab.lab import NODES, Lab
from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.consul import ConsulPorts
from cli.lab.parts.daemons import run
from cli.lab.scenarios.base import PATIENT_S, Scenario

OSD_PORTS = "6800-7568"
LOST_PERCENT = 2
LEFT_WITHIN_S = 15.0  # a node without Ceph: 8 s until it is sure (store_silent_s), two looks, giving up, fencing, taking


def taken_over_s(lab: Lab) -> float:
    """Long enough for another node to have taken over."""
    return lab.span(8.0, 15.0)


@contextlib.contextmanager
def dropping(
    netns: str, rules: Sequence[str], *, family: str = "inet", hooks: Sequence[str] = ("input", "output")
) -> Iterator[None]:
    """Packets that match one of the rules are dropped in the namespace, on the way in and out or on one of them.

    IFNAME in a rule stands for the interface on that way: iifname or oifname.
    """
    run(["nft", f"add table {family} lab"], netns=netns)
    try:
        for hook in hooks:
            run(["nft", f"add chain {family} lab {hook} {{ type filter hook {hook} priority 0; }}"], netns=netns)
            for rule in (each.replace("IFNAME", f"{hook[0]}ifname") for each in rules):
                run(["nft", f"add rule {family} lab {hook} {rule} drop"], netns=netns)
        yield
    finally:
        run(["nft", f"delete table {family} lab"], netns=netns)


def _cut_off(
    lab: Lab, dice: random.Random, what: str, rules: Sequence[str], *, hooks: Sequence[str] = ("input", "output")
) -> None:
    node = lab.busy_node(dice)
    with dropping(lab.network.netns(node), rules, hooks=hooks):
        lab.did(f"{node} cut off: {what}")
        lab.hold(taken_over_s(lab))


def from_all(lab: Lab, dice: random.Random) -> None:
    node = lab.busy_node(dice)
    lab.network.cut(node)
    lab.did(f"{node}: both cables pulled")
    lab.hold(taken_over_s(lab))


def from_initiators(lab: Lab, dice: random.Random) -> None:
    node = lab.busy_node(dice)
    lab.network.cut(node, sides=["front"])
    lab.did(f"{node}: front cable pulled")
    lab.hold(taken_over_s(lab))


def from_store(lab: Lab, dice: random.Random) -> None:
    ports = f"{{ {ConsulPorts().rpc}, {ConsulPorts().serf_lan} }}"
    rules = [f'IFNAME "eth0" {kind} {end} {ports}' for kind in ("tcp", "udp") for end in ("sport", "dport")]
    _cut_off(lab, dice, "from Consul", rules)


def lossy(lab: Lab, _dice: random.Random) -> None:
    """Every link loses packets, as with a bad switch, and nobody is dead: whoever moves a path now does it for nothing."""
    with contextlib.ExitStack() as stack:
        for node in NODES:
            rule = f'IFNAME != "lo" numgen random mod 100 < {LOST_PERCENT}'
            stack.enter_context(dropping(lab.network.netns(node), [rule]))
        lab.did(f"{LOST_PERCENT} % of the packets to and from every node lost")
        lab.hold(lab.span(20.0, 120.0))


def to_ceph(ceph: CephCluster) -> list[str]:
    """Rules for `dropping`: whatever a node and Ceph say to each other."""
    ports = f"{{ {ceph.ports[0]}, {ceph.ports[1]}, {OSD_PORTS} }}"
    return [f"tcp sport {ports}", f"tcp dport {ports}"]


def from_ceph(lab: Lab, dice: random.Random) -> None:
    """The others can serve what it cannot: they must, while it is still cut off."""
    node = lab.busy_node(dice)
    with dropping(lab.network.netns(node), to_ceph(lab.cluster.ceph)):
        lab.did(f"{node} cut off: from Ceph")
        lab.hold(LEFT_WITHIN_S)
        kept = sorted(address for address, owner in lab.owners().items() if owner in {node, None})
        if kept:
            lab.found("F3", f"{node} is cut off from Ceph for {LEFT_WITHIN_S} s, and not served elsewhere: {', '.join(kept)}")


def deaf(lab: Lab, dice: random.Random) -> None:
    _cut_off(lab, dice, "it can send and hears nothing", ['IFNAME != "lo"'], hooks=("input",))


def dumb(lab: Lab, dice: random.Random) -> None:
    _cut_off(lab, dice, "it hears and cannot send", ['IFNAME != "lo"'], hooks=("output",))


SCENARIOS = (
    Scenario("F3-all", "node cut off from everything", from_all, quick=1, full=6),
    Scenario("F3-store", "node cut off from Consul only", from_store, quick=1, full=4),
    Scenario("F3-ceph", "node cut off from Ceph only", from_ceph, quick=1, full=4),
    Scenario("F3-front", "node cut off from the initiators only", from_initiators, quick=1, full=4),
    Scenario("F3-deaf", "node that can send but not receive", deaf, quick=1, full=3),
    Scenario("F3-dumb", "node that can receive but not send", dumb, quick=0, full=3),
    Scenario("F14-loss", "packets lost on every link", lossy, quick=0, full=1, keeps=True, patience_s=PATIENT_S),
)
