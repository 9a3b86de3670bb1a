"""The feed of events while the records are away: a stream that is open goes on when they are back."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from api.feed import Feed
from rpc.news import News
from sanderling.clock import SystemClock
from sanderling.errors import Unavailable
from sanderling.records.database import Records
from sanderling.records.events import Event
from sanderling.settings import Api
from tests.unit.api_app import KeptNews

EVENT = Event(id=1, at=datetime(2026, 1, 1, tzinfo=UTC), kind="a.b", actor="t", resource_id=None, operation_id=None, data={})


class Store:
    """Records with one event. Once they are lost, each of `missing` misses them once."""

    def __init__(self) -> None:
        self.looked, self.lost = threading.Event(), False
        self.missing = {"feed", "stream"}

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        who = "feed" if threading.current_thread().name == "feed" else "stream"
        if self.lost and who in self.missing:
            self.missing.discard(who)
            raise Unavailable("the records cannot be used", dependency="records")
        yield self
        if who == "feed":
            self.looked.set()

    def scalar(self, _: object) -> int:
        return EVENT.id

    def after(self, position: int) -> list[Event]:
        with self.read():
            return [EVENT] if position < EVENT.id else []


@pytest.mark.parametrize("missing", [{"feed", "stream"}, {"stream"}])
def test_a_stream_that_could_not_be_read_for_a_while_misses_nothing_of_what_was_there_before(missing: set[str]) -> None:
    store = Store()
    store.missing = missing
    options = Api(events_interval_s=0.05)
    feed = Feed(options, records=cast(Records, store), news=cast(News, KeptNews()), clock=SystemClock())

    async def missed() -> Event:
        standing = feed.follow(0, store.after)
        assert await anext(standing) == EVENT
        assert await asyncio.to_thread(store.looked.wait, 10)
        store.lost = True
        seen = await asyncio.wait_for(anext(feed.follow(0, store.after)), 10)
        await standing.aclose()  # type: ignore[attr-defined]  # it is a generator
        return seen

    feed.start()
    try:
        assert asyncio.run(missed()) == EVENT
    finally:
        feed.stop()


def test_while_nobody_follows_nobody_looks() -> None:
    store, turned = Store(), threading.Event()

    class Turns(SystemClock):
        def wait(self, event: threading.Event, timeout_s: float) -> bool:
            turned.set()
            return super().wait(event, timeout_s)

    feed = Feed(Api(), records=cast(Records, store), news=cast(News, KeptNews()), clock=Turns())
    feed.start()
    try:
        assert turned.wait(10)
        assert not store.looked.is_set()
    finally:
        feed.stop()
