"""/v1/operations/{operation}/explain: why it is where it is. A part that does not answer is a part of the answer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends

from api import serving
from api.auth import Allowed, Caller
from api.context import Context, ContextOf
from api.explanations import Explanation, explain
from api.waits import Facts
from sanderling.errors import NotFound, Problem
from sanderling.model.disks import image_of
from sanderling.records import claims, disks, moves, operations
from sanderling.records.tables import DiskRow

router = APIRouter(tags=["operations"])


@router.get("/v1/operations/{operation}/explain")
def show(operation: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("operation:read"))]) -> Explanation:
    """Who has the operation, what it waits for as it is now, the next deadline, and what is safe to do."""
    facts = _recorded(context, operation)
    return explain(facts if facts.operation.ended else _with_images(context, _with_coordination(context, facts)))


def _recorded(context: Context, operation_id: str) -> Facts:
    """What the records tell."""
    own, now = context.settings.conductor, context.clock.wall()
    with context.records.read() as session:
        operation = operations.get(session, operation_id)
        row = session.get(DiskRow, operation.resource_id) if operation.kind.changes_disk else None
        return Facts(
            operation=operation,
            standing=claims.standing(session, operation, now=now, ttl_s=own.claim_ttl_s),
            now=now,
            own=own,
            broker=context.outbox.reason,
            disk=disks.describe(row) if row is not None else None,
            moves=moves.of(session, operation_id),
        )


def _with_coordination(context: Context, facts: Facts) -> Facts:
    disk_id = facts.operation.resource_id if facts.operation.kind.changes_disk else None
    try:
        found = serving.exports(context, disk_id=disk_id)
        return replace(facts, serving=found, gateways=serving.gateways(context))
    except Problem as problem:
        return replace(facts, serving=None, gateways=None, away=_away(facts, "coordination", problem))


def _with_images(context: Context, facts: Facts) -> Facts:
    image = image_of(facts.operation.resource_id)
    try:
        if facts.operation.kind.changes_disk:
            return replace(facts, openers=context.images.ask(lambda images: images.clients(image)))
        context.images.ask(lambda images: images.ping())
    except NotFound:
        return replace(facts, openers=())
    except Problem as problem:
        return replace(facts, away=_away(facts, "images", problem))
    return facts


def _away(facts: Facts, part: str, problem: Problem) -> Mapping[str, str]:
    return {**facts.away, part: problem.detail}
