"""One operation, claimed and driven to its end: each step in turn, and back again when one fails or a cancel asks for it.

The records say where it stands, so whoever claims it next goes on from there. A step runs in a thread of its own, so that the
claim is renewed meanwhile and one that blocks can be left behind.
"""

import contextvars
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy.orm import Session

from conductor import metrics
from conductor.failpoints import Failpoints
from conductor.steps.base import Context, Halted, Stores
from conductor.steps.catalogue import ACTIONS
from conductor.steps.descriptions import revision_undone
from sanderling import settings, tracing
from sanderling.errors import ClaimLost, Fenced, Problem, StepTimedOut, Unavailable
from sanderling.measuring import timed
from sanderling.model import plans
from sanderling.model.disks import DISKS, DiskEvent, DiskState
from sanderling.model.operations import OPERATIONS, STEPS, Operation, OperationEvent, OperationKind, Step, StepEvent, StepState
from sanderling.records import disks, operations, turns

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Drive:
    """One claim of one operation. `run` is called once; `halt` may be called from another thread at any time.

    `tell` is called after each commit: there is a new event.
    """

    def __init__(
        self, conductor: str, own: settings.Conductor, stores: Stores, *, tell: Callable[[], None], failpoints: Failpoints
    ) -> None:
        self._conductor, self._own, self._stores, self._tell = conductor, own, stores, tell
        self._failpoints = failpoints
        self._halted = threading.Event()
        self._wake = threading.Event()  # an attempt has ended, or we are to let go

    def halt(self) -> None:
        """Let go soon: the operation is given back where it stands."""
        self._halted.set()
        self._wake.set()

    def run(self, operation_id: str) -> bool:
        """Drive the operation to its end; False when somebody else has it, or it was let go before, or cannot go on now."""
        operation = self._claimed(operation_id)
        if operation is None:
            return False
        if operation.ended:
            _count(operation)
            log.info("refused when its turn came", kind=operation.kind, problem=operation.problem)
            return True
        with tracing.span(operation.kind, parent=operation.traceparent, operation_id=operation_id, begins=True) as span:
            log.info("driving", kind=operation.kind, state=operation.state, claim_epoch=operation.claim_epoch)
            try:
                ended = self._driven(operation)
            except Halted:
                with self._stores.records.begin() as session:
                    operations.release(session, operation_id, claim_epoch=operation.claim_epoch)
                return False
            except ClaimLost as problem:
                log.warning("stopped driving", reason=problem.detail)
                return False
            except Problem as problem:
                span.fail(problem)
                log.warning("cannot go on; a sweep will", code=problem.code, reason=problem.detail)
                return False
            _count(ended)
            span.say(state=ended.state)
            if ended.problem is not None:
                span.fail(Problem.from_wire(ended.problem))
            log.info("operation ended", state=ended.state, problem=ended.problem)
            return True

    def _claimed(self, operation_id: str) -> Operation | None:
        with self._stores.records.begin() as session:
            kind, state = operations.glance(session, operation_id)
            point = f"{kind}.claim"
            self._failpoints.reach(f"{point}:before")
            refused = None
            if OPERATIONS.allows(state, OperationEvent.BEGIN):
                refused = turns.begin(session, operation_id, own=self._own, now=self._now(), actor=self._conductor)
            claimed = refused or operations.claim(
                session, operation_id, conductor=self._conductor, now=self._now(), ttl_s=self._own.claim_ttl_s
            )
        metrics.CLAIMS.labels("claimed" if claimed is not None else "not_free").inc()
        if claimed is not None:
            self._failpoints.reach(f"{point}:after")
            self._tell()
            if claimed.claim_epoch == 1:
                metrics.QUEUED_SECONDS.observe((self._now() - claimed.created_at).total_seconds())
        return claimed

    def _driven(self, operation: Operation) -> Operation:
        if OPERATIONS.allows(operation.state, OperationEvent.UNDO):
            operation = self._forward(operation)
        if OPERATIONS.allows(operation.state, OperationEvent.UNDONE):
            operation = self._backward(operation)
        return operation

    def _forward(self, operation: Operation) -> Operation:
        """Every step that is not done yet; comes back ended, or turned round."""
        for position, step in enumerate(operation.steps):
            if step.state is StepState.DONE:
                continue
            operation = self._tried(operation, position)
            if not OPERATIONS.allows(operation.state, OperationEvent.SUCCEED):
                return operation
        return self._write(operation, "end", self._finished)

    def _tried(self, operation: Operation, position: int) -> Operation:
        """One step with its retries: comes back with the step done, or with the operation turned round or failed."""
        last: Problem | None = None
        while True:
            step = operation.steps[position]
            if step.attempts >= self._own.step_attempts_max:
                return self._failed(operation, position, last or _worn_out(step))
            if last is not None:
                self._pause(operation, position, step.attempts, last)
            begun = self._write(
                operation, f"{step.name}.begin", partial(operations.begin_step, position=position, now=self._now())
            )
            if begun is None:
                return self._cancelled(operation)
            operation = begun
            try:
                self._attempt(operation, step, ACTIONS[step.name].do, step.deadline_s)
            except (Unavailable, Fenced) as problem:  # fenced for having an image open, it comes as another client
                last = problem
                log.warning("the step will be tried again", step=step.name, reason=problem.detail)
            except _Cancelled:
                return self._cancelled(operation)
            except ClaimLost:
                raise
            except Problem as problem:
                return self._failed(operation, position, problem)
            else:
                done = partial(operations.finish_step, position=position, now=self._now())
                return self._write(operation, f"{step.name}.finish", done)

    def _finished(self, session: Session, operation_id: str, *, claim_epoch: int) -> Operation:
        """Every step is done. A cancel that came too late to undo anything still counts where what was done stays."""
        asked = operations.hold(session, operation_id, claim_epoch=claim_epoch)
        cancelled = asked.cancel_requested and not asked.kind.changes_disk
        event = OperationEvent.CANCEL if cancelled else OperationEvent.SUCCEED
        return operations.end(session, operation_id, event, claim_epoch=claim_epoch, now=self._now())

    def _cancelled(self, operation: Operation) -> Operation:
        if not operation.kind.changes_disk:
            return self._write(operation, "end", self._left)
        return self._write(operation, "turn", partial(operations.begin_undo, now=self._now(), problem=None))

    def _left(self, session: Session, operation_id: str, *, claim_epoch: int) -> Operation:
        """End it where it is. A step at work did nothing but wait, or nothing at all: there is nothing of it to keep."""
        now = self._now()
        for position, step in enumerate(operations.get(session, operation_id).steps):
            if step.state is StepState.RUNNING:
                operations.undo_step(session, operation_id, position, claim_epoch=claim_epoch, now=now)
        return operations.end(session, operation_id, OperationEvent.CANCEL, claim_epoch=claim_epoch, now=now)

    def _failed(self, operation: Operation, position: int, problem: Problem) -> Operation:
        """The step has failed for good: turn round, or end here when there is no way back."""
        step, epoch, now = operation.steps[position], operation.claim_epoch, self._now()
        log.error("step failed", step=step.name, code=problem.code, reason=problem.detail)
        no_return = plans.past_return(operation.steps)
        turns = no_return is None and operation.kind.changes_disk
        if no_return is not None:
            fix = f"{no_return.name} cannot be undone; mend the cause, then ask for the same again"
        elif turns:
            fix = "what had been done is undone; mend the cause, then ask again"
        else:
            fix = "what had been done stays; mend the cause, then ask again"
        wire = _wire(problem, step, fix)

        def write(session: Session, operation_id: str, *, claim_epoch: int) -> Operation:
            operations.fail_step(session, operation_id, position, claim_epoch=claim_epoch, now=now, problem=wire)
            if turns:
                return operations.begin_undo(session, operation_id, claim_epoch=epoch, now=now, problem=wire)
            return self._end_failed(session, operation, wire)

        return self._write(operation, "turn" if turns else "end", write)

    def _backward(self, operation: Operation) -> Operation:
        """Undo each step that has begun, last first; comes back ended."""
        deadline_s = max(step.deadline_s for step in operation.steps)  # undoing may wait for what its step need not
        for position, step in reversed(list(enumerate(operation.steps))):
            if not STEPS.allows(step.state, StepEvent.UNDO):
                continue
            try:
                self._undone(operation, position, deadline_s)
            except ClaimLost:
                raise
            except Problem as problem:
                return self._stuck(operation, step, problem)
            undo = partial(operations.undo_step, position=position, now=self._now())
            operation = self._write(operation, f"{step.name}.undone", undo)

        def write(session: Session, operation_id: str, *, claim_epoch: int) -> Operation:
            asked = operation.problem is None
            event = OperationEvent.UNDONE_BY_REQUEST if asked else OperationEvent.UNDONE
            ended = operations.end(session, operation_id, event, claim_epoch=claim_epoch, now=self._now())
            revision = revision_undone(operation.params)
            operations.undo_disk(session, operation, now=self._now(), actor=self._conductor, revision=revision)
            return ended

        return self._write(operation, "end", write)

    def _undone(self, operation: Operation, position: int, deadline_s: float) -> None:
        step = operation.steps[position]
        for attempts in range(1, self._own.step_attempts_max + 1):
            self._tell_of(operation, partial(operations.begin_undo_step, position=position, now=self._now()))
            try:
                self._attempt(operation, step, ACTIONS[step.name].undo, deadline_s)
            except (Unavailable, Fenced) as problem:
                log.warning("undoing will be tried again", step=step.name, reason=problem.detail)
                if attempts == self._own.step_attempts_max:
                    raise
                self._pause(operation, position, attempts, problem)
            else:
                return

    def _stuck(self, operation: Operation, step: Step, problem: Problem) -> Operation:
        """Undoing failed too: say both, and leave the disk where a person can start, stop or delete it."""
        log.error("undoing failed", step=step.name, code=problem.code, reason=problem.detail)
        fix = f"step {step.name} is not undone; mend the cause, then delete the disk, or start it again"
        wire = _wire(problem, step, fix)
        wire["context"]["undoing_after"] = operation.problem
        return self._write(operation, "end", lambda session, *_, **__: self._end_failed(session, operation, wire))

    def _end_failed(self, session: Session, operation: Operation, problem: Mapping[str, Any]) -> Operation:
        epoch, now = operation.claim_epoch, self._now()
        ended = operations.end(session, operation.id, OperationEvent.FAIL, claim_epoch=epoch, now=now, problem=problem)
        disk_id = operation.resource_id
        is_described = any(step.name == plans.DESCRIBE_CHANGED and step.state is StepState.DONE for step in operation.steps)
        if operation.kind is OperationKind.CHANGE_DISK:
            revision = revision_undone(operation.params)
            if not is_described:  # so that who asks again is not told that it is done
                disks.unchange(session, disk_id, operation.params[disks.BEFORE], now=now, revision=None)
            if revision is not None:  # the highest that the image may have: the publisher tells what it says, and indexes that
                row = disks.get(session, disk_id)
                row.revision = max(row.revision, revision)
        if operation.kind.changes_disk and DISKS.allows(DiskState(disks.get(session, disk_id).state), DiskEvent.FAIL):
            disks.apply(session, disk_id, DiskEvent.FAIL, now=now, actor=self._conductor, operation_id=operation.id)
        return ended

    def _write(self, operation: Operation, point: str, write: Callable[..., T]) -> T:
        """One durable write under this claim, between its two failpoints."""
        name = f"{operation.kind}.{point}"
        self._failpoints.reach(f"{name}:before")
        with self._stores.records.begin() as session:
            written = write(session, operation.id, claim_epoch=operation.claim_epoch)
        self._failpoints.reach(f"{name}:after")
        self._tell()
        return written

    def _tell_of(self, operation: Operation, write: Callable[..., None]) -> None:
        """Write under this claim what only tells people how it goes: without it the operation goes on all the same."""
        try:
            with self._stores.records.begin() as session:
                write(session, operation.id, claim_epoch=operation.claim_epoch)
        except Unavailable as problem:
            log.warning("cannot record how it goes", reason=problem.detail)

    def _attempt(self, operation: Operation, step: Step, work: Callable[[Context], None], deadline_s: float) -> None:
        """Do the work in a thread of its own and keep the claim. What does not end in time is left behind and counts no more."""
        halted = threading.Event()
        deadline = self._stores.clock.monotonic() + deadline_s
        context = Context(self._stores, self._own, operation, step, deadline, halted, self._failpoints.reach, self._tell)
        way = "undo" if OPERATIONS.allows(operation.state, OperationEvent.UNDONE) else "do"
        with timed(metrics.STEP_SECONDS, self._stores.clock, step.name, way), tracing.span(f"{way} {step.name}"):
            attempt = _Attempt(work, context, on_end=self._wake.set)
            attempt.start()
            try:
                waits_only = not ACTIONS[step.name].effects
                in_time = self._kept(operation, deadline_s + self._own.claim_ttl_s, lambda: attempt.ended, waits_only=waits_only)
            finally:
                halted.set()
            if not in_time:
                raise StepTimedOut(
                    f"{step.name}: it blocked for longer than its {deadline_s:g} s and was left behind", step=step.name
                )
            if attempt.error is not None:
                raise attempt.error

    def _pause(self, operation: Operation, position: int, attempts: int, last: Problem) -> None:
        """Wait before the next attempt, twice as long each time."""
        wait_s = min(self._own.retry_first_s * 2.0 ** (attempts - 1), self._own.retry_most_s)
        following = self._now() + timedelta(seconds=wait_s)
        self._tell_of(operation, partial(operations.try_again, position=position, problem=last.to_wire(), next_try_at=following))
        self._kept(operation, wait_s, lambda: False, waits_only=False)

    def _kept(self, operation: Operation, seconds: float, until: Callable[[], bool], *, waits_only: bool) -> bool:
        """Wait, and renew the claim meanwhile; False when the time has passed first.

        A cancel ends only what does nothing but wait, so that undoing never meets an effect half-way.
        """
        clock = self._stores.clock
        deadline = clock.monotonic() + seconds
        while True:
            self._wake.clear()
            if until():
                return True
            if self._halted.is_set():
                raise Halted
            left_s = deadline - clock.monotonic()
            if left_s <= 0:
                return False
            if not clock.wait(self._wake, min(left_s, self._own.claim_ttl_s / 3)):
                cancelled = self._renewed(operation).cancel_requested
                if cancelled and waits_only and OPERATIONS.allows(operation.state, OperationEvent.UNDO):
                    raise _Cancelled

    def _renewed(self, operation: Operation) -> Operation:
        epoch, ttl_s = operation.claim_epoch, self._own.claim_ttl_s
        try:
            with self._stores.records.begin() as session:
                return operations.renew_claim(session, operation.id, claim_epoch=epoch, now=self._now(), ttl_s=ttl_s)
        except Unavailable as problem:
            log.warning("cannot renew the claim", reason=problem.detail)
            return operation

    def _now(self) -> datetime:
        return self._stores.records.now()


