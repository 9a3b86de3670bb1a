"""How every change is taken in: checked, written with its operation in one transaction, answered with 202, cast afterwards."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api import situations
from api.auth import Caller
from api.context import ContextOf
from api.disks import show
from api.limits import BODY_DIGEST
from api.metrics import TRACEPARENT
from api.problems import document
from api.situations import Seen
from sanderling.errors import PreconditionFailed, Problem
from sanderling.model.disks import DiskEvent, DiskState
from sanderling.model.moves import Move
from sanderling.model.operations import Operation, OperationKind
from sanderling.model.plans import Plan
from sanderling.records import assignments, disks, idempotency, marks, operations
from sanderling.records.assignments import MOVES, Subject
from sanderling.records.tables import DiskRow

log = structlog.get_logger(__name__)

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]


@dataclass(frozen=True, slots=True)
class Intent:
    """What a change comes to: the disk it is about, as it is written, what happens to it first, and the steps that follow.

    `params` are what the steps go by, `change` is what of the disk is to be different.
    """

    row: DiskRow
    was: DiskState
    plan: Plan
    begins: DiskEvent | None = None
    notes: Sequence[str] = field(default=())
    params: Mapping[str, Any] = field(default_factory=dict)
    change: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """An operation that was submitted, and what to tell who asked for it."""

    operation: Operation
    notes: Sequence[str] = field(default=())


class Change:
    """The headers and parameters that every changing request understands; a dependency of its route."""

    def __init__(
        self,
        request: Request,
        context: ContextOf,
        dry_run: Annotated[bool, Query(description="Return the plan and change nothing")] = False,
        idempotency_key: Key = None,
        if_match: Annotated[str | None, Header(alias="If-Match", max_length=1024)] = None,
    ) -> None:
        self._context, self.dry_run, self._key, self._if_match = context, dry_run, idempotency_key, if_match
        self._trace: str = request.scope[TRACEPARENT]
        parts = (request.method, request.url.path, request.url.query, request.scope[BODY_DIGEST])
        self._digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def repeated(self, caller: Caller) -> JSONResponse | None:
        """The answer, when the Idempotency-Key was used for this very request before; nothing is checked again then."""
        if self._key is None or self.dry_run:
            return None
        with self._context.records.read() as session:
            known = self._known(session, caller)
            return _accepted(operations.get(session, known), ()) if known else None

    def decided(self, caller: Caller, decide: Callable[[Seen], JSONResponse]) -> JSONResponse:
        """What `decide` makes of what is there now; a repeat gets its answer again, and nothing is looked at."""
        return self.repeated(caller) or decide(situations.look(self._context))

    def check_match(self, session: Session, row: DiskRow) -> None:
        """`PreconditionFailed` when If-Match names another version of the disk than this."""
        wanted = [tag.strip() for tag in (self._if_match or "*").split(",")]
        version = etag(session, row)
        if "*" not in wanted and version not in wanted:
            raise PreconditionFailed(f"disk {row.name} has changed; read it again and decide anew", etag=version)

    def carry_out(self, caller: Caller, prepare: Callable[[Session, datetime], Intent]) -> JSONResponse:
        """Run `prepare` and submit what it comes to; with ?dry_run=true take it back and return the plan."""
        if not self.dry_run:
            return self._submit(caller, lambda session, now: self._intended(session, prepare(session, now), caller, now))
        with self._context.records.begin() as session:
            now = self._context.clock.wall()
            intent = prepare(session, now)
            self._intended(session, intent, caller, now)
            plan = _planned(intent)
            session.rollback()
            return plan

    def _submit(self, caller: Caller, write: Callable[[Session, datetime], Accepted]) -> JSONResponse:
        """Run `write`, which submits an operation, in one transaction with the Idempotency-Key; never for a dry run.

        Once this returns 202 the operation is durable. Nothing here waits for the broker.
        """
        assert not self.dry_run, "a dry run submits nothing"
        now = self._context.clock.wall()
        with self._context.records.begin() as session:
            known = self._known(session, caller)
            if known is not None:
                return _accepted(operations.get(session, known), ())
            accepted = write(session, now)
            if self._key is not None:
                idempotency.remember(
                    session, actor=caller.name, key=self._key, digest=self._digest, operation_id=accepted.operation.id, now=now
                )
        self._context.changed()
        operation = accepted.operation
        log.info("accepted", operation_id=operation.id, kind=operation.kind, of=operation.resource_name, by=caller.name)
        return _accepted(operation, accepted.notes)

    def assign(
        self,
        caller: Caller,
        subject: Subject = MOVES,
        *,
        moves: Sequence[Move] = (),
        notes: Sequence[str] = (),
        check: Callable[[Session], None] = lambda _session: None,
    ) -> JSONResponse:
        """Submit the operation that does this; `check` may refuse it within the transaction. Never for a dry run."""

        def write(session: Session, now: datetime) -> Accepted:
            check(session)
            operation = assignments.submit(
                session,
                subject,
                moves=moves,
                conductor=self._context.settings.conductor,
                requested_by=caller.name,
                now=now,
                traceparent=self._trace,
            )
            return Accepted(operation, notes)

        return self._submit(caller, write)

    def _known(self, session: Session, caller: Caller) -> str | None:
        if self._key is None:
            return None
        return idempotency.find(session, actor=caller.name, key=self._key, digest=self._digest)

    def _intended(self, session: Session, intent: Intent, caller: Caller, now: datetime) -> Accepted:
        operation = operations.submit(
            session,
            kind=intent.plan.kind,
            resource_id=intent.row.id,
            resource_name=intent.row.name,
            params={**intent.params, "was": intent.was.value},
            steps=intent.plan.steps,
            requested_by=caller.name,
            now=now,
            traceparent=self._trace,
        )
        if intent.begins is not None:
            disks.apply(session, intent.row.id, intent.begins, now=now, actor=caller.name, operation_id=operation.id)
        if intent.change is not None:
            disks.change(session, intent.row.id, intent.change, now=now, actor=caller.name, operation_id=operation.id)
        return Accepted(operation, intent.notes)


ChangeOf = Annotated[Change, Depends(Change)]


def etag(session: Session, row: DiskRow) -> str:
    """Changes with whatever is stored of the disk, its marks included."""
    marked = marks.of(session, row.id)
    version = f"{row.id} {row.state} {row.revision} {row.generation} {row.started} {row.changed_at.timestamp()} {marked}"
    return f'"{hashlib.sha256(version.encode()).hexdigest()[:20]}"'


def show_operation(operation: Operation) -> dict[str, Any]:
    """The operation as HTTP shows it: its problem as a problem document, its resource as a link."""
    shown = operation.model_dump(mode="json", exclude={"params", "claim_epoch"})
    shown["resource"] = _resource(operation)
    if operation.problem is not None:
        shown["problem"] = document(Problem.from_wire(operation.problem), instance=f"/v1/operations/{operation.id}")
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


def _accepted(operation: Operation, notes: Sequence[str]) -> JSONResponse:
    body = show_operation(operation) | {"notes": list(notes)}
    return JSONResponse(body, 202, headers={"Location": f"/v1/operations/{operation.id}"})


def _planned(intent: Intent) -> JSONResponse:
    body = {
        "dry_run": True,
        "plan": intent.plan.model_dump(mode="json"),
        "disk": show(disks.describe(intent.row)),
        "notes": list(intent.notes),
    }
    return JSONResponse(body, 200)
