"""Points at which a test makes this process kill itself, before and after everything durable that an operation does.

Unarmed, which is how production runs, a point is one comparison.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from conductor.steps.catalogue import ACTIONS
from sanderling.model import plans
from sanderling.model.operations import OperationKind
from sanderling.settings import Conductor

VARIABLE: Final = "SANDERLING_FAILPOINT"


def _kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL does not return")


@dataclass(frozen=True, slots=True)
class Failpoints:
    """At most one point is armed; reaching it strikes. The harness starts the process again without it."""

    armed: str = ""
    strike: Callable[[], None] = _kill

    @classmethod
    def from_environment(cls) -> "Failpoints":
        return cls(os.environ.get(VARIABLE, ""))

    def reach(self, name: str) -> None:
        if self.armed and self.armed == name:
            self.strike()


def forward(kind: OperationKind) -> list[str]:
    """Every point that an operation of this kind passes on its way to success, in order; a create here also starts."""
    return [f"{name}:{side}" for name in _forward(kind) for side in ("before", "after")]


def backward(kind: OperationKind) -> list[str]:
    """Every point between a failure after the last step that can be undone and the end of the undoing."""
    return [f"{name}:{side}" for name in _backward(kind) for side in ("before", "after")]


def listing() -> list[str]:
    return [name for kind in OperationKind for name in forward(kind)]


def _forward(kind: OperationKind) -> Iterator[str]:
    yield f"{kind}.claim"
    for step in plans.steps_of(kind, Conductor()):
        yield f"{kind}.{step.name}.begin"
        yield from (f"{kind}.{step.name}.{effect}" for effect in ACTIONS[step.name].effects)
        yield f"{kind}.{step.name}.finish"
    yield f"{kind}.end"


def _backward(kind: OperationKind) -> Iterator[str]:
    yield f"{kind}.turn"
    for step in reversed(plans.steps_of(kind, Conductor())):
        if step.name not in plans.NO_RETURN:
            yield from (f"{kind}.{step.name}.undo_{effect}" for effect in ACTIONS[step.name].undo_effects)
            yield f"{kind}.{step.name}.undone"
    yield f"{kind}.end"
