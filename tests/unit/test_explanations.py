"""What is said of an operation that does not go on: for each thing that may keep it, that thing is named first."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.explanations import SAFE, explain
from api.serving import Held
from api.waits import Cause, Facts
from sanderling.model import plans
from sanderling.model.disks import Disk, Path
from sanderling.model.exports import Connection, Export, ExportId, ExportPhase, Front, Gateway, Kept, Store
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import Operation, OperationKind, OperationState, StepState
from sanderling.records.claims import Standing
from sanderling.settings import Conductor

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
OWN = Conductor()
PATH = Path(index=1, address="10.1.0.1", prefix_len=24, interface="eth1", subnet="left")
DISK = Disk(id="d1", name="vol", iqn="iqn.2026-11.io.sanderling:vol", size_bytes=1 << 20, paths=(PATH,), revision=4)
EXPORT = ExportId("d1", 0)
PROBLEM = {"code": "unavailable", "detail": "no monitor answers", "context": {}}


def before(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def at_work(
    step: str, kind: OperationKind = OperationKind.CREATE_DISK, *, undoing: bool = False, said: Mapping[str, Any] | None = None
) -> Operation:
    """An operation whose conductor c1 is at that step since 10 s, or undoes it."""
    steps = list(plans.steps_of(kind, OWN, moves=2))
    at = [one.name for one in steps].index(step)
    state = StepState.DONE if undoing else StepState.RUNNING
    begun = {"started_at": before(10), "tried_at": before(10), "attempts": 1, "state": state}
    steps[:at] = [one.model_copy(update={"state": StepState.DONE, "attempts": 1}) for one in steps[:at]]
    steps[at] = steps[at].model_copy(update={**begun, **(said or {})})
    return Operation(
        id="o1",
        kind=kind,
        resource_id="d1",
        resource_name="vol",
        state=OperationState.ROLLING_BACK if undoing else OperationState.RUNNING,
        params={},
        steps=tuple(steps),
        requested_by="alice",
        claimed_by="c1",
        claim_epoch=1,
        claimed_at=before(10),
        claimed_until=NOW + timedelta(seconds=3),
        created_at=before(11),
        started_at=before(10),
    )


def waiting(asked_s: float) -> Operation:
    """An operation that was asked for so long ago and that nobody has begun."""
    none = dict.fromkeys(("claimed_by", "claimed_at", "claimed_until", "started_at"))
    begun = at_work(plans.CREATE_IMAGE)
    steps = plans.steps_of(begun.kind, OWN)
    return begun.model_copy(update={**none, "state": OperationState.PENDING, "created_at": before(asked_s), "steps": steps})


def seen(operation: Operation, *, held: bool = True, ahead: int = 0, claims: dict[str, int] | None = None, **more: Any) -> Facts:
    standing = Standing(held, ahead, {"c1": 1} if claims is None else claims, before(10))
    return Facts(operation, standing, NOW, OWN, **{"disk": DISK, **more})


def served(phase: ExportPhase = ExportPhase.SERVING, *, by: str | None = "node-a", **said: Any) -> Mapping[ExportId, Held | None]:
    value = Export(generation=1, counter=1, node=by or "", phase=phase, **{"revision": 4, **said})
    return {EXPORT: Held(value, "s1" if by else None)}


FREE = served(ExportPhase.FREE, by=None)
NODE_A, NODE_B = Gateway(name="node-a"), Gateway(name="node-b")
SERVED, RELEASED = plans.AWAIT_SERVED, plans.AWAIT_RELEASED
STOP, DELETE = OperationKind.STOP_DISK, OperationKind.DELETE_DISK


@pytest.mark.parametrize(
    ("facts", "cause", "words"),
    [
        (seen(waiting(1), held=False, claims={}), Cause.CONDUCTORS_AT_WORK, "next in line"),
        (seen(waiting(60), held=False, claims={}), Cause.NO_CONDUCTOR, "no conductor has taken it for 60 s"),
        (
            seen(waiting(60), held=False, ahead=7, claims={"c1": 8}),
            Cause.CONDUCTORS_AT_WORK,
            "7 wait before it; at work are c1 with 8",
        ),
        (seen(at_work(SERVED), held=False, claims={}), Cause.CONDUCTOR_GONE, "no other conductor is at work"),
        (seen(at_work(SERVED), held=False, claims={"c2": 1}), Cause.CONDUCTOR_GONE, "at work are c2 with 1"),
        (
            seen(at_work(SERVED), away={"coordination": "no Consul server answers"}),
            Cause.COORDINATION_AWAY,
            "no Consul server answers",
        ),
        (seen(at_work(plans.CREATE_IMAGE), away={"images": "no monitor answers"}), Cause.IMAGES_AWAY, "no monitor answers"),
        (
            seen(at_work(plans.CREATE_IMAGE, said={"problem": PROBLEM, "next_try_at": NOW + timedelta(seconds=2)})),
            Cause.RETRY,
            "failed with unavailable: no monitor answers; the next begins at 2026-11-27T12:00:02Z",
        ),
        (seen(at_work(plans.CREATE_IMAGE, said={"problem": PROBLEM})), Cause.RETRY, "another is under way"),
        (seen(at_work(plans.CREATE_IMAGE, said={"tried_at": before(90)})), Cause.OVERDUE, "30 s after its deadline"),
        (seen(at_work(plans.CREATE_IMAGE)), Cause.AT_WORK, "create_image is at work"),
        (seen(at_work(SERVED), serving=FREE, gateways=[]), Cause.NO_GATEWAY, "export 0 (10.1.0.1): nobody has taken it"),
        (seen(at_work(SERVED), serving=FREE, gateways=[NODE_A, NODE_B]), Cause.EXPORT_FREE, "live gateways: node-a, node-b"),
        (
            seen(
                at_work(SERVED),
                serving=FREE,
                gateways=[
                    NODE_A.model_copy(update={"store": Store(cut_off=True)}),
                    NODE_B.model_copy(update={"front": Front(cut_off=("eth1",)), "withdrawing": True}),
                ],
            ),
            Cause.EXPORT_FREE,
            "node-a (cut off from the image store), node-b (giving up what it serves, cut off on eth1)",
        ),
        (
            seen(at_work(SERVED), serving=FREE, gateways=[Gateway(name="node-a", refused={"d1/0": "no interface eth1"}), NODE_B]),
            Cause.EXPORT_REFUSED,
            "refused by node-a: no interface eth1",
        ),
        (
            seen(at_work(SERVED), serving=served(ExportPhase.TAKING), gateways=[NODE_A]),
            Cause.EXPORT_TAKING,
            "node-a holds it and is taking",
        ),
        (seen(at_work(SERVED), serving=served(revision=3), gateways=[NODE_A]), Cause.EXPORT_OLD, "as of revision 3, 4 is wanted"),
        (seen(at_work(SERVED), serving={}, gateways=[NODE_A]), Cause.EXPORT_LOST, "its key is missing"),
        (seen(at_work(SERVED), serving={EXPORT: None}, gateways=[NODE_A]), Cause.EXPORT_LOST, "cannot be read"),
        (seen(at_work(SERVED), serving=served(), gateways=[NODE_A]), Cause.AT_WORK, "await_served is at work"),
        (
            seen(
                at_work(RELEASED, STOP),
                serving=served(ExportPhase.GIVING_UP, connections=(Connection("iqn.x:i", "10.1.0.9", 4000, "10.1.0.1"),)),
                gateways=[NODE_A],
            ),
            Cause.EXPORT_HELD,
            "node-a holds it and is giving_up, with 1 connections",
        ),
        (
            seen(at_work(RELEASED, STOP), serving=served(), gateways=[NODE_B]),
            Cause.EXPORT_HELD_BY_DEAD,
            "node-a holds it and is not among the live gateways",
        ),
        (
            seen(at_work(RELEASED, STOP), serving=served(by=None, client="10.9.0.1:0/7"), gateways=[NODE_B]),
            Cause.EXPORT_TO_FENCE,
            "its last client 10.9.0.1:0/7 is to be fenced",
        ),
        (
            seen(at_work(plans.PUBLISH, undoing=True), serving=served(ExportPhase.SERVING), gateways=[NODE_A]),
            Cause.EXPORT_HELD,
            "node-a holds it",
        ),
        (
            seen(
                at_work(plans.REMOVE_IMAGE, DELETE),
                openers=("10.9.0.1:0/7", "10.9.0.2:0/8", "10.9.0.3:0/9"),
                serving=served(client="10.9.0.1:0/7"),
                gateways=[Gateway(name="node-b", running={"d1/0": "10.9.0.2:0/8"})],
            ),
            Cause.IMAGE_OPEN,
            "10.9.0.1:0/7 (export 0 of node-a), 10.9.0.2:0/8 (a process of node-b), 10.9.0.3:0/9",
        ),
        (
            seen(at_work(plans.CREATE_IMAGE).model_copy(update={"cancel_requested": True})),
            Cause.CANCELLING,
            "once the step at work has ended",
        ),
    ],
)
def test_what_keeps_an_operation_is_named_first_and_decides_what_to_do(facts: Facts, cause: Cause, words: str) -> None:
    explained = explain(facts)
    assert explained.waits_for[0].cause is cause
    assert words in explained.waits_for[0].detail
    assert words in explained.summary
    assert explained.safe_next_action == SAFE[cause]


def test_a_part_that_the_step_does_not_need_is_not_blamed() -> None:
    facts = seen(at_work(plans.CREATE_IMAGE), away={"coordination": "no Consul server answers"})
    assert [wait.cause for wait in explain(facts).waits_for] == [Cause.AT_WORK]


def test_a_wake_up_that_cannot_be_cast_is_told_beside_who_could_take_the_operation() -> None:
    found = explain(seen(waiting(60), held=False, claims={}, broker="connection refused")).waits_for
    assert [wait.cause for wait in found] == [Cause.NO_CONDUCTOR, Cause.BROKER_AWAY]
    assert "connection refused" in found[1].detail


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "node-a has it, serving"),
        ({"gateways": [NODE_A]}, "node-b is not live"),
        (
            {"gateways": [NODE_A.model_copy(update={"kept": {"d1/0": Kept(operation_id="o1", reason="a write hangs")}}), NODE_B]},
            "node-a kept it: a write hangs",
        ),
        ({"gateways": [NODE_A, Gateway(name="node-b", refused={"d1/0": "port 3260 is taken"})]}, "node-b refused it: port 3260"),
    ],
)
def test_each_move_under_way_is_told_with_what_is_seen_of_it(said: dict[str, Any], words: str) -> None:
    one = Move(
        position=0,
        disk_id="d1",
        disk_name="vol",
        index=0,
        addresses=("10.1.0.1",),
        source="node-a",
        destination="node-b",
        state=MoveState.MOVING,
        started_at=before(12),
    )
    moves = [one, one.model_copy(update={"position": 1, "state": MoveState.PENDING})]
    operation = at_work(plans.MOVE_PATHS, OperationKind.ASSIGN_PATHS)
    explained = explain(seen(operation, moves=moves, serving=served(), **{"gateways": [NODE_A, NODE_B], **said}))
    assert [wait.cause for wait in explained.waits_for] == [Cause.MOVING, Cause.MOVES_WAIT]
    assert "vol/0 from node-a to node-b, under way for 12 s, until 2026-11-27T12:00:18Z" in explained.waits_for[0].detail
    assert words in explained.waits_for[0].detail
    assert explained.waits_for[1].detail.startswith("1 moves have not begun")


def test_what_a_drained_gateway_still_serves_is_named() -> None:
    operation = at_work(plans.CHECK_EMPTY, OperationKind.DRAIN_GATEWAY).model_copy(update={"params": {"gateway": "node-a"}})
    (wait,) = explain(seen(operation, serving=served(), gateways=[NODE_A])).waits_for
    assert (wait.cause, wait.detail) == (Cause.LEFT_ON_GATEWAY, "node-a still serves d1/0")


def test_the_holder_the_step_and_the_next_deadline_are_told() -> None:
    explained = explain(seen(at_work(SERVED), serving=FREE, gateways=[]))
    assert explained.holder is not None
    assert (explained.holder.conductor, explained.holder.since, explained.holder.is_live) == ("c1", before(10), True)
    assert explained.step is not None
    assert (explained.step.name, explained.step.attempts, explained.step.attempts_max) == (SERVED, 1, OWN.step_attempts_max)
    assert explained.next_deadline is not None
    assert explained.next_deadline.at == before(10) + timedelta(seconds=OWN.serve_deadline_s)


def test_of_an_operation_whose_conductor_is_gone_the_end_of_the_claim_comes_next() -> None:
    explained = explain(seen(at_work(SERVED), held=False))
    assert explained.holder is not None
    assert not explained.holder.is_live
    assert explained.next_deadline is not None
    assert explained.next_deadline.at == NOW + timedelta(seconds=3)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (OperationState.SUCCEEDED, Cause.ENDED_WELL),
        (OperationState.FAILED, Cause.ENDED_BADLY),
        (OperationState.CANCELLED, Cause.ENDED_CANCELLED),
        (OperationState.ROLLED_BACK, Cause.ENDED_UNDONE),
    ],
)
def test_an_operation_that_has_ended_waits_for_nothing(state: OperationState, cause: Cause) -> None:
    explained = explain(seen(at_work(SERVED).model_copy(update={"state": state, "problem": PROBLEM}), held=False))
    assert (explained.waits_for, explained.next_deadline, explained.step) == ((), None, None)
    assert explained.safe_next_action == SAFE[cause]


def test_there_is_something_to_do_about_every_cause() -> None:
    assert set(SAFE) == set(Cause)
