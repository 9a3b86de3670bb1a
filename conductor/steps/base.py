"""What a step of an operation is: work that may be done again from its start at any time, and the way back.

A step may be running twice, when one attempt was abandoned or its conductor was paused. So every effect is announced, checks
that the attempt still counts, and is itself a compare-and-set or harmless when repeated.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rpc.bus import Bus
from rpc.signing import Signing
from sanderling import tracing
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.coordination.changes import Journal
from sanderling.errors import StepTimedOut
from sanderling.images.base import Images
from sanderling.model.disks import Disk
from sanderling.model.operations import OPERATIONS, Cause, Operation, OperationEvent, Step
from sanderling.records import disks, operations
from sanderling.records.database import Records
from sanderling.settings import Conductor


class Halted(Exception):
    """The attempt no longer counts: it was abandoned or the conductor is stopping. Nobody needs to be told."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where facts live; shared by all operations of a process."""

    records: Records
    coordination: Coordination
    images: Images
    bus: Bus
    clock: Clock
    journal: Journal
    signing: Signing

    @contextlib.contextmanager
    def telling_workers(self, keys: Collection[str] = ()) -> Iterator[None]:
        """Around a change of these keys of coordination: workers look at them then, and at what they could not be told before.

        They are noted before it as well: of a change that was made although it failed, workers hear with the next one.
        """
        self.journal.note(keys)
        yield
        self.journal.note(keys)
        self.journal.write(self.coordination.put)


@dataclass(frozen=True, slots=True)
class Context:
    """One attempt at one step. `deadline` is on the monotonic clock; `halted` is set when the attempt no longer counts.

    `tell` says that there are new events, for a step that writes some before it ends.
    """

    stores: Stores
    own: Conductor
    operation: Operation
    step: Step
    deadline: float
    halted: threading.Event
    reach: Callable[[str], None]
    tell: Callable[[], None]

    @property
    def disk_id(self) -> str:
        return self.operation.resource_id

    @property
    def cause(self) -> Cause:
        """What workers are told of why they do something."""
        return Cause(operation_id=self.operation.id, traceparent=tracing.current() or "")

    def indexed(self) -> Disk:
        """The disk as the records know it; `NotFound` when they do not."""
        with self.stores.records.read() as session:
            return disks.describe(disks.get(session, self.disk_id))

    @contextlib.contextmanager
    def effect(self, name: str) -> Iterator[None]:
        """Around each lasting effect: only while this attempt counts, under its claim, and before the operation turns round."""
        self.check()
        with self.stores.records.read() as session:
            operation = self.operation
            operations.check_claim(session, operation.id, claim_epoch=operation.claim_epoch, state=operation.state)
        undoing = "undo_" if OPERATIONS.allows(self.operation.state, OperationEvent.UNDONE) else ""
        point = f"{self.operation.kind}.{self.step.name}.{undoing}{name}"
        self.reach(f"{point}:before")
        yield
        self.reach(f"{point}:after")

    def note(self, values: Mapping[str, Any]) -> None:
        """Store with the operation what a later attempt must find."""
        with self.stores.records.begin() as session:
            operations.note(session, self.operation.id, claim_epoch=self.operation.claim_epoch, values=values)

    @property
    def left_s(self) -> float:
        return self.deadline - self.stores.clock.monotonic()

    def check(self, waiting_for: str = "it to end") -> None:
        """Return while there is time and the attempt counts."""
        if self.halted.is_set():
            raise Halted
        if self.left_s <= 0:
            raise StepTimedOut(f"{self.step.name}: waited {self.step.deadline_s:g} s for {waiting_for}", step=self.step.name)

    def pause(self, seconds: float) -> None:
        """Wait before looking again, no longer than there is time."""
        self.stores.clock.wait(self.halted, max(0.0, min(seconds, self.left_s)))


def nothing(_: Context) -> None:
    """The undoing of a step that leaves nothing behind, or that can only be left as it is."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a step does and how it is undone. `effects` are those that each first attempt passes, in order."""

    do: Callable[[Context], None]
    undo: Callable[[Context], None] = nothing
    effects: tuple[str, ...] = ()
    undo_effects: tuple[str, ...] = ()
