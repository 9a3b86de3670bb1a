"""/v1/notifications: who is told of which events. A rule's URL is a secret: it is stored sealed and never shown again."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field

from api import rules
from api.auth import Allowed, Caller
from api.context import ContextOf
from api.pages import PageOf
from api.rules import Body, Name
from sanderling.model.notifications import DEFAULT_KINDS, KINDS_MAX, PATTERN, is_silent
from sanderling.records import notifications

router = APIRouter(tags=["notifications"])

URL_MAX = 2048


def _kind(value: str) -> str:
    if not PATTERN.fullmatch(value):
        raise rules.refused("is no kind of event, nor a pattern of kinds", "give e.g. disk.failed or alert.*")
    if is_silent(value):
        raise rules.refused("is of notification itself, which nobody is told of", "leave it out; look at the rule instead")
    return value


Kind = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_kind)]


class NewRule(Body):
    """Which kinds of events, by patterns with `*`, are told to which receiver: a URL of apprise."""

    name: Name
    kinds: Annotated[list[Kind], Field(min_length=1, max_length=KINDS_MAX, default_factory=lambda: list(DEFAULT_KINDS))]
    url: Annotated[str, Field(min_length=1, max_length=URL_MAX, repr=False)]


@router.post("/v1/notifications", status_code=201)
def create(body: NewRule, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("notification:create"))]) -> JSONResponse:
    """Tell the receiver of every such event from now on."""
    from sanderling import receivers  # noqa: PLC0415  a second of imports that no other request needs

    receiver = receivers.check(body.url, context.settings.notifications)
    sealed = context.keyring.seal(body.url)
    with context.records.begin() as session:
        made = notifications.create(
            session,
            name=body.name,
            kinds=body.kinds,
            sealed_url=sealed,
            receiver=receiver,
            now=context.clock.wall(),
            actor=caller.name,
            rules_max=context.settings.notifications.rules_max,
        )
    context.changed()
    return JSONResponse(made.model_dump(mode="json"), 201, headers={"Location": f"/v1/notifications/{made.name}"})


@router.get("/v1/notifications")
def index(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("notification:read"))], page: PageOf) -> dict[str, Any]:
    """Rules by name, with how far each has come."""
    with context.records.read() as session:
        found = notifications.page(session, marker=page.marker, limit=page.limit)
    return page.of("notifications", [rule.model_dump(mode="json") for rule in found], marker=found[-1].name if found else None)


@router.get("/v1/notifications/{rule}")
def show(rule: str, context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("notification:read"))]) -> dict[str, Any]:
    """`behind` events wait (counted to 1000); `last_error` is of the last attempt, unless that was delivered."""
    with context.records.read() as session:
        return notifications.get(session, rule).model_dump(mode="json")


@router.post("/v1/notifications/{rule}/test", status_code=202)
def test(rule: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("notification:test"))]) -> dict[str, Any]:
    """Have the leader send one message by this rule, behind what waits already. It has arrived once `cursor` is at `event`."""
    with context.records.begin() as session:
        event_id = notifications.request_test(session, rule, now=context.clock.wall(), actor=caller.name)
        found = notifications.get(session, rule)
    context.changed()
    return {"event": event_id, "notification": found.model_dump(mode="json")}


@router.delete("/v1/notifications/{rule}", status_code=204)
def delete(rule: str, context: ContextOf, caller: Annotated[Caller, Depends(Allowed("notification:delete"))]) -> Response:
    """Tell its receiver of nothing more; what waited is not sent."""
    with context.records.begin() as session:
        notifications.remove(session, rule, now=context.clock.wall(), actor=caller.name)
    context.changed()
    return Response(status_code=204)
