"""/v1/tokens: who may use the API. A secret is in the answer to its creation and nowhere else, ever."""

from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from api.auth import Allowed, Caller
from api.context import ContextOf
from api.pages import PageOf
from api.rules import Body, Name
from sanderling.errors import InUse
from sanderling.records import tokens
from sanderling.records.tokens import Role

router = APIRouter(tags=["tokens"])

DAYS_MAX = 3650


class NewToken(Body):
    """Valid until it is deleted, unless it is given a number of days."""

    name: Name
    role: Literal["reader", "operator", "admin"]
    valid_days: Annotated[int | None, Field(ge=1, le=DAYS_MAX)] = None
    note: Annotated[str, Field(max_length=255)] = ""


@router.post("/v1/tokens", status_code=201)
def create(body: NewToken, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("token:create"))]) -> JSONResponse:
    """Make a token; `token` in the answer is shown this once."""
    now = context.clock.wall()
    expires_at = now + timedelta(days=body.valid_days) if body.valid_days else None
    with context.records.begin() as session:
        made, secret = tokens.create(
            session, name=body.name, role=Role(body.role), now=now, actor=caller.name, expires_at=expires_at, note=body.note
        )
    context.changed()
    return JSONResponse(made.model_dump(mode="json") | {"token": secret}, 201, headers={"Cache-Control": "no-store"})


@router.get("/v1/tokens")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("token:read"))], page: PageOf) -> dict[str, Any]:
    """Tokens by name, without their secrets."""
    with context.records.read() as session:
        found = tokens.page(session, marker=page.marker, limit=page.limit)
    return page.of("tokens", [token.model_dump(mode="json") for token in found], marker=found[-1].name if found else None)


@router.delete("/v1/tokens/{token}", status_code=204)
def delete(token: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("token:delete"))]) -> Response:
    """Refuse the token, by name or id, from now on; not the one that asks, so that nobody is locked out by a slip."""
    with context.records.begin() as session:
        removed = tokens.remove(session, token, now=context.clock.wall(), actor=caller.name)
        if removed.name == caller.name:
            raise InUse(f"{removed.name} is the token of this very request; delete it with another one")
    context.changed()
    return Response(status_code=204)
