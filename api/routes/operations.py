"""/v1/operations: what has been asked for and how far it is, and asking that it be undone."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.auth import Allowed, Caller
from api.changes import show_operation
from api.context import ContextOf
from api.pages import PageOf
from api.policy import RIGHT_TO_ASK
from sanderling.model.operations import OperationKind, OperationState
from sanderling.records import operations

router = APIRouter(tags=["operations"])


@router.get("/v1/operations")
def index(
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("operation:read"))],
    page: PageOf,
    resource_id: Annotated[str | None, Query(max_length=64)] = None,
    state: OperationState | None = None,
    kind: OperationKind | None = None,
) -> dict[str, Any]:
    """Operations, newest first."""
    with context.records.read() as session:
        found = operations.page(session, marker=page.marker, limit=page.limit, resource_id=resource_id, state=state, kind=kind)
    return page.of("operations", [show_operation(operation) for operation in found], marker=found[-1].id if found else None)


@router.get("/v1/operations/{operation}")
def show(operation: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("operation:read"))]) -> dict[str, Any]:
    with context.records.read() as session:
        return show_operation(operations.get(session, operation))


@router.post("/v1/operations/{operation}/cancel", status_code=202)
def cancel(operation: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("operation:cancel"))]) -> dict[str, Any]:
    """Ask that it be undone. One that nobody has begun is cancelled at once; another is when its conductor comes to it.

    It takes the right to ask for such an operation as well.
    """
    with context.records.begin() as session:
        context.policy.check(RIGHT_TO_ASK[operations.get(session, operation).kind], caller.role)
        asked = operations.request_cancel(session, operation, actor=caller.name, now=context.clock.wall())
    context.changed()
    return show_operation(asked)
