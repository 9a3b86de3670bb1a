"""F8: Ceph that stands still or crawls for a while. Initiators wait; nothing else may happen to them."""

import random

from cli.lab.lab import Lab
from cli.lab.scenarios.base import PATIENT_S, Scenario
from cli.lab.scenarios.partitions import OSD_PORTS, dropping

SLOW_BYTES_PER_S = 4_000


def osd_frozen(lab: Lab, dice: random.Random) -> None:
    pause_s = dice.choice((3.0, lab.span(7.0, 12.0)))
    lab.cluster.ceph.pause_osd()
    lab.did(f"SIGSTOP the OSD for {pause_s} s")
    lab.hold(pause_s)
    lab.cluster.ceph.resume()


def monitor_frozen(lab: Lab, _dice: random.Random) -> None:
    lab.cluster.ceph.pause_monitor()
    lab.did("SIGSTOP the monitor")
    lab.hold(lab.span(7.0, 12.0))
    lab.cluster.ceph.resume()


def paused(lab: Lab, _dice: random.Random) -> None:
    lab.cluster.ceph.ceph("osd", "pause")
    lab.did("`ceph osd pause`")
    try:
        lab.hold(lab.span(7.0, 10.0))
    finally:
        lab.cluster.ceph.ceph("osd", "unpause")


def slow(lab: Lab, dice: random.Random) -> None:
    """What goes between a node and Ceph beyond a trickle is lost and has to be sent again."""
    node = lab.busy_node(dice)
    first, last = lab.cluster.ceph.ports
    ports = f"{{ {first}, {last}, {OSD_PORTS} }}"
    rules = [f"tcp {end} {ports} limit rate over {SLOW_BYTES_PER_S} bytes/second burst 4000 bytes" for end in ("sport", "dport")]
    with dropping(lab.network.netns(node), rules):
        lab.did(f"{node} and Ceph: {SLOW_BYTES_PER_S} bytes/s in either direction, the rest is lost")
        lab.hold(lab.span(7.0, 12.0))


SCENARIOS = (
    Scenario("F8-osd", "OSD stopped and resumed", osd_frozen, quick=1, full=5, keeps=True, patience_s=PATIENT_S),
    Scenario("F8-monitor", "monitor stopped and resumed", monitor_frozen, quick=1, full=3, keeps=True, patience_s=PATIENT_S),
    Scenario("F8-slow", "a trickle between a node and Ceph", slow, quick=1, full=2, keeps=True, patience_s=PATIENT_S),
    Scenario("F8-paused", "reads and writes paused by Ceph", paused, quick=1, full=3, keeps=True, patience_s=PATIENT_S),
)
