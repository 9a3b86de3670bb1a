"""What a benchmark reports: repeated measurements, and goals with what was reached."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least this many percent of them do not exceed: always one that was measured."""
    assert values, "nothing was measured"
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def extrapolated(measured_s: Sequence[float], times: int, *, fixed_s: float = 0.0) -> float:
    """What so many repetitions one after another would take, from the mean of those that were measured."""
    assert measured_s, "nothing was measured"
    return fixed_s + times * math.fsum(measured_s) / len(measured_s)


def interleaved(counts: Mapping[str, int]) -> list[str]:
    """Each name as often as is asked, the rare ones spread evenly among the others."""
    places = ((place + 0.5) / count for count in counts.values() for place in range(count))
    names = (name for name, count in counts.items() for _ in range(count))
    return [name for _, _, name in sorted(zip(places, range(sum(counts.values())), names, strict=True))]


@dataclass(slots=True)
class Samples:
    """One thing measured again and again: seconds by the clock, and of the processor, which a busy machine stretches less.

    There are none of the processor where what was measured is not computed here.
    """

    name: str
    size: int
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], T]) -> T:
        """What the call answers; how long it took is added."""
        wall, cpu = time.perf_counter(), time.process_time()
        answer = call()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)
        return answer

    @property
    def median_s(self) -> float:
        return median(self.wall_s)

    @property
    def p99_s(self) -> float:
        return percentile(self.wall_s, 99)


@dataclass(frozen=True, slots=True)
class Goal:
    """A number reached, beside the bound it is meant to keep."""

    name: str
    reached: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        below = self.at_most is None or self.reached <= self.at_most
        return below and (self.at_least is None or self.reached >= self.at_least)

    @property
    def bound(self) -> str:
        return f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"


@dataclass(slots=True)
class Report:
    """`surroundings` says what the numbers depend on: sizes, seeds, the baseline's settings."""

    figure: str
    surroundings: dict[str, Any]
    samples: list[Samples] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        goals = [asdict(goal) | {"met": goal.met} for goal in self.goals]
        samples = [asdict(sample) | {"median_s": sample.median_s, "p99_s": sample.p99_s} for sample in self.samples]
        return {"figure": self.figure, "surroundings": self.surroundings, "samples": samples, "goals": goals}

    def show(self, console: Console) -> None:
        console.print(f"\n{self.figure}", style="bold")
        console.print(", ".join(f"{name} {value}" for name, value in self.surroundings.items()))
        times = Table("what", "n", "repeats", "min s", "median s", "p99 s", "max s", "cpu median s")
        for sample in self.samples:
            spread = (min(sample.wall_s), sample.median_s, sample.p99_s, max(sample.wall_s))
            cpu = f"{median(sample.cpu_s):.4f}" if sample.cpu_s else "-"
            times.add_row(
                sample.name, f"{sample.size:,}", str(len(sample.wall_s)), *(f"{seconds:.4f}" for seconds in spread), cpu
            )
        console.print(times)
        goals = Table("goal", "reached", "bound", "")
        for goal in self.goals:
            goals.add_row(goal.name, f"{goal.reached:,.4g}", goal.bound, "met" if goal.met else "missed")
        console.print(goals)
