"""Planned moves under load, and what goes wrong in the middle of one."""

import contextlib
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx

from cli.lab.lab import CLOCK, NODES, Lab, LabFailed
from cli.lab.scenarios.base import PATIENT_S, Scenario
from conductor.balancer import BALANCER
from sanderling.settings import Conductor

MOVED_WITHIN_S = 60.0
TAKEN_OVER_WITHIN_S = 30.0
COOL_DOWN_S, EVEN_WITHIN_S = 5.0, 25.0
BUDGET_MOVES, BUDGET_WINDOW_S = 3, 10.0  # a return needs one or two: a spread that wanders needs more
GAP_MOST_S = Conductor().gap_alert_s
FAST_S = 0.002


def under_load(lab: Lab, dice: random.Random) -> None:
    began = CLOCK.monotonic()
    disk = moved(lab, dice)
    if (gap_s := lab.gap(began, CLOCK.monotonic())[disk]) > GAP_MOST_S:
        lab.found("G-3", f"nothing was answered for {gap_s:.2f} s while {disk} was moved")


def moved(lab: Lab, dice: random.Random) -> str:
    """Move a disk and see it served where it was to go; its name."""
    disk, source, destination = _pair(lab, dice)
    assignment = _move(lab, disk, destination)
    lab.did(f"disk {disk}: {source} to {destination}")
    ended = _ended(lab, assignment)
    after = lab.owners()
    for address in _addresses(lab, disk):
        if after[address] != destination:
            lab.found("PA", f"{address} is on {after[address]}, not {destination}; the assignment {ended['state']}: {ended}")
    return disk


def killed_in_the_middle(lab: Lab, dice: random.Random) -> None:
    """Source, destination, one of their processes or the conductor; the assignment may fail, and must end."""
    disk, source, destination = _pair(lab, dice)
    processes = lab.targets(source)
    assignment = _move(lab, disk, destination)
    lab.hold(dice.random() * 0.25)
    victim = dice.choice((source, destination, "conductor-1", "the source's target process", "the source node"))
    match victim:
        case "the source's target process":
            for pid, name in processes:
                if name.startswith(lab.disks[disk]["id"]):
                    lab.signal(pid, signal.SIGKILL)
        case "the source node":
            lab.network.cut(source)
            lab.cluster.freeze(source)
            lab.hold(10.0)
        case _:
            lab.cluster[victim].kill()
            lab.hold(dice.choice((0.0, 1.0, 8.0)))
    lab.did(f"disk {disk}: {source} to {destination}, and {victim} killed")
    lab.cluster.heal()
    _ended(lab, assignment)


def drained(lab: Lab, dice: random.Random) -> None:
    """A gateway emptied, its worker restarted, and filled again."""
    node = lab.busy_node(dice)
    operation = _accepted(lab.cluster.http.post(f"/v1/gateways/{node}/drain", json={"confirm": node}))
    lab.did(f"{node} drained")
    _ended(lab, operation)
    if left := sorted(address for address, owner in lab.owners().items() if owner == node):
        lab.found("PA", f"{node} was drained and still serves {', '.join(left)}")
    lab.cluster[node].restart()
    lab.cluster.wait_until_ready()
    _ended(lab, _accepted(lab.cluster.http.post(f"/v1/gateways/{node}/undrain")))
    answer = lab.cluster.http.post("/v1/assignments", json={"planner": "average"})
    if answer.status_code != httpx.codes.OK:  # which says that there is nothing to move
        _ended(lab, _accepted(answer))


@contextlib.contextmanager
def balancing_soon(lab: Lab) -> Iterator[None]:
    """The spread is evened out seconds after a gateway came or went, not half a minute."""
    configured = lab.cluster["conductor-1"].settings
    soon = replace(
        configured.conductor,
        balance="on",
        balance_cool_down_s=COOL_DOWN_S,
        balance_interval_s=1.0,
        balance_moves_max=BUDGET_MOVES,
        balance_window_s=BUDGET_WINDOW_S,
    )
    lab.restart({"conductor-1": replace(configured, conductor=soon)})
    yield
    lab.restart({"conductor-1": configured})


def returned(lab: Lab, dice: random.Random) -> None:
    """A gateway dies, comes back, and is given its share again without anybody asking."""
    node = lab.busy_node(dice)
    foreseen = _foreseen(lab, node)
    lab.cluster[node].kill()
    for pid, _ in lab.targets(node):
        lab.signal(pid, signal.SIGKILL)
    lab.did(f"SIGKILL {node} and every target process on it")

    def taken_over() -> bool:
        spread = _spread(lab)
        return not spread[node] and not spread["nobody"]

    lab.until(taken_over, within_s=TAKEN_OVER_WITHIN_S, what=f"all of {node} is taken over")
    if (heirs := {address: owner for address, owner in lab.owners().items() if address in foreseen}) != foreseen:
        lab.found("G-15", f"{heirs} have it, and {foreseen} were foreseen")
    began = CLOCK.monotonic()
    lab.cluster[node].start()
    try:
        lab.until(lambda: _is_even(lab), within_s=COOL_DOWN_S + EVEN_WITHIN_S, what="the spread is even again")
        lab.measured[f"even again, a cool-down of {COOL_DOWN_S:g} s included,"] = CLOCK.monotonic() - began
    except LabFailed as late:
        lab.found("G-2", f"{late.detail}: {dict(_spread(lab))}")
    shown = lab.cluster.http.get("/v1/assignments", params={"limit": 1000}).json()["assignments"]
    if over := over_budget(shown, lab.cluster["conductor-1"].settings.conductor):
        lab.found("G-2", over)


