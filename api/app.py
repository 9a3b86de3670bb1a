"""Puts the API together: routes, limits, problems, and the two threads that work beside the requests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api import documentation, problems
from api.asking import Asked
from api.auth import check_routes
from api.context import Context
from api.feed import Feed
from api.limits import BodyLimit
from api.metrics import Metrics, Observed
from api.outbox import Outbox
from api.policy import Policy
from api.rates import Rates
from api.routes import (
    assignments,
    disks,
    events,
    explanations,
    gateways,
    health,
    initiators,
    leaders,
    marks,
    notifications,
    operations,
    paths,
    recoveries,
    snapshots,
    statistics,
    subnets,
    tokens,
    whatif,
)
from rpc.bus import Bus
from rpc.news import News
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.images.base import Images
from sanderling.records.database import Records
from sanderling.secrets import Keyring
from sanderling.settings import Settings

_NOUNS = (
    disks,
    marks,
    recoveries,
    snapshots,
    initiators,
    paths,
    assignments,
    whatif,
    subnets,
    gateways,
    operations,
    explanations,
    events,
    leaders,
    statistics,
    notifications,
    tokens,
    health,
)
ROUTERS = [module.router for module in _NOUNS]


def create_app(
    settings: Settings,
    *,
    records: Records,
    coordination: Coordination,
    images: Images,
    bus: Bus,
    news: News,
    clock: Clock,
) -> FastAPI:
    """The app; its lifespan starts and stops its threads. `SettingsRefused` when routes and policy do not agree, or limits
    cannot be read."""
    options = settings.api
    context = Context(
        settings=settings,
        records=records,
        coordination=Asked("coordination", coordination, timeout_s=options.dependency_timeout_s, clock=clock),
        images=Asked("images", images, timeout_s=options.dependency_timeout_s, clock=clock),
        policy=Policy(options.policy_file),
        rates=Rates(options.rate_limits),
        outbox=Outbox(options, records=records, bus=bus, clock=clock),
        news=news,
        feed=Feed(options, records=records, news=news, clock=clock),
        metrics=Metrics(),
        keyring=Keyring(settings.secrets),
        clock=clock,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        context.feed.start()
        context.outbox.start()
        yield
        context.outbox.stop()
        context.feed.stop()

    app = FastAPI(
        title="Sanderling",
        version=version("sanderling"),
        description="Disks over iSCSI on Ceph: every change is an operation.",
        lifespan=lifespan,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },  # api/metrics.py does, for all processes alike
        openapi_url=None,  # served by a route of ours, so that no route is without a rule
        redirect_slashes=False,
    )
    app.state.context = context
    routes = [route for router in ROUTERS for route in router.routes]
    app.openapi = documentation.of(app, routes)  # type: ignore[method-assign]
    check_routes(routes)
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app, routes)
    app.add_middleware(BodyLimit, options=options)
    app.add_middleware(Observed, metrics=context.metrics, clock=clock)
    return app
