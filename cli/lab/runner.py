"""Runs scenarios one after another on one laboratory, each in rounds, each result written as soon as it is there."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cli.lab import observation
from cli.lab.announcements import Late, gates, late
from cli.lab.intervals import intervals, most_at_once, overlaps
from cli.lab.lab import CLOCK, NODES, Finding, Lab
from cli.lab.registers import violations
from cli.lab.results import Parameters, Result, Round, is_done, stored, write
from cli.lab.scenarios.base import Scenario
from sanderling.settings import Worker

QUICK_S: Final = 14 * 60.0
FULL_S: Final = 86 * 60.0
ROUND_S: Final = 15.0  # of a quick scenario with one round, more or less
STEADY_S: Final = 0.5
KERNEL_S: Final = 1.0  # the kernel drops an address up to so long after its lifetime
LAST_OF_THE_OLD: Final = "the last word of an address's old owner came"
AGE_S: Final = (2.0, 5.0)  # quick, full: sessions of any age: an owner publishes a new one after seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `rounds` overrides every scenario's own number."""

    scenarios: Sequence[Scenario]
    seed: int
    full: bool
    rounds: int | None = None

    def parameters(self, scenario: Scenario) -> Parameters:
        own = scenario.full if self.full else max(1, scenario.quick)
        return Parameters(self.seed, self.rounds or own, self.full)


