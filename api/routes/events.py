"""/v1/events: the history, as a stream that goes on where its reader left off, or as pages."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from api.auth import Allowed, Caller
from api.context import Context, ContextOf
from api.feed import Read
from api.pages import LimitOf, link
from sanderling.errors import InvalidInput
from sanderling.records import events
from sanderling.records.events import Event

router = APIRouter(tags=["events"])

Position = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="Only events with a greater id")]


@router.get("/v1/events")
def index(
    request: Request,
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("event:read"))],
    limit: LimitOf,
    after: Position = None,
    resource_id: Annotated[str | None, Query(max_length=64)] = None,
    operation_id: Annotated[str | None, Query(max_length=64)] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
) -> Response:
    """A stream (text/event-stream), from now on or from `after` or Last-Event-ID on; or a page, oldest first.

    A page is given when Accept names application/json, or names no stream and `after` is given.
    """

    def read(position: int) -> list[Event]:
        with context.records.read() as session:
            return events.page(session, after=position, limit=limit, resource_id=resource_id, operation_id=operation_id)

    accept = request.headers.get("accept", "")
    if "text/event-stream" not in accept and ("application/json" in accept or after is not None):
        found = read(after or 0)
        last = found[-1].id if found else after or 0
        following = link(request, limit=limit, after=last) if len(found) == limit else None
        return JSONResponse({"events": [event.model_dump(mode="json") for event in found], "last": last, "next": following})
    context.feed.admit()
    return EventSourceResponse(
        _stream(context, _start(context, after, last_event_id), read), send_timeout=context.settings.api.subscriber_timeout_s
    )


async def _stream(context: Context, after: int, read: Read) -> AsyncIterator[ServerSentEvent]:
    async for event in context.feed.follow(after, read):
        yield ServerSentEvent(event.model_dump_json(), event=event.kind, id=str(event.id))


def _start(context: Context, after: int | None, last_event_id: str | None) -> int:
    if last_event_id is not None:
        if not (last_event_id.isascii() and last_event_id.isdigit()) or int(last_event_id) >= 2**63:
            raise InvalidInput.of("Last-Event-ID", "is not the id of an event", "send the id of the last event you read")
        return int(last_event_id)
    if after is not None:
        return after
    with context.records.read() as session:
        return events.newest(session)
