"""How every change is taken in: checked, written with its operation in one transaction, answered with 202, cast afterwards."""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final

import structlog
from fastapi import Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api import situations
from api.auth import Caller, bearer
from api.context import Context, ContextOf
from api.disks import show
from api.limits import BODY_DIGEST
from api.metrics import TRACEPARENT
from api.problems import document
from api.situations import Seen
from sanderling.errors import PreconditionFailed, Problem, TooManyRequests
from sanderling.model.disks import Disk, DiskEvent, DiskState
from sanderling.model.moves import Move
from sanderling.model.operations import Operation, OperationKind
from sanderling.model.plans import Plan
from sanderling.records import assignments, disks, idempotency, marks, operations, turns
from sanderling.records.assignments import MOVES, Subject
from sanderling.records.tables import DiskRow

log = structlog.get_logger(__name__)
_ENDING_S: Final = 5  # in which some of very many operations will have ended; nobody can tell how many

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]


@dataclass(frozen=True, slots=True)
class Intent:
    """What a change comes to: the disk it is about and its state now, what happens to it first, and the steps that follow.

    `params` are what the steps go by, `change` is what of the disk is to be different. It may wait for what is at work on the
    disk, unless Consul or Ceph must be looked at before it begins.
    """

    disk: Disk
    state: DiskState
    plan: Plan
    begins: DiskEvent | None = None
    notes: Sequence[str] = field(default=())
    params: Mapping[str, Any] = field(default_factory=dict)
    change: Mapping[str, Any] | None = None
    may_wait: bool = True


@dataclass(frozen=True, slots=True)
class Accepted:
    """An operation that was submitted, and what to tell who asked for it."""

    operation: Operation
    notes: Sequence[str] = field(default=())
    line: Sequence[Operation] = field(default=())