def run(plan: Plan, out: Path, say: Callable[[str], None]) -> dict[str, Result]:
    """The result of every scenario of the plan that there is time for, those of an earlier run included.

    A scenario begins no more rounds once only so much time is left that each of the later ones can have one; it always has one.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = stored(out)
    left = waiting(plan, found)
    done = {each.name: found[each.name] for each in plan.scenarios if each not in left}
    for name in done:
        say(f"{name}: already done")
    deadline = CLOCK.monotonic() + (FULL_S if plan.full else QUICK_S)
    with contextlib.ExitStack() as stack:
        lab: Lab | None = None
        for number, scenario in enumerate(left):
            began = CLOCK.monotonic()
            if began >= deadline:
                break
            if lab is None:
                lab = stack.enter_context(Lab(out / "work", full=plan.full))
            until = deadline - ROUND_S * (len(left) - number - 1)
            result = begun(plan, scenario, found)
            _scenario(lab, scenario, result, out, until=until)
            result.took_s += CLOCK.monotonic() - began
            done[scenario.name] = result
            write(result, out)
            say(_line(result))
            if result.findings or result.broken:
                stack.close()  # what is left of it proves nothing about the next scenario
                lab = None
    return {each.name: done[each.name] for each in plan.scenarios if each.name in done}


def waiting(plan: Plan, found: Mapping[str, Result]) -> list[Scenario]:
    """Those that have no finished result with these parameters yet."""
    return [each for each in plan.scenarios if not is_done(found.get(each.name), plan.parameters(each))]


def begun(plan: Plan, scenario: Scenario, found: Mapping[str, Result]) -> Result:
    """What the next rounds are added to: the result that lacked time for all of them, or a new one."""
    before, parameters = found.get(scenario.name), plan.parameters(scenario)
    if before is not None and before.cut_short and not before.broken and before.parameters == parameters:
        return replace(before, cut_short=False)
    return Result(scenario.name, scenario.fault, scenario.title, parameters)


def _scenario(lab: Lab, scenario: Scenario, result: Result, out: Path, *, until: float) -> None:
    """Add rounds to the result, until all are there or the time is over."""
    parameters = result.parameters
    folder = lab.folder / f"scenario-{scenario.name}"
    try:
        with scenario.around(lab):
            lab.begin(folder, pace_s=scenario.pace_s, patience_s=scenario.patience_s)
            for number in range(len(result.rounds) + 1, parameters.rounds + 1):
                dice = random.Random(f"{parameters.seed}:{scenario.name}:{number}")
                _round(lab, scenario, Round(number), dice, result)
                if result.findings:
                    break
                if CLOCK.monotonic() >= until and number < parameters.rounds:
                    result.cut_short = True
                    break
            _check_all(lab, result)
            _end(lab, result)
            _keep_evidence(lab, result, folder, out)
    except Exception as failed:  # noqa: BLE001  a scenario that cannot go on must not end the run
        if not result.findings:
            result.broken = f"{type(failed).__name__}: {str(failed)[:1500]}"
        with contextlib.suppress(OSError):
            _keep_evidence(lab, result, folder, out)


def _round(lab: Lab, scenario: Scenario, this: Round, dice: random.Random, result: Result) -> None:
    """One round; what it gave is in the result also when a checker ended it."""
    result.rounds.append(this)
    lab.injected, lab.measured, lab.findings = this.injected, this.measured_s, []
    lab.hold(STEADY_S + dice.random() * lab.span(*AGE_S))
    began, owners = CLOCK.monotonic(), lab.owners()
    lab.follow()
    sessions = {name: load.sessions for name, load in lab.loads.items()}
    scenario.hurt(lab, dice)
    try:
        this.healed_after_s = lab.serve_again()
    except AssertionError as late:
        lab.found("C5", str(late)[:1500])
    try:
        lab.finish()
    except AssertionError as unfinished:
        lab.found("C3", str(unfinished)[:1500])
    this.took_s = CLOCK.monotonic() - began
    this.gaps_s = lab.gap(began, CLOCK.monotonic())
    check_announcements(lab, _late(lab, began), this, lab.cluster.settings().iscsi_worker)
    check_answers(lab, result)
    if scenario.keeps and not lab.findings:
        _check_kept(lab, owners, sessions)
    if not lab.findings:
        _check_settled(lab, result, watchers=False)
    result.findings += [replace(each, round=this.number) for each in lab.findings]


def check_answers(lab: Lab, result: Result) -> None:
    """H11: no fault excuses an error that reaches an application; whoever cannot answer is to be silent or to let go."""
    new = [each for load in lab.loads.values() for each in load.errors if each not in result.errors]
    result.errors += new
    for each in new[:20]:
        lab.found("H11", f"a command was answered with an error: disk {each}")


def check_announcements(lab: Lab, found: Sequence[Late], this: Round, own: Worker) -> None:
    """F13: once a move or a take-over is over, nobody but the owner calls an address its own.

    Whoever closed its gate renews the address no more, and has it for its lifetime at most, also if it dies then. Who knows
    nothing of it goes on until its lease is over.
    """
    if found:
        this.measured_s[LAST_OF_THE_OLD] = max(each.after_s for each in found)
    for each in found:
        if each.after_s > KERNEL_S + own.address_lifetime_s + (0.0 if each.in_order else own.lease_s):
            lab.found("F13", str(each))


def _late(lab: Lab, since: float) -> list[Late]:
    logs, disks = {node: lab.cluster.log(node) for node in NODES}, list(lab.disks.values())
    opened, closed = (gates(logs, disks, event=event) for event in ("gate opened", "gate closed"))
    nodes = {lab.network.mac(lab.network.netns(node), "eth1"): node for node in NODES}
    return late([each for each in lab.listener.heard if each.at >= since], opened, nodes, closed=closed)


def _check_kept(lab: Lab, owners: Mapping[str, str | None], sessions: Mapping[str, int]) -> None:
    now = lab.owners()
    for address, owner in owners.items():
        if now[address] != owner:
            lab.found("P12", f"{address} was served by {owner} and is served by {now[address]}")
    for name, load in lab.loads.items():
        if load.sessions != sessions[name]:
            lab.found("P12", f"{load.sessions - sessions[name]} sessions of disk {name} were lost")


def _check_settled(lab: Lab, result: Result, *, watchers: bool) -> None:
    left, orphans = observation.settled(lab, watchers=watchers)
    result.left_open += len(left)
    result.orphans += len(orphans)
    for each in (*left, *orphans):
        lab.found("C4", each)


def _check_all(lab: Lab, result: Result) -> None:
    """C1 and C2 on everything, C4 with the images' watchers; the loads are stopped."""
    lab.findings = []
    lab.stop_loads()
    check_answers(lab, result)
    for name, load in lab.loads.items():
        history = load.everything()
        history.reads += load.direct(observation.read_directly(lab, name))
        result.writes += len(load.history.writes)
        result.reads += len(load.history.reads)
        result.sessions += load.sessions
        wrong = violations(history)
        result.stale_or_lost += len(wrong)
        for each in wrong[:20]:
            lab.found("C1", f"disk {name}: {each}")
    ids = tuple(disk["id"] for disk in lab.disks.values())
    found = intervals({node: lab.cluster.log(node) for node in NODES})
    ours = {export: each for export, each in found.items() if export.startswith(ids)}
    most = most_at_once(ours)
    result.gates_at_once = max(result.gates_at_once, most)
    for each in overlaps(ours):
        lab.found("C2", each)
    if not most:
        lab.found("C2", "no gate was ever opened: the check proves nothing")
    if not result.findings:
        _check_settled(lab, result, watchers=True)
    result.findings += [replace(each, round=len(result.rounds)) for each in lab.findings]


def _end(lab: Lab, result: Result) -> None:
    """A disk that cannot be deleted any more is a finding like any other."""
    try:
        lab.end()
    except AssertionError as undeleted:
        result.findings.append(Finding("C3", str(undeleted)[:1500], len(result.rounds)))


def _keep_evidence(lab: Lab, result: Result, folder: Path, out: Path) -> None:
    """Of a scenario that found something: the schedule, every log, every journal."""
    if not result.findings and not result.broken:
        return
    kept = out / "evidence" / result.scenario
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    schedule = {
        "scenario": result.scenario,
        "parameters": asdict(result.parameters),
        "rounds": [asdict(each) for each in result.rounds],
    }
    (kept / "schedule.json").write_text(json.dumps(schedule | {"findings": [asdict(each) for each in result.findings]}, indent=1))
    for log in (*lab.folder.glob("*.log"), *folder.glob("*")):
        shutil.copy(log, kept)


def _line(result: Result) -> str:
    gap = max(result.gaps_s, default=0.0)
    verdict = f"FAILED: {result.faulty[0]}" if result.faulty else "passed"
    return (
        f"{result.scenario}: {len(result.rounds)} rounds, {result.faults_injected} faults, {result.writes} writes, "
        f"longest gap {gap:.2f} s, {result.took_s:.0f} s: {verdict}"
    )
