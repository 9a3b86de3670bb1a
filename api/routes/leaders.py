"""/v1/leaders: who leads each service. "Nobody" is an answer; when it cannot be known the answer is 503."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api.auth import Allowed, Caller
from api.context import ContextOf
from sanderling.coordination import leaders
from sanderling.model.leaders import Leader

router = APIRouter(tags=["leaders"])


@router.get("/v1/leaders")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("leader:read"))]) -> dict[str, Any]:
    """Every service that ever had a leader; `leader` is null when nobody leads it now."""
    found = context.coordination.ask(leaders.leaders)
    return {"leaders": [_show(service, leader) for service, leader in sorted(found.items())]}


@router.get("/v1/leaders/{service}")
def show(service: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("leader:read"))]) -> dict[str, Any]:
    """One service, also one that never had a leader."""
    return _show(service, context.coordination.ask(lambda coordination: leaders.leader_of(coordination, service)))


def _show(service: str, leader: Leader | None) -> dict[str, Any]:
    return {"service": service, "leader": None if leader is None else leader.model_dump(mode="json")}