class Change:
    """The headers and parameters that every changing request understands; a dependency of its route."""

    def __init__(
        self, request: Request, context: Context, *, dry_run: bool, idempotency_key: str | None, if_match: str | None
    ) -> None:
        self._context, self.dry_run, self._key, self._if_match = context, dry_run, idempotency_key, if_match
        self._trace: str = request.scope[TRACEPARENT]
        parts = (request.method, request.url.path, request.url.query, request.scope[BODY_DIGEST])
        # keyed with what the records do not hold: a secret in the body that a person chose could be found from its plain digest
        key = bearer(request).encode("utf-8", "surrogateescape")
        self._digest = hmac.new(key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()

    def admitted(self, caller: Caller, kind: OperationKind) -> JSONResponse | None:
        """The answer, when the Idempotency-Key was used for this very request before; nothing is checked again then.

        None when it is to be carried out; it has been counted, and `TooManyRequests` is raised when it is one too many.
        """
        if self.dry_run:
            return None
        if self._key is not None:
            with self._context.records.read() as session:
                repeated = self._repeated(session, caller)
                if repeated is not None:
                    return repeated
        self._context.rates.count(kind, caller.name)
        return None

    def decided(self, caller: Caller, kind: OperationKind, decide: Callable[[Seen], JSONResponse]) -> JSONResponse:
        """What `decide` makes of what is there now; a repeat gets its answer again, and nothing is looked at."""
        return self.admitted(caller, kind) or decide(situations.look(self._context))

    def check_match(self, session: Session, row: DiskRow) -> None:
        """`PreconditionFailed` when If-Match names another version of the disk than this."""
        wanted = [tag.strip() for tag in (self._if_match or "*").split(",")]
        version = etag(session, row)
        if "*" not in wanted and version not in wanted:
            raise PreconditionFailed(f"disk {row.name} has changed; read it again and decide anew", etag=version)

    @property
    def _queue_max(self) -> int:
        """How many may wait before this: none when it is to be of a certain version of the disk, which others would change."""
        return self._context.settings.api.queue_max if self._if_match in {None, "*"} else 0

    def carry_out(self, caller: Caller, prepare: Callable[[Session, datetime], Intent]) -> JSONResponse:
        """Run `prepare` and submit what it comes to; with ?dry_run=true take it back and return the plan."""
        if not self.dry_run:
            return self._submit(caller, lambda session, now: self._intended(session, prepare(session, now), caller, now))
        with self._context.records.begin() as session:
            now = self._context.clock.wall()
            intent = prepare(session, now)
            accepted = self._intended(session, intent, caller, now)
            plan = _planned(intent, disks.describe(disks.get(session, intent.disk.id)), accepted.line)
            session.rollback()
            return plan

    def _submit(self, caller: Caller, write: Callable[[Session, datetime], Accepted]) -> JSONResponse:
        """Run `write`, which submits an operation, in one transaction with the Idempotency-Key; never for a dry run.

        Once this returns 202 the operation is durable. Nothing here waits for the broker.
        """
        assert not self.dry_run, "a dry run submits nothing"
        now = self._context.clock.wall()
        with self._context.records.begin() as session:
            repeated = self._repeated(session, caller)
            if repeated is not None:
                return repeated
            accepted = write(session, now)
            if self._key is not None:
                idempotency.remember(
                    session, actor=caller.name, key=self._key, digest=self._digest, operation_id=accepted.operation.id, now=now
                )
        operation = accepted.operation
        self._context.changed(operation)
        log.info("accepted", operation_id=operation.id, kind=operation.kind, of=operation.resource_name, by=caller.name)
        return _accepted(operation, accepted.notes, accepted.line)

    def assign(
        self,
        caller: Caller,
        subject: Subject = MOVES,
        *,
        moves: Sequence[Move] = (),
        notes: Sequence[str] = (),
        check: Callable[[Session], None] = lambda _session: None,
        may_wait: bool = True,
    ) -> JSONResponse:
        """Submit the operation that does this; `check` may refuse it within the transaction. Never for a dry run."""
        queue_max = self._queue_max if may_wait else 0

        def write(session: Session, now: datetime) -> Accepted:
            check(session)
            self._refuse_too_many(session, subject.kind)
            line = operations.line(session, subject.resource_id) if queue_max else []
            operation = assignments.submit(
                session,
                subject,
                moves=moves,
                conductor=self._context.settings.conductor,
                requested_by=caller.name,
                now=now,
                traceparent=self._trace,
                queue_max=queue_max,
            )
            return Accepted(operation, notes, line)

        return self._submit(caller, write)

    def _refuse_too_many(self, session: Session, kind: OperationKind) -> None:
        """`TooManyRequests` when as many operations of the kind as there may be have not ended."""
        most = self._context.settings.api.open_operations_max
        if operations.count_open(session, kind, most=most) >= most:
            raise TooManyRequests(
                f"{most} operations {kind} have not ended, the most there may be; wait until some have, and ask again",
                retry_after_s=_ENDING_S,
                kind=kind.value,
            )

    def _repeated(self, session: Session, caller: Caller) -> JSONResponse | None:
        """The answer to a request that its key says was sent before: the operation, and its place in line, as they are now."""
        if self._key is None:
            return None
        known = idempotency.find(session, actor=caller.name, key=self._key, digest=self._digest)
        if known is None:
            return None
        operation = operations.get(session, known)
        line = operations.line(session, operation.resource_id) if operation.is_queued else []
        return _accepted(operation, (), [other for other in line if other.turn < operation.turn])

    def _intended(self, session: Session, intent: Intent, caller: Caller, now: datetime) -> Accepted:
        self._refuse_too_many(session, intent.plan.kind)
        queue_max = self._queue_max if intent.may_wait else 0
        operation = operations.submit(
            session,
            kind=intent.plan.kind,
            resource_id=intent.disk.id,
            resource_name=intent.disk.name,
            params={**intent.params, "was": intent.state.value},
            steps=intent.plan.steps,
            requested_by=caller.name,
            now=now,
            traceparent=self._trace,
            queue_max=queue_max,
            check=partial(turns.refuse_impossible, intent.plan.kind, intent.state),
        )
        if operation.is_queued:
            return Accepted(operation, intent.notes, operations.line(session, intent.disk.id)[:-1])
        if intent.begins is not None:
            disks.apply(session, intent.disk.id, intent.begins, now=now, actor=caller.name, operation_id=operation.id)
        if intent.change is not None:
            disks.change(session, intent.disk.id, intent.change, now=now, actor=caller.name, operation_id=operation.id)
        return Accepted(operation, intent.notes)


async def _change(  # a dependency that is no coroutine costs a thread
    request: Request,
    context: ContextOf,
    dry_run: Annotated[bool, Query(description="Return the plan and change nothing")] = False,
    idempotency_key: Key = None,
    if_match: Annotated[str | None, Header(alias="If-Match", max_length=1024)] = None,
) -> Change:
    return Change(request, context, dry_run=dry_run, idempotency_key=idempotency_key, if_match=if_match)


ChangeOf = Annotated[Change, Depends(_change)]


def etag(session: Session, row: DiskRow) -> str:
    """Changes with whatever is stored of the disk, its marks included."""
    marked = marks.of(session, row.id)
    version = f"{row.id} {row.state} {row.revision} {row.generation} {row.started} {row.changed_at.timestamp()} {marked}"
    return f'"{hashlib.sha256(version.encode()).hexdigest()[:20]}"'


_HIDDEN: Final = {"params", "claim_epoch", "claimed_at", "claimed_until", "cast_at", "turn"}  # the explanation tells of the claim


def show_operation(operation: Operation) -> dict[str, Any]:
    """The operation as HTTP shows it: its problem as a problem document, its resource as a link."""
    shown = operation.model_dump(mode="json", exclude=_HIDDEN)
    shown["resource"] = _resource(operation)
    for part, problem in [(shown, operation.problem), *zip(shown["steps"], (s.problem for s in operation.steps), strict=True)]:
        if problem is not None:
            part["problem"] = document(Problem.from_wire(problem), instance=f"/v1/operations/{operation.id}")
    return shown


def _resource(operation: Operation) -> str:
    match operation.kind:
        case OperationKind.ASSIGN_PATHS | OperationKind.DRAIN_GATEWAY:
            return f"/v1/assignments/{operation.id}"
        case OperationKind.UNDRAIN_GATEWAY:
            return f"/v1/gateways/{operation.params['gateway']}"
        case OperationKind.RECOVER_DISKS:
            return "/v1/disks"
    return f"/v1/disks/{operation.resource_id}"


def _accepted(operation: Operation, notes: Sequence[str], line: Sequence[Operation] = ()) -> JSONResponse:
    """`position` and `waits_for`, the operation right before it, are told of one that is queued."""
    body = show_operation(operation) | {"notes": [*notes, *_waiting(line)]}
    if line:
        body |= {"position": len(line), "waits_for": line[-1].id}
    return JSONResponse(body, 202, headers={"Location": f"/v1/operations/{operation.id}"})


def _waiting(line: Sequence[Operation]) -> list[str]:
    if not line:
        return []
    return [f"queued: it begins when operation {line[-1].id} ({line[-1].kind}) has ended, as number {len(line)} in line"]


def _planned(intent: Intent, disk: Disk, line: Sequence[Operation]) -> JSONResponse:
    body = {
        "dry_run": True,
        "plan": intent.plan.model_dump(mode="json"),
        "disk": show(disk),
        "notes": [*intent.notes, *_waiting(line)],
    }
    return JSONResponse(body, 200)
