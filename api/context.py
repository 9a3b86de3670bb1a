"""What a request may use, gathered once when the process starts."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.asking import Asked
from api.feed import Feed
from api.metrics import Metrics
from api.outbox import Outbox
from api.policy import Policy
from api.rates import Rates
from rpc.news import News
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.images.base import Images
from sanderling.model.operations import Operation
from sanderling.records.database import Records
from sanderling.records.operations import Outgoing
from sanderling.secrets import Keyring
from sanderling.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """Requests reach the bus only through the outbox, and Consul and Ceph only by asking, which is bounded."""

    settings: Settings
    records: Records
    coordination: Asked[Coordination]
    images: Asked[Images]
    policy: Policy
    rates: Rates
    outbox: Outbox
    news: News
    feed: Feed
    metrics: Metrics
    keyring: Keyring
    clock: Clock

    def changed(self, operation: Operation | None = None) -> None:
        """Something was committed, an operation perhaps: conductors, streams here and other processes are told, each by a thread
        of its own."""
        if operation is not None and operation.cast_at is None:
            self.outbox.wake(Outgoing(operation.id, operation.traceparent))
        self.feed.look()
        self.news.tell()


async def context_of(request: Request) -> Context:  # a dependency that is no coroutine costs a thread
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


ContextOf = Annotated[Context, Depends(context_of)]
