"""/v1/assignments: which paths go to which gateway: planned, applied, cancelled, undone, and the history of it all."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from api import assignments, plans, rules
from api.assignments import MANUAL
from api.auth import Allowed, Caller
from api.changes import Change, ChangeOf, show_operation
from api.context import Context, ContextOf
from api.pages import PageOf
from api.plans import Planned
from api.policy import RIGHT_TO_ASK
from api.rules import Address, Body
from api.situations import Seen
from sanderling.errors import InvalidInput, NotFound
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import Operation, OperationKind, OperationState
from sanderling.model.plans import ASSIGNMENTS
from sanderling.records import gaps, moves, operations
from sanderling.records import plans as recorded

router = APIRouter(tags=["assignments"])

PATHS_MAX = 1000
Planning = Annotated[Caller, Depends(Allowed("assignment:plan"))]


class NewAssignment(Body):
    """Either `plan_id`, or a `planner`: `average`, a plugin's name, or `manual`, which needs `paths` and `gateway`.

    With another planner `paths` means: place just these as well as possible.
    """

    plan_id: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    planner: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    paths: Annotated[list[Address] | None, Field(min_length=1, max_length=PATHS_MAX)] = None
    gateway: Annotated[str | None, Field(min_length=1, max_length=255)] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.plan_id is not None and (self.planner, self.paths, self.gateway) != (None, None, None):
            raise rules.refused("contradicts the other fields", "give a plan_id alone, or leave it out", field="plan_id")
        if self.plan_id is None and self.planner is None:
            raise rules.refused("is required", "give average, manual or another planner; or a plan_id", field="planner")
        if self.planner == MANUAL:
            for field in ("paths", "gateway"):
                if getattr(self, field) is None:
                    raise rules.refused("is required by the planner manual", "give it, or use average", field=field)
        elif self.gateway is not None:
            raise rules.refused("only goes with the planner manual", "leave it out, or use manual", field="gateway")
        return self


@router.get("/v1/assignments")
def index(
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("assignment:read"))],
    page: PageOf,
    state: OperationState | None = None,
) -> dict[str, Any]:
    """Everything that moved paths, drains of gateways too, newest first, with how many of its moves are in which state."""
    with context.records.read() as session:
        found = operations.page(session, marker=page.marker, limit=page.limit, resource_id=ASSIGNMENTS, state=state)
        counts = moves.counts(session, [operation.id for operation in found])
    shown = [_show(operation, counts[operation.id]) for operation in found]
    return page.of("assignments", shown, marker=found[-1].id if found else None)


@router.get("/v1/assignments/{assignment}")
def show(
    assignment: str,
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("assignment:read"))],
    page: PageOf,
    state: MoveState | None = None,
) -> dict[str, Any]:
    """One of them with its moves, in the order in which they are begun, a page at a time; `state` filters the moves."""
    after = _position(page.marker)
    with context.records.read() as session:
        operation = _get(session, assignment)
        found = moves.page(session, operation.id, after=after, limit=page.limit, state=state)
        counts = moves.counts(session, [operation.id])[operation.id]
    paged = page.of("moves", [_show_move(move) for move in found], marker=str(found[-1].position) if found else None)
    return _show(operation, counts) | paged


@router.post("/v1/assignments", status_code=202)
def create(body: NewAssignment, context: ContextOf, caller: Planning, change: ChangeOf) -> JSONResponse:
    """Move paths. With ?dry_run=true show what would be done, under an id that applies just that for as long as it holds.

    When there is nothing to do the answer is 200 with an empty plan, and no operation.
    """

    def plan(session: Session, seen: Seen) -> Planned:
        if body.plan_id is not None:
            kept = recorded.get(session, body.plan_id, now=context.clock.wall(), keep_s=context.settings.api.plan_keep_s)
            return plans.stored(seen, kept)
        if body.planner == MANUAL:
            assert body.paths is not None
            assert body.gateway is not None
            return assignments.manual(session, seen, body.paths, body.gateway)
        assert body.planner is not None
        return assignments.automatic(session, seen, body.planner, body.paths)

    return _move(context, caller, change, plan, plan_id=body.plan_id, may_wait=body.plan_id is None)


@router.post("/v1/assignments/{assignment}/cancel", status_code=202)
def cancel(
    assignment: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("assignment:apply"))]
) -> dict[str, Any]:
    """Begin no further move. Those under way come to their end, and what has been moved stays: undo is a request of its own."""
    with context.records.begin() as session:
        operation = _get(session, assignment)
        context.policy.check(RIGHT_TO_ASK[operation.kind], caller.role)
        asked = operations.request_cancel(session, operation.id, actor=caller.name, now=context.clock.wall())
        counts = moves.counts(session, [operation.id])[operation.id]
    context.changed()
    return _show(asked, counts)


@router.post("/v1/assignments/{assignment}/undo", status_code=202)
def undo(assignment: str, context: ContextOf, caller: Planning, change: ChangeOf) -> JSONResponse:
    """Move back what the newest assignment that moved something has moved; ?dry_run=true shows it as a plan."""
    return _move(context, caller, change, lambda session, seen: assignments.reverse(session, seen, _get(session, assignment)))


def _move(
    context: Context,
    caller: Caller,
    change: Change,
    plan: Callable[[Session, Seen], Planned],
    *,
    plan_id: str | None = None,
    may_wait: bool = False,
) -> JSONResponse:
    """The operation that makes the moves; for a dry run, or when there are none, the plan, which a dry run keeps under an id.

    What is asked for because of how things are now, a plan that was shown or an undo, does not wait for what would change them.
    """
    if not change.dry_run:
        context.policy.check("assignment:apply", caller.role)

    def decide(seen: Seen) -> JSONResponse:
        with context.records.read() as session:
            if not change.dry_run and not (may_wait and context.settings.api.queue_max):
                operations.refuse_second(session, ASSIGNMENTS)  # only the insert decides; this is the better answer before it
            planned = plan(session, seen)
        if planned.moves and not change.dry_run:
            return change.assign(caller, moves=planned.moves, notes=planned.notes, may_wait=may_wait)
        if not change.dry_run:
            with context.records.read() as session:
                operations.refuse_second(session, ASSIGNMENTS)  # it is so now, and may not be when that has ended
        kept_as = plan_id or (_keep(context, planned) if change.dry_run else None)
        with context.records.read() as session:
            measured = gaps.recent(session, limit=context.settings.api.gaps_max)
        return JSONResponse(plans.document(planned, measured, plan_id=kept_as, dry_run=change.dry_run), 200)

    return change.decided(caller, OperationKind.ASSIGN_PATHS, decide)


def _keep(context: Context, planned: Planned) -> str:
    with context.records.begin() as session:
        return recorded.insert(
            session,
            request=planned.request,
            layout=planned.seen.layout,
            moves=planned.moves,
            now=context.clock.wall(),
            keep_s=context.settings.api.plan_keep_s,
        )


def _get(session: Session, assignment: str) -> Operation:
    operation = operations.get(session, assignment)
    if operation.resource_id != ASSIGNMENTS:
        raise NotFound(
            f"operation {operation.id} assigns no paths; GET /v1/assignments lists those that do", operation_id=operation.id
        )
    return operation


def _show(operation: Operation, counts: Mapping[MoveState, int]) -> dict[str, Any]:
    return show_operation(operation) | {"counts": {state.value: count for state, count in counts.items()}}


def _show_move(move: Move) -> dict[str, Any]:
    shown = move.model_dump(mode="json", exclude={"disk_name", "addresses", "source", "destination"})
    named = {"disk": move.disk_name, "paths": list(move.addresses), "from": move.source or None, "to": move.destination}
    return shown | named


def _position(marker: str | None) -> int | None:
    if marker is None:
        return None
    if not (marker.isascii() and marker.isdigit() and len(marker) < 10):
        raise InvalidInput.of("marker", "is not where a page ended", "use the next link of the page before")
    return int(marker)