class _Cancelled(Exception):
    """A cancel has been asked for while there was nothing to do but wait."""


class _Attempt:
    """A thread that does the work once; `error` is what it ended with."""

    def __init__(self, work: Callable[[Context], None], context: Context, *, on_end: Callable[[], None]) -> None:
        self._work, self._context, self._on_end = work, context, on_end
        self.ended = False
        self.error: BaseException | None = None

    def start(self) -> None:
        bound = contextvars.copy_context()  # so that its log lines name the operation too
        threading.Thread(target=bound.run, args=(self._run,), name=f"step {self._context.step.name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work(self._context)
        except (Problem, Halted) as error:
            self.error = error
        except Exception as error:
            log.exception("a step failed in a way it should not")
            self.error = Problem(f"{self._context.step.name}: {type(error).__name__}: {error}")
        except BaseException as error:  # noqa: BLE001  raised again by who waits
            self.error = error
        self.ended = True
        self._on_end()


def _count(ended: Operation) -> None:
    metrics.ENDED.labels(ended.kind, ended.state).inc()
    if ended.ended_at is not None:
        metrics.OPERATION_SECONDS.labels(ended.kind).observe((ended.ended_at - ended.created_at).total_seconds())


def _worn_out(step: Step) -> Problem:
    return Problem(f"{step.name} was begun {step.attempts} times and ended its conductor each time", step=step.name)


def _wire(problem: Problem, step: Step, fix: str) -> dict[str, Any]:
    wire = problem.to_wire()
    return {**wire, "context": {**wire["context"], "step": step.name, "fix": fix}}
