"""/v1/leaders: who leads each service. "Nobody" is an answer; when it cannot be known the answer is 503."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api.auth import Allowed, Caller
from api.context import ContextOf
from sanderling.coordination.leaders import leader_of

router = APIRouter(tags=["leaders"])

SERVICES = ("sanderling-leader",)


@router.get("/v1/leaders")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("leader:read"))]) -> dict[str, Any]:
    """Each service with its leader, or null when nobody leads it now."""
    found = {service: context.coordination.ask(lambda c, service=service: leader_of(c, service)) for service in SERVICES}
    return {"leaders": found}
