"""What the records promise of operations.  Runs on every database; this file is the definition."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from sanderling.clock import ManualClock
from sanderling.errors import Busy, ClaimLost, InvalidInput, NotFound, TooManyRequests, TransitionRefused
from sanderling.model import plans
from sanderling.model.disks import Disk, DiskState
from sanderling.model.disks import Path as DiskPath
from sanderling.model.operations import Operation, OperationEvent, OperationKind, OperationState, Step, StepState
from sanderling.records import claims, disks, operations
from sanderling.records.database import Records
from sanderling.records.tables import EventRow, SubnetRow
from sanderling.settings import Conductor
from sanderling.settings import Records as RecordsSettings

TTL_S = 5.0
CREATE, START, STOP = OperationKind.CREATE_DISK, OperationKind.START_DISK, OperationKind.STOP_DISK


@pytest.fixture
def records(url: str) -> Iterator[Records]:
    opened = Records(RecordsSettings(url=url), clock=ManualClock())
    yield opened
    opened.close()


def a_disk(records: Records, disk_id: str, state: DiskState = DiskState.CREATING) -> Disk:
    number = sum(disk_id.encode()) % 200 + 1
    path = DiskPath(index=1, address=f"10.0.0.{number}", prefix_len=24, interface="eth0", subnet="front")
    disk = Disk(id=disk_id, name=f"name-{disk_id}", iqn=f"iqn.2026-11.io.sanderling:{disk_id}", size_bytes=1 << 20, paths=(path,))
    with records.begin() as session:
        if session.get(SubnetRow, "front") is None:
            pool = {"pool_first": "10.0.0.1", "pool_last": "10.0.0.250"}
            session.add(SubnetRow(name="front", cidr="10.0.0.0/24", interface="eth0", created_at=records.now(), **pool))
            session.flush()
        disks.insert(session, disk, now=records.now(), state=state)
    return disk


def submitted(
    records: Records,
    disk_id: str = "d1",
    kind: OperationKind = CREATE,
    *,
    was: DiskState | None = None,
    after_s: float = 0,
    queue_max: int = 0,
) -> Operation:
    with records.begin() as session:
        return operations.submit(
            session,
            kind=kind,
            resource_id=disk_id,
            resource_name=f"name-{disk_id}",
            params={} if was is None else {"was": was},
            steps=plans.steps_of(kind, Conductor()),
            requested_by="alice",
            now=records.now() + timedelta(seconds=after_s),
            traceparent="00-trace",
            queue_max=queue_max,
        )


def claimed(records: Records, operation_id: str, conductor: str = "c1", *, after_s: float = 0) -> Operation | None:
    now = records.now() + timedelta(seconds=after_s)
    with records.begin() as session:
        return operations.claim(session, operation_id, conductor=conductor, now=now, ttl_s=TTL_S)


def kinds(records: Records, operation_id: str) -> list[str]:
    with records.read() as session:
        return [row.kind for row in session.query(EventRow).filter_by(operation_id=operation_id).order_by(EventRow.id)]


def state_of(records: Records, disk_id: str) -> str:
    with records.read() as session:
        return disks.get(session, disk_id).state


def test_a_submitted_operation_is_read_back_as_it_was(records: Records) -> None:
    operation = submitted(records)
    with records.read() as session:
        assert operations.get(session, operation.id) == operation
    assert operation.state is OperationState.PENDING
    assert [step.name for step in operation.steps][:2] == ["create_image", "describe"]
    assert kinds(records, operation.id) == ["operation.pending"]


def test_an_operation_that_is_not_there_is_not_found(records: Records) -> None:
    with records.read() as session, pytest.raises(NotFound):
        operations.get(session, "nobody")


def test_a_second_operation_on_a_resource_is_busy_and_names_the_first(records: Records) -> None:
    first = submitted(records)
    with pytest.raises(Busy) as refused:
        submitted(records, kind=STOP)
    assert refused.value.context["operation_id"] == first.id


@pytest.mark.rows("W-PA-9")
def test_two_that_submit_at_once_leave_one_operation(records: Records) -> None:
    gate, outcomes = threading.Barrier(2), list[str]()

    def submit() -> None:
        gate.wait()
        try:
            outcomes.append(submitted(records).id)
        except Busy as busy:
            outcomes.append(busy.code)

    run_all(submit, submit)
    assert outcomes.count("busy") == 1


def test_where_some_may_wait_the_second_does_until_the_first_has_ended(records: Records) -> None:
    a_disk(records, "d1")
    first = submitted(records)
    second, third = (submitted(records, kind=STOP, queue_max=2) for _ in range(2))
    assert [one.state for one in (second, third)] == [OperationState.QUEUED, OperationState.QUEUED]
    with pytest.raises(TooManyRequests) as refused:
        submitted(records, kind=STOP, queue_max=2)
    assert refused.value.context["operation_id"] == first.id
    with pytest.raises(Busy):
        submitted(records, kind=STOP)
    assert claimed(records, second.id) is None
    with records.begin() as session:
        assert [one.id for one in operations.line(session, "d1")] == [first.id, second.id, third.id]
        assert operations.due(session, now=records.now(), ttl_s=TTL_S, limit=9) == [first.id]
        assert [out.id for out in operations.outbox(session, limit=9)] == [first.id]
        operations.request_cancel(session, first.id, actor="alice", now=records.now())
        assert operations.due(session, now=records.now(), ttl_s=TTL_S, limit=9) == [second.id]
        now = records.now()
        operations.begin(session, second.id, steps=second.steps, params={"was": "started"}, now=now, actor="c1")
        assert operations.due(session, now=now, ttl_s=TTL_S, limit=9) == [second.id]
    began = claimed(records, second.id)
    assert began is not None
    assert began.params == {"was": "started"}
    assert kinds(records, second.id) == ["operation.queued", "operation.pending", "operation.running"]


def test_those_that_join_a_line_at_once_have_a_turn_each_and_never_more_than_there_may_be(records: Records) -> None:
    first, turns = submitted(records), list[int]()

    def join() -> None:
        try:
            turns.append(submitted(records, kind=STOP, queue_max=5).turn)
        except TooManyRequests:
            turns.append(0)

    run_all(*[join] * 8)
    assert sorted(turns) == [0, 0, 0, 1, 2, 3, 4, 5]
    with records.begin() as session:
        assert operations.line(session, "d1")[0].id == first.id


def test_one_that_waits_and_is_not_possible_any_more_ends_with_the_reason(records: Records) -> None:
    submitted(records)
    second = submitted(records, kind=STOP, queue_max=1)
    with records.begin() as session:
        operations.refuse(session, second.id, problem={"code": "not-found"}, now=records.now(), actor="c1")
        ended = operations.get(session, second.id)
    assert (ended.state, ended.problem) == (OperationState.FAILED, {"code": "not-found"})
    assert ended.ended_at is not None


@pytest.mark.rows("W-MC-4")
def test_of_two_claims_at_once_one_wins(records: Records) -> None:
    for attempt in range(10):
        operation = submitted(records, f"d{attempt}")
        assert len(claimed_by_two_at_once(records, operation.id)) == 1


def claimed_by_two_at_once(records: Records, operation_id: str) -> list[str]:
    gate, won = threading.Barrier(2), list[str]()

    def claim(name: str) -> None:
        gate.wait()
        if claimed(records, operation_id, name) is not None:
            won.append(name)

    run_all(lambda: claim("c1"), lambda: claim("c2"))
    return won


def test_a_claim_that_ran_out_may_be_taken_and_the_first_owner_writes_nothing_more(records: Records) -> None:
    operation = submitted(records)
    first = claimed(records, operation.id)
    assert first is not None
    assert claimed(records, operation.id, "c2", after_s=TTL_S - 0.1) is None
    second = claimed(records, operation.id, "c2", after_s=TTL_S)
    assert second is not None
    assert second.claim_epoch == first.claim_epoch + 1
    before = kinds(records, operation.id)
    writes: list[Callable[[Session], object]] = [
        lambda s: operations.begin_step(s, operation.id, 0, claim_epoch=first.claim_epoch, now=records.now()),
        lambda s: operations.finish_step(s, operation.id, 0, claim_epoch=first.claim_epoch, now=records.now()),
        lambda s: operations.fail_step(s, operation.id, 0, claim_epoch=first.claim_epoch, now=records.now(), problem={}),
        lambda s: operations.undo_step(s, operation.id, 0, claim_epoch=first.claim_epoch, now=records.now()),
        lambda s: operations.begin_undo(s, operation.id, claim_epoch=first.claim_epoch, now=records.now(), problem=None),
        lambda s: operations.note(s, operation.id, claim_epoch=first.claim_epoch, values={"revision": 9}),
        lambda s: operations.renew_claim(s, operation.id, claim_epoch=first.claim_epoch, now=records.now(), ttl_s=TTL_S),
        lambda s: operations.release(s, operation.id, claim_epoch=first.claim_epoch),
        lambda s: operations.check_claim(s, operation.id, claim_epoch=first.claim_epoch, state=first.state),
        lambda s: operations.end(s, operation.id, OperationEvent.SUCCEED, claim_epoch=first.claim_epoch, now=records.now()),
    ]
    for write in writes:
        with pytest.raises(ClaimLost), records.begin() as session:
            write(session)
    with records.read() as session:
        assert operations.get(session, operation.id) == second
    assert kinds(records, operation.id) == before


def test_what_is_due_is_what_nobody_works_on(records: Records) -> None:
    pending, held, released = (submitted(records, name, after_s=n) for n, name in enumerate(("d1", "d2", "d3")))
    assert claimed(records, held.id) is not None
    let_go = claimed(records, released.id)
    assert let_go is not None
    with records.begin() as session:
        operations.release(session, released.id, claim_epoch=let_go.claim_epoch)
        assert operations.due(session, now=records.now(), ttl_s=TTL_S, limit=9) == [pending.id, released.id]
        assert operations.due(session, now=records.now(), ttl_s=TTL_S, limit=1) == [pending.id]
        later = records.now() + timedelta(seconds=TTL_S)
        assert operations.due(session, now=later, ttl_s=TTL_S, limit=9) == [pending.id, held.id, released.id]


def test_an_operation_knows_how_many_come_before_it_and_who_works_on_others(records: Records) -> None:
    first, held, last = (submitted(records, name, after_s=n) for n, name in enumerate(("d1", "d2", "d3")))
    assert claimed(records, held.id, "c1") is not None
    with records.read() as session:
        standing = claims.standing(session, last, now=records.now(), ttl_s=TTL_S)
        assert (standing.is_held, standing.ahead, standing.claims) == (False, 1, {"c1": 1})
        assert claims.standing(session, held, now=records.now(), ttl_s=TTL_S).is_held
        assert claims.standing(session, first, now=records.now(), ttl_s=TTL_S).ahead == 0
        later = claims.standing(session, last, now=records.now() + timedelta(seconds=TTL_S), ttl_s=TTL_S)
        assert (later.ahead, later.claims) == (2, {})
        assert later.told_at == last.created_at


def test_a_renewed_claim_is_not_due(records: Records) -> None:
    operation = submitted(records)
    held = claimed(records, operation.id)
    assert held is not None
    later = records.now() + timedelta(seconds=TTL_S)
    with records.begin() as session:
        operations.renew_claim(session, operation.id, claim_epoch=held.claim_epoch, now=later, ttl_s=TTL_S)
        assert operations.due(session, now=later, ttl_s=TTL_S, limit=9) == []


def test_a_claim_from_before_the_clock_went_back_has_run_out(records: Records) -> None:
    operation = submitted(records)
    assert claimed(records, operation.id, after_s=3600) is not None
    with records.read() as session:
        assert operations.due(session, now=records.now(), ttl_s=TTL_S, limit=9) == [operation.id]
    assert claimed(records, operation.id, "c2") is not None


def test_a_claim_made_by_a_clock_that_is_a_little_ahead_is_in_force(records: Records) -> None:
    operation = submitted(records)
    assert claimed(records, operation.id, after_s=TTL_S - 0.1) is not None
    with records.read() as session:
        assert operations.due(session, now=records.now(), ttl_s=TTL_S, limit=9) == []
    assert claimed(records, operation.id, "c2") is None


def test_the_outbox_holds_an_operation_until_it_is_cast_or_claimed(records: Records) -> None:
    cast, taken, waiting = (submitted(records, name, after_s=n) for n, name in enumerate(("d1", "d2", "d3")))
    with records.begin() as session:
        found = operations.outbox(session, limit=9)
        assert [(out.id, out.traceparent) for out in found] == [(o.id, "00-trace") for o in (cast, taken, waiting)]
        operations.mark_cast(session, [cast.id], now=records.now())
    assert claimed(records, taken.id) is not None
    with records.read() as session:
        assert [out.id for out in operations.outbox(session, limit=9)] == [waiting.id]


def test_each_step_is_begun_counted_and_finished_with_an_event_each(records: Records) -> None:
    operation = submitted(records)
    held = claimed(records, operation.id)
    assert held is not None
    for _ in range(2):
        with records.begin() as session:
            begun = operations.begin_step(session, operation.id, 0, claim_epoch=held.claim_epoch, now=records.now())
    assert begun is not None
    assert begun.steps[0].attempts == 2
    with records.begin() as session:
        done = operations.finish_step(session, operation.id, 0, claim_epoch=held.claim_epoch, now=records.now())
    assert done.steps[0].state is StepState.DONE
    said = ["operation.pending", "operation.running", "step.running", "step.running", "step.done"]
    assert kinds(records, operation.id) == said


@pytest.mark.rows("W-PA-12")
def test_an_operation_that_has_ended_stays_as_it_is_and_frees_its_resource(records: Records) -> None:
    operation = submitted(records)
    held = claimed(records, operation.id)
    assert held is not None
    with records.begin() as session:
        ended = operations.end(session, operation.id, OperationEvent.SUCCEED, claim_epoch=held.claim_epoch, now=records.now())
    assert ended.ended
    assert claimed(records, operation.id, "c2", after_s=99) is None
    with pytest.raises(ClaimLost), records.begin() as session:
        operations.begin_step(session, operation.id, 0, claim_epoch=held.claim_epoch, now=records.now())
    with pytest.raises(TransitionRefused), records.begin() as session:
        operations.request_cancel(session, operation.id, actor="alice", now=records.now())
    assert submitted(records, kind=STOP).id != operation.id


@pytest.mark.parametrize(
    ("kind", "busy", "was", "after"),
    [
        (START, DiskState.STARTING, DiskState.STOPPED, DiskState.STOPPED),
        (START, DiskState.STARTING, DiskState.FAILED, DiskState.FAILED),
        (STOP, DiskState.STOPPING, DiskState.STARTED, DiskState.STARTED),
        (STOP, DiskState.STOPPING, DiskState.FAILED, DiskState.FAILED),
        (OperationKind.DELETE_DISK, DiskState.DELETING, DiskState.STOPPED, DiskState.STOPPED),
        (OperationKind.DELETE_DISK, DiskState.DELETING, DiskState.STARTED, DiskState.STARTED),
    ],
)
def test_cancelling_before_anyone_began_restores_the_disk_at_once(
    records: Records, kind: OperationKind, busy: DiskState, was: DiskState, after: DiskState
) -> None:
    a_disk(records, "d1", busy)
    operation = submitted(records, kind=kind, was=was)
    with records.begin() as session:
        cancelled = operations.request_cancel(session, operation.id, actor="alice", now=records.now())
    assert cancelled.state is OperationState.CANCELLED
    assert state_of(records, "d1") == after
    assert claimed(records, operation.id) is None
    with records.read() as session:
        assert operations.outbox(session, limit=9) == []


def test_cancelling_a_creation_before_anyone_began_leaves_no_disk(records: Records) -> None:
    a_disk(records, "d1")
    operation = submitted(records)
    with records.begin() as session:
        operations.request_cancel(session, operation.id, actor="alice", now=records.now())
    with records.read() as session, pytest.raises(NotFound):
        disks.get(session, "d1")


def test_a_cancel_of_a_running_operation_stops_the_next_step(records: Records) -> None:
    operation = submitted(records)
    held = claimed(records, operation.id)
    assert held is not None
    for _ in range(2):  # asking twice is asking once
        with records.begin() as session:
            asked = operations.request_cancel(session, operation.id, actor="alice", now=records.now())
    assert asked.state is OperationState.RUNNING
    assert asked.cancel_requested
    with records.begin() as session:
        assert operations.begin_step(session, operation.id, 0, claim_epoch=held.claim_epoch, now=records.now()) is None
        turned = operations.begin_undo(session, operation.id, claim_epoch=held.claim_epoch, now=records.now(), problem=None)
    assert turned.state is OperationState.ROLLING_BACK
    with pytest.raises(ClaimLost), records.begin() as session:
        operations.note(session, operation.id, claim_epoch=held.claim_epoch, values={"revision": 2})
    assert kinds(records, operation.id).count("operation.cancel_requested") == 1


def test_a_cancel_past_the_point_of_no_return_is_refused_and_names_the_step(records: Records) -> None:
    operation = submitted(records, kind=STOP)
    held = claimed(records, operation.id)
    assert held is not None
    with records.begin() as session:
        operations.begin_step(session, operation.id, 0, claim_epoch=held.claim_epoch, now=records.now())
    with pytest.raises(TransitionRefused) as refused, records.begin() as session:
        operations.request_cancel(session, operation.id, actor="alice", now=records.now())
    assert refused.value.context["step"] == plans.DESCRIBE_STOPPED


def test_a_disk_is_being_cloned_until_what_makes_the_clone_has_ended(records: Records) -> None:
    for number, source in enumerate(("d1", "d2", None)):
        params = {"source": {"disk_id": source, "snapshot": "before"}} if source else {}
        with records.begin() as session:
            operations.submit(
                session,
                kind=CREATE,
                resource_id=f"clone-{number}",
                resource_name=f"clone-{number}",
                params=params,
                steps=(),
                requested_by="p",
                now=records.now(),
            )
    with records.read() as session:
        (making,) = operations.cloning(session, "d1")
    assert making.resource_id == "clone-0"
    with records.begin() as session:
        claimed = operations.claim(session, making.id, conductor="c", now=records.now(), ttl_s=TTL_S)
        assert claimed is not None
        operations.end(session, making.id, OperationEvent.SUCCEED, claim_epoch=claimed.claim_epoch, now=records.now())
    with records.read() as session:
        assert operations.cloning(session, "d1") == []


def test_a_page_is_newest_first_and_goes_on_after_its_marker(records: Records) -> None:
    made = [submitted(records, f"d{n}", after_s=n // 2) for n in range(5)]  # some of the same moment
    with records.read() as session:
        whole = operations.page(session, marker=None, limit=9)
        first = operations.page(session, marker=None, limit=2)
        rest = operations.page(session, marker=first[-1].id, limit=9)
        assert whole[0].id == made[-1].id
        assert [o.id for o in [*first, *rest]] == [o.id for o in whole]
        assert {o.id for o in whole} == {o.id for o in made}
        assert [o.resource_id for o in operations.page(session, marker=None, limit=9, resource_id="d3")] == ["d3"]
        assert operations.page(session, marker=None, limit=9, state=OperationState.FAILED) == []
        assert len(operations.page(session, marker=None, limit=9, kind=CREATE)) == 5
        with pytest.raises(InvalidInput):
            operations.page(session, marker="nobody", limit=9)


def test_an_event_is_written_or_not_together_with_its_change(records: Records) -> None:
    operation = submitted(records)

    def claim_and_fail() -> None:
        with records.begin() as session:
            operations.claim(session, operation.id, conductor="c1", now=records.now(), ttl_s=TTL_S)
            operations.get(session, "nobody")

    with pytest.raises(NotFound):
        claim_and_fail()
    assert kinds(records, operation.id) == ["operation.pending"]
    with records.read() as session:
        assert operations.get(session, operation.id) == operation


def run_all(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_steps_keep_their_order_and_deadlines(records: Records) -> None:
    operation = submitted(records)
    assert [Step(name=s.name, deadline_s=s.deadline_s) for s in operation.steps] == list(plans.steps_of(CREATE, Conductor()))