def _foreseen(lab: Lab, node: str) -> dict[str, str]:
    """Who is to have each address of this gateway when it is lost, as the API says beforehand."""
    said = lab.cluster.http.get("/v1/whatif", params={"lose": node}).json()
    return {address: move["to"] for move in said["moves"]["first"] for address in move["paths"]}


def over_budget(assignments: Sequence[Mapping[str, Any]], own: Conductor) -> str | None:
    """In words, when balancing asked for more moves within some span of `balance_window_s` than it may."""
    asked = [
        (datetime.fromisoformat(each["created_at"]), sum(each["counts"].values()))
        for each in assignments
        if each["requested_by"] == BALANCER
    ]
    window = timedelta(seconds=own.balance_window_s)
    most = max((sum(moves for at, moves in asked if begin <= at < begin + window) for begin, _ in asked), default=0)
    if most <= own.balance_moves_max:
        return None
    return f"balancing asked for {most} moves within {own.balance_window_s} s and may for {own.balance_moves_max}"


def _spread(lab: Lab) -> Counter[str]:
    """How many exports each node serves."""
    owners, spread = lab.owners(), Counter(dict.fromkeys(NODES, 0))
    for disk in lab.disks.values():
        addresses = [path["address"] for path in disk["paths"]]
        for address in addresses[:1] if disk["access"] == "exclusive" else addresses:
            spread[owners[address] or "nobody"] += 1
    return spread


def _is_even(lab: Lab) -> bool:
    """No gateway has two exports more than another, and none has two of a shared disk."""
    spread, owners = _spread(lab), lab.owners()
    shared = [[owners[path["address"]] for path in disk["paths"]] for disk in lab.disks.values() if disk["access"] == "shared"]
    is_apart = all(len(set(each)) == len(each) for each in shared)
    return is_apart and not spread["nobody"] and max(spread[node] for node in NODES) - min(spread[node] for node in NODES) <= 1


def _pair(lab: Lab, dice: random.Random) -> tuple[str, str, str]:
    """An exclusive disk, the gateway that serves it, and another."""
    disk = dice.choice(sorted(name for name, each in lab.disks.items() if each["access"] == "exclusive"))
    source = lab.owners()[_addresses(lab, disk)[0]]
    if source is None:
        raise LabFailed(f"disk {disk} is not served")
    return disk, source, dice.choice([node for node in NODES if node != source])


def _addresses(lab: Lab, disk: str) -> list[str]:
    return [path["address"] for path in lab.disks[disk]["paths"]]


def _move(lab: Lab, disk: str, destination: str) -> str:
    wanted = {"planner": "manual", "paths": _addresses(lab, disk), "gateway": destination}
    return _accepted(lab.cluster.http.post("/v1/assignments", json=wanted))


def _accepted(answer: httpx.Response) -> str:
    if answer.status_code != httpx.codes.ACCEPTED:
        raise LabFailed(f"{answer.request.url} answered {answer.status_code}: {answer.text[:500]}")
    return answer.headers["Location"].rpartition("/")[2]


def _ended(lab: Lab, operation: str) -> dict[str, Any]:
    """The operation as it ended; C3 when it does not."""
    seen: dict[str, Any] = {}

    def ended() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = lab.cluster.http.get(f"/v1/operations/{operation}")
            seen.update(answer.json() if answer.status_code == httpx.codes.OK else {})
        return bool(seen.get("ended_at"))

    try:
        lab.until(ended, within_s=MOVED_WITHIN_S, what=f"operation {operation} ends")
    except LabFailed as late:
        lab.found("C3", f"{late.detail}: {seen}")
    return seen


SCENARIOS = (
    Scenario("move-load", "planned move", under_load, quick=3, full=30, pace_s=FAST_S, patience_s=PATIENT_S),
    Scenario("move-killed", "kill in the middle of a move", killed_in_the_middle, quick=1, full=12),
    Scenario("move-drain", "gateway drained, restarted, filled again", drained, quick=1, full=5, patience_s=PATIENT_S),
    Scenario("move-return", "gateway killed and back, spread evened out", returned, quick=1, full=50, around=balancing_soon),
)
