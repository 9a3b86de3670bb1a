"""What a benchmark reports: repeated measurements, and goals with what was reached."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")


@dataclass(slots=True)
class Samples:
    """One thing measured again and again: seconds by the clock, and of the processor, which a busy machine stretches less."""

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
        samples = [asdict(sample) | {"median_s": sample.median_s} for sample in self.samples]
        return {"figure": self.figure, "surroundings": self.surroundings, "samples": samples, "goals": goals}

    def show(self, console: Console) -> None:
        console.print(f"\n{self.figure}", style="bold")
        console.print(", ".join(f"{name} {value}" for name, value in self.surroundings.items()))
        times = Table("what", "n", "repeats", "min s", "median s", "max s", "cpu median s")
        for sample in self.samples:
            spread = (min(sample.wall_s), sample.median_s, max(sample.wall_s), median(sample.cpu_s))
            times.add_row(sample.name, f"{sample.size:,}", str(len(sample.wall_s)), *(f"{seconds:.4f}" for seconds in spread))
        console.print(times)
        goals = Table("goal", "reached", "bound", "")
        for goal in self.goals:
            goals.add_row(goal.name, f"{goal.reached:,.4g}", goal.bound, "met" if goal.met else "missed")
        console.print(goals)
