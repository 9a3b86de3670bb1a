"""Why an operation is where it is: who has it, the step at work, what that waits for, and what is safe to do. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict

from api import waits
from api.waits import Cause, Facts, Wait
from sanderling.model.operations import STEPS, Operation, OperationState, Step, StepEvent, StepState

SAFE: Final[Mapping[Cause, str]] = {
    Cause.ENDED_WELL: "Nothing: it has succeeded.",
    Cause.ENDED_CANCELLED: "Nothing: it was cancelled as somebody asked; ask for the same again if it is wanted after all.",
    Cause.ENDED_UNDONE: "Mend what the problem names, then ask for the same again: nothing of it is left.",
    Cause.ENDED_BADLY: "Do what the problem's fix says; nothing goes on by itself.",
    Cause.QUEUED: "Explain the operation that is at work; cancelling this one is safe, nothing of it has been done.",
    Cause.NO_CONDUCTOR: "Start a conductor (systemctl start sanderling-conductor); it finds the operation by itself.",
    Cause.CONDUCTORS_AT_WORK: "Wait: conductors take it when their turn comes to it; cancelling it now changes nothing else.",
    Cause.BROKER_AWAY: "Wait, and look at RabbitMQ: conductors find the operation without a wake-up, only a little later.",
    Cause.CONDUCTOR_GONE: "Wait until the claim has run out, when another conductor goes on; start one if there is none.",
    Cause.OVERDUE: "Wait: the conductor leaves the attempt behind and says why; a conductor that does not can be restarted.",
    Cause.RETRY: "Mend what the last attempt failed with; the next attempt comes by itself, and cancelling is safe as well.",
    Cause.COORDINATION_AWAY: "Look at Consul; exports are served on meanwhile, and the step goes on by itself.",
    Cause.IMAGES_AWAY: "Look at Ceph (ceph -s) and at the network to it; the step goes on by itself.",
    Cause.IMAGE_OPEN: "Stop what has the image open; a client that died lets go of it within about half a minute.",
    Cause.NO_GATEWAY: "Start a worker (systemctl start sanderling-iscsi-worker) on a node that is to serve.",
    Cause.EXPORT_REFUSED: "Mend what the gateways name; each tries again by itself after a while.",
    Cause.EXPORT_FREE: "Look at the gateways that could take it (sanderling gateway list); nothing is served twice by waiting.",
    Cause.EXPORT_TAKING: "Wait: its gateway is at it; if that takes long, look at the worker's log there.",
    Cause.EXPORT_OLD: "Wait: its gateway starts the export again; if that takes long, look at the worker's log there.",
    Cause.EXPORT_LOST: "Wait: the conductor publishes it again; if keys go on missing, look at Consul.",
    Cause.EXPORT_HELD: "Wait: its gateway gives it up; if that takes long, look at the worker there, and restart it if it hangs.",
    Cause.EXPORT_HELD_BY_DEAD: "Wait: the lock ends with the consul session of that node; then the conductor fences its client.",
    Cause.EXPORT_TO_FENCE: "Wait: the conductor fences the client that is still named; that needs Ceph.",
    Cause.MOVING: "Wait: each move ends by its deadline, in success or where it was; a cancel lets no further one begin.",
    Cause.MOVES_WAIT: "Wait: they begin when those under way have ended; a cancel lets none of them begin.",
    Cause.LEFT_ON_GATEWAY: "Wait, or look why no other gateway takes what is left (sanderling gateway list).",
    Cause.CANCELLING: "Wait: a step at work that has effects ends first; then the operation turns round.",
    Cause.AT_WORK: "Wait: nothing is seen that keeps it from going on.",
}
"""What is safe to do about each cause. The first of an operation's causes decides."""


class Holder(BaseModel):
    """The conductor that has claimed it, last or now: `is_live` says whether its claim is in force."""

    model_config = ConfigDict(frozen=True)

    conductor: str
    claim_epoch: int
    since: datetime | None
    until: datetime | None
    is_live: bool


class StepAtWork(BaseModel):
    """The step that is being done or undone. `deadline` is that of the attempt under way."""

    model_config = ConfigDict(frozen=True)

    name: str
    is_undoing: bool
    number: int
    of: int
    since: datetime | None
    attempts: int
    attempts_max: int
    tried_at: datetime | None
    deadline: datetime | None
    next_try_at: datetime | None


class Deadline(BaseModel):
    model_config = ConfigDict(frozen=True)

    at: datetime
    then: str


class Explanation(BaseModel):
    """`summary` and `safe_next_action` are a sentence each; `waits_for` begins with what matters most."""

    model_config = ConfigDict(frozen=True)

    state: OperationState
    summary: str
    told_at: datetime
    holder: Holder | None
    step: StepAtWork | None
    waits_for: tuple[Wait, ...]
    next_deadline: Deadline | None
    safe_next_action: str


