"""F6, F13: a clock that jumps, an address that a stranger claims or that nobody hears announced."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

from cli.lab.lab import CLOCK, NODES, Lab, LabFailed, inside
from cli.lab.processes import Process
from cli.lab.scenarios.base import PATIENT_S, Scenario
from cli.lab.scenarios.partitions import dropping, taken_over_s
from iscsi_worker.addresses.netlink import Netlink

HOUR_S = 3600
CLAIM, NOTICED_WITHIN_S = "address claimed by another machine", 2.0
FAKETIME = "libfaketimeMT.so.1"
JUMPING = ("api", "conductor-1", *NODES)


@contextlib.contextmanager
def jumping(lab: Lab) -> Iterator[None]:
    """Every process of ours reads the wall clock through libfaketime; the monotonic one stays the kernel's."""
    library = next(Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"), None)
    if library is None:
        raise LabFailed(f"{FAKETIME} is not installed; run scripts/install-system real")
    _set_clock(lab, 0)
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(lab.folder / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    configured = {name: lab.cluster[name].settings for name in JUMPING}
    lab.restart(configured, env=env)
    yield
    lab.restart(configured)


def _set_clock(lab: Lab, offset_s: int) -> None:
    (lab.folder / "clock.new").write_text(f"{offset_s:+d}\n")
    (lab.folder / "clock.new").replace(lab.folder / "clock")


def clock(lab: Lab, dice: random.Random) -> None:
    offset_s = dice.choice((HOUR_S, -HOUR_S))
    lab.ask()
    _set_clock(lab, offset_s)
    lab.did(f"wall clock {offset_s:+d} s")
    lab.hold(lab.span(4.0, 8.0))
    lab.ask()
    lab.hold(3.0)
    _set_clock(lab, 0)
    lab.hold(3.0)


def claimed(lab: Lab, dice: random.Random) -> None:
    """A stranger answers for a path's address, and says so to everybody; whoever serves it must notice."""
    address = dice.choice(lab.connected())
    owner = lab.owners()[address]
    if owner is None:
        raise LabFailed(f"{address} is not served")
    worker = lab.cluster[owner]
    before = claims_seen(worker, address)
    with lab.network.stranger(address) as namespace:
        with inside(namespace):
            for _ in range(3):
                Netlink().announce(address, interface="eth0")
        lab.did(f"a stranger claims {address}")
        must_notice(lab, worker, address, before=before)
        lab.hold(lab.span(4.0, 8.0))


def claims_seen(worker: Process, address: str) -> int:
    """How often the worker has said that another machine claims the address."""
    return sum(entry.get("address") == address for entry in worker.log(event=CLAIM))


def must_notice(lab: Lab, worker: Process, address: str, *, before: int, within_s: float = NOTICED_WITHIN_S) -> None:
    """From now on, once more than the `before` times it had said so."""
    began = CLOCK.monotonic()
    try:
        lab.until(lambda: claims_seen(worker, address) > before, within_s=within_s, what=f"{worker.name} notices the claim")
        lab.measured["a claim was noticed"] = CLOCK.monotonic() - began
    except LabFailed as unnoticed:
        lab.found("F13", f"{address}: {unnoticed.detail}")


def unannounced(lab: Lab, dice: random.Random) -> None:
    """The new owner's announcements do not reach the initiator."""
    node = lab.busy_node(dice)
    first, last = lab.network.front_pool
    with dropping(lab.network.initiator, [f"arp daddr ip {first}-{last}"], family="arp", hooks=("input",)):
        lab.network.cut(node)
        lab.did(f"{node}: both cables pulled, and no announcement reaches the initiator")
        lab.hold(taken_over_s(lab))


SCENARIOS = (
    Scenario("F6-clock", "wall clock an hour off", clock, quick=1, full=4, keeps=True, patience_s=PATIENT_S, around=jumping),
    Scenario("F13-claimed", "a stranger claims a path's address", claimed, quick=1, full=4),
    Scenario("F13-unheard", "announcements lost when a node is taken over", unannounced, quick=1, full=3),
)
