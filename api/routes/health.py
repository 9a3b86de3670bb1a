"""/healthz, /readyz, /metrics, /problems, /openapi.json: what a supervisor, a load balancer and a newcomer ask.

The first two are open to everybody, because who asks them holds no token; they tell no more than that a part is away.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from sqlalchemy import func, select

from api import problems, situations
from api.auth import Allowed, Caller, everybody
from api.context import Context, ContextOf
from sanderling.errors import Unavailable
from sanderling.model import balance
from sanderling.records import gaps
from sanderling.records.tables import DiskRow, OperationRow

router = APIRouter(tags=["service"])

_QUANTILES: Final = (0.5, 0.99, 1.0)


@router.get("/healthz", dependencies=[Depends(everybody)])
def healthz() -> dict[str, str]:
    """This process lives and answers; nothing is said of what it depends on."""
    return {"status": "ok"}


@router.get("/readyz", dependencies=[Depends(everybody)])
def readyz(context: ContextOf) -> JSONResponse:
    """Whether each part that requests need can be reached. The broker is not one: without it, work is only delayed."""
    parts = {
        "records": _state(context.records.ping),
        "coordination": _state(lambda: context.coordination.ask(lambda c: c.get("readyz"))),
        "images": _state(lambda: context.images.ask(lambda images: images.ping())),
    }
    ready = all(part["ready"] for part in parts.values())
    return JSONResponse({"ready": ready, "parts": parts}, 200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(context: ContextOf, _caller: Annotated[Caller, Depends(Allowed("metrics:read"))]) -> Response:
    """Prometheus's text format. A scraper needs a token of the role reader."""
    _count(context)
    _measure_gaps(context)
    _measure_spread(context)
    return Response(context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/problems/{code}", dependencies=[Depends(everybody)])
def problem(code: str) -> HTMLResponse:
    """What a problem means."""
    return HTMLResponse(problems.page(code))


@router.get("/openapi.json", dependencies=[Depends(everybody)], include_in_schema=False)
def openapi(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


def _state(ask: Callable[[], object]) -> dict[str, Any]:
    try:
        ask()
    except Unavailable as problem:
        return {"ready": False, "reason": problem.detail}
    return {"ready": True}


def _measure_gaps(context: Context) -> None:
    with context.records.read() as session:
        found = gaps.recent(session, limit=context.settings.api.gaps_max)
    context.metrics.gaps.clear()
    for kind, seconds in (("move", found.moves), ("failover", found.failovers), ("restart", found.restarts)):
        for part in _QUANTILES if seconds else ():
            context.metrics.gaps.labels(kind, f"{part:g}").set(gaps.quantile(seconds, part) or 0.0)


def _measure_spread(context: Context) -> None:
    """Who serves how much, and the N-1 score; while coordination cannot be read neither is known."""
    context.metrics.exports.clear()
    try:
        layout = situations.look(context).layout
    except Unavailable:
        context.metrics.exposed.set(math.nan)
        return
    for gateway, count in balance.distribution(layout).counts.items():
        context.metrics.exports.labels(gateway).set(count)
    score = balance.score(layout)
    context.metrics.exposed.set(max(map(len, (score.unserved, *score.losses.values()))))


def _count(context: Context) -> None:
    gauges = context.metrics
    with context.records.read() as session:
        disks = session.execute(select(DiskRow.state, func.count()).group_by(DiskRow.state)).all()
        counted = select(OperationRow.state, func.count(), func.min(OperationRow.created_at))
        operations = session.execute(counted.where(OperationRow.ended_at.is_(None)).group_by(OperationRow.state)).all()
        uncast = select(func.count(), func.min(OperationRow.created_at)).where(OperationRow.cast_at.is_(None))
        waiting, longest = session.execute(uncast).one()
    now = context.records.now()
    gauges.disks.clear()
    gauges.open.clear()
    for state, count in disks:
        gauges.disks.labels(state).set(count)
    gauges.oldest.clear()
    for state, count, oldest in operations:
        gauges.open.labels(state).set(count)
        gauges.oldest.labels(state).set((now - oldest).total_seconds())
    gauges.waiting.set(waiting)
    gauges.longest_waiting.set((now - longest).total_seconds() if longest else 0.0)
    gauges.streams.set(context.feed.subscribers)
