"""What a scenario is: a named way of breaking things, repeated in rounds under load, with what must hold beyond the checkers."""

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from cli.lab.lab import Lab
from cli.lab.load import PATIENCE_S

PATIENT_S = 30.0  # an initiator that does not give a session up before the scenario is over


def nothing_around(_lab: Lab) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Scenario:
    """`hurt` injects its faults (`lab.did`), lets time pass, and may mend: whatever is still broken is healed after it.

    `quick` and `full` are the rounds of either run; what is not quick at all is run once when it is named. `keeps` demands that
    no path changes its owner and no session is lost. `around` prepares the installation for all rounds of the scenario and puts
    it back.
    """

    name: str
    title: str
    hurt: Callable[[Lab, random.Random], None]
    quick: int
    full: int
    keeps: bool = False
    pace_s: float = 0.01
    patience_s: float = PATIENCE_S
    around: Callable[[Lab], contextlib.AbstractContextManager[None]] = nothing_around

    @property
    def fault(self) -> str:
        """The row of the fault table, such as F4."""
        return self.name.partition("-")[0]