def explain(facts: Facts) -> Explanation:
    operation, step = facts.operation, _step_at_work(facts)
    found = _ended(operation) or _found(facts, step)
    return Explanation(
        state=operation.state,
        summary=_summary(facts, step, found[0]),
        told_at=facts.standing.told_at,
        holder=_holder(facts),
        step=step,
        waits_for=() if operation.ended else tuple(found),
        next_deadline=_next_deadline(facts, step),
        safe_next_action=SAFE[found[0].cause],
    )


def _ended(operation: Operation) -> list[Wait]:
    cause = {
        OperationState.SUCCEEDED: Cause.ENDED_WELL,
        OperationState.CANCELLED: Cause.ENDED_CANCELLED,
        OperationState.ROLLED_BACK: Cause.ENDED_UNDONE,
        OperationState.FAILED: Cause.ENDED_BADLY,
    }.get(operation.state)
    if cause is None:
        return []
    problem = operation.problem
    return [Wait(cause=cause, detail=str(problem["detail"]) if problem else "it has ended without a problem")]


def _found(facts: Facts, step: StepAtWork | None) -> list[Wait]:
    """What keeps it from going on, what matters most first; never empty."""
    if step is None or not facts.standing.is_held:
        return waits.for_a_conductor(facts)
    seen = waits.for_parts(facts, step.name) + waits.for_step(facts, step.name)
    found = seen + waits.for_time(facts, facts.operation.steps[step.number - 1], step.deadline)
    if facts.operation.cancel_requested and not facts.is_undoing:
        found.append(Wait(cause=Cause.CANCELLING, detail="a cancel was asked for; it counts once the step at work has ended"))
    return found or [Wait(cause=Cause.AT_WORK, detail=f"{step.name} is at work")]


def _summary(facts: Facts, step: StepAtWork | None, first: Wait) -> str:
    operation = facts.operation
    what = f"{operation.kind} of {operation.resource_name}"
    if operation.ended:
        return f"{what} has ended: {operation.state}"
    if step is None:
        return f"{what} has not been begun: {first.detail}"
    doing = "undoes" if step.is_undoing else "is at"
    return f"{what} {doing} step {step.name} ({step.number} of {step.of}): {first.detail}"


def _position(operation: Operation, *, is_undoing: bool) -> int | None:
    """Which step is being done, or undone; None when there is none left."""
    steps = list(enumerate(operation.steps))
    if is_undoing:
        return next((at for at, step in reversed(steps) if STEPS.allows(step.state, StepEvent.UNDO)), None)
    return next((at for at, step in steps if step.state is not StepState.DONE), None)


def _step_at_work(facts: Facts) -> StepAtWork | None:
    operation = facts.operation
    position = _position(operation, is_undoing=facts.is_undoing)
    if operation.ended or position is None or operation.started_at is None:
        return None
    step = operation.steps[position]
    return StepAtWork(
        name=step.name,
        is_undoing=facts.is_undoing,
        number=position + 1,
        of=len(operation.steps),
        since=step.started_at,
        attempts=step.attempts,
        attempts_max=facts.own.step_attempts_max,
        tried_at=step.tried_at,
        deadline=_deadline(facts, step),
        next_try_at=step.next_try_at,
    )


def _holder(facts: Facts) -> Holder | None:
    operation = facts.operation
    if operation.claimed_by is None:
        return None
    return Holder(
        conductor=operation.claimed_by,
        claim_epoch=operation.claim_epoch,
        since=operation.claimed_at,
        until=operation.claimed_until,
        is_live=facts.standing.is_held,
    )


def _next_deadline(facts: Facts, step: StepAtWork | None) -> Deadline | None:
    """What happens next by the clock alone."""
    operation = facts.operation
    if operation.ended or operation.claimed_by is None:
        return None
    if not facts.standing.is_held or step is None:
        until = operation.claimed_until
        return Deadline(at=until, then="the claim runs out, and another conductor may go on") if until else None
    if step.next_try_at is not None:
        return Deadline(at=step.next_try_at, then="the next attempt begins")
    if step.deadline is not None:
        return Deadline(at=step.deadline, then="the attempt has failed unless it has ended")
    return None


def _deadline(facts: Facts, step: Step) -> datetime | None:
    """Of the attempt under way; undoing a step may take as long as the longest of all."""
    if step.tried_at is None or step.next_try_at is not None:
        return None
    deadline_s = max(one.deadline_s for one in facts.operation.steps) if facts.is_undoing else step.deadline_s
    return step.tried_at + timedelta(seconds=deadline_s)
