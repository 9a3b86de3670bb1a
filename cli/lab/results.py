"""What a scenario's rounds gave: one JSON file each, complete in itself, so that a run can be interrupted and added up later."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.lab.lab import Finding, Injected
from cli.lab.scenarios import ALL

PLAN, REPORT = "plan.json", "report.json"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a result depends on; a finished scenario with the same parameters is not run again."""

    seed: int
    rounds: int
    full: bool


@dataclass(slots=True)
class Round:
    number: int
    injected: list[Injected] = field(default_factory=list)
    gaps_s: dict[str, float] = field(default_factory=dict)
    measured_s: dict[str, float] = field(default_factory=dict)
    healed_after_s: float = 0.0
    took_s: float = 0.0

    @property
    def gap_s(self) -> float:
        """The longest of any disk."""
        return max(self.gaps_s.values(), default=0.0)


@dataclass(slots=True)
class Result:
    """`broken` says why the laboratory could not finish the scenario: then it counts for nothing and is run again."""

    scenario: str
    fault: str
    title: str
    parameters: Parameters
    rounds: list[Round] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    sessions: int = 0
    errors: list[str] = field(default_factory=list)
    stale_or_lost: int = 0
    gates_at_once: int = 0
    left_open: int = 0
    orphans: int = 0
    findings: list[Finding] = field(default_factory=list)
    took_s: float = 0.0
    cut_short: bool = False
    broken: str = ""

    @property
    def faults_injected(self) -> int:
        return sum(len(each.injected) for each in self.rounds)

    @property
    def gaps_s(self) -> list[float]:
        return [each.gap_s for each in self.rounds]

    @property
    def faulty(self) -> list[str]:
        """Why this result is no success, in words; a run that proved nothing is none either."""
        said = [f"{each.checker}, round {each.round}: {each.what}" for each in self.findings]
        said += [f"not finished: {self.broken}"] if self.broken else []
        if self.cut_short and self.parameters.full:
            said.append(f"{len(self.rounds)} of {self.parameters.rounds} rounds; run again, it goes on")
        idle = ", ".join(str(each.number) for each in self.rounds if not each.injected)
        if idle or not self.rounds:
            said.append(f"no fault was injected in round {idle}" if idle else "no fault was injected")
        if not self.writes or not self.reads:
            said.append("no I/O: the checks prove nothing")
        return said


def write(result: Result, folder: Path) -> Path:
    """In one step: a reader finds all of it or none."""
    file = folder / f"{result.scenario}.json"
    half = file.with_suffix(".new")
    half.write_text(json.dumps(asdict(result), indent=1))
    half.replace(file)
    return file


def read(file: Path) -> Result:
    told = json.loads(file.read_text())
    rounds = [Round(**(each | {"injected": [Injected(**one) for one in each["injected"]]})) for each in told["rounds"]]
    findings = [Finding(**each) for each in told["findings"]]
    return Result(**(told | {"parameters": Parameters(**told["parameters"]), "rounds": rounds, "findings": findings}))


def stored(folder: Path) -> dict[str, Result]:
    """Every result in the folder, by the scenario's name, in the order of the catalogue."""
    files = {each.name: folder / f"{each.name}.json" for each in ALL}
    return {name: read(file) for name, file in files.items() if file.exists()}


def wanted(folder: Path) -> dict[str, Parameters]:
    """What the runs into this folder were to give, by the scenario's name; nothing when it holds no plan."""
    try:
        told = json.loads((folder / PLAN).read_text())
        return {name: Parameters(**each) for name, each in told.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def want(folder: Path, new: Mapping[str, Parameters]) -> dict[str, Parameters]:
    """Add to what is wanted; dice of another seed and another kind of run take the place of all that was wanted before."""
    kinds = {(each.seed, each.full) for each in new.values()}
    before = {name: each for name, each in wanted(folder).items() if (each.seed, each.full) in kinds}
    both = before | dict(new)
    (folder / PLAN).write_text(json.dumps({name: asdict(each) for name, each in both.items()}, indent=1))
    return both


def of_the_plan(found: Mapping[str, Result], plan: Mapping[str, Parameters]) -> dict[str, Result]:
    """Those that were run as the plan wants: no other seed, rounds or kind of run stands in."""
    return {name: result for name, result in found.items() if plan.get(name) == result.parameters}


def is_done(found: Result | None, parameters: Parameters) -> bool:
    return found is not None and not found.broken and not found.cut_short and found.parameters == parameters
