"""What news promises (rpc/news.py): best effort within one process and on a real broker, and never in anybody's way."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import rpc.news
from cli.lab.parts.daemons import waited
from cli.lab.parts.rabbitmq import RabbitMQ
from rpc import topics
from rpc.bus import Serving
from rpc.connections import connection
from rpc.news import News
from sanderling.clock import SystemClock
from tests.parts import usage
from tests.parts.buses import configured

CLOCK = SystemClock()


@dataclass
class Stand:
    """News of one broker, closed at the test's end."""

    url: str
    made: list[News] = field(default_factory=list)
    listening: list[Serving] = field(default_factory=list)

    def connect(self, **changes: Any) -> News:
        news = rpc.news.connect(configured(self.url, send_timeout_s=2.0, **({"news_gap_s": 0.0} | changes)))
        self.made.append(news)
        return news

    def listen(self, on_news: Callable[[], None]) -> Serving:
        self.listening.append(self.connect().listen(on_news))
        return self.listening[-1]

    def close(self) -> None:
        for each in self.listening:
            each.stop()
        for news in self.made:
            news.close()


class Heard:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1

    def after(self, act: Callable[[], None]) -> None:
        """Act, and wait until it was called because of it."""
        before = self.times
        act()
        waited(lambda: self.times > before, within_s=20, what="news is heard")

    def settled(self) -> int:
        """The count once it has been called for having found the broker."""
        waited(lambda: self.times >= 1, within_s=20, what="the listener is there")
        return self.times


@pytest.fixture(params=["fake", "rabbit"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    stand = Stand("fake://" if request.param == "fake" else request.getfixturevalue("rabbitmq").url)
    try:
        yield stand
    finally:
        stand.close()


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    broker = RabbitMQ(tmp_path_factory.mktemp("own-rabbitmq"))
    try:
        broker.start()
        usage.used("RabbitMQ", broker.version)
        yield broker
    finally:
        broker.stop()


def test_every_listener_hears_that_there_is_news(stand: Stand) -> None:
    heard = [Heard(), Heard(), Heard()]
    for each in heard:
        stand.listen(each)
        each.settled()
    before = [each.times for each in heard]
    stand.connect().tell()
    waited(lambda: all(each.times > was for each, was in zip(heard, before, strict=True)), within_s=20, what="all have heard")


def test_a_storm_of_news_is_heard_but_not_each_time(stand: Stand) -> None:
    heard = Heard()
    stand.listen(heard)
    before, news = heard.settled(), stand.connect()
    for _ in range(5000):
        news.tell()
    heard.after(news.tell)
    assert heard.times - before < 2500
    heard.after(news.tell)


def test_who_told_rests_before_telling_again(stand: Stand) -> None:
    heard = Heard()
    stand.listen(heard)
    before, rests, other = heard.settled(), stand.connect(news_gap_s=3600, heartbeat_s=4 * 3600), stand.connect()
    heard.after(rests.tell)
    rests.tell()
    heard.after(other.tell)
    assert heard.times == before + 2


def test_no_rest_is_so_long_that_the_broker_misses_a_heartbeat(stand: Stand) -> None:
    heard = Heard()
    stand.listen(heard)
    heard.settled()
    news = stand.connect(news_gap_s=3600, heartbeat_s=1)
    heard.after(news.tell)
    heard.after(news.tell)


def test_a_listener_that_fails_hears_the_next_news(stand: Stand) -> None:
    heard = Heard()

    def fail() -> None:
        heard()
        raise ValueError("no")

    stand.listen(fail)
    heard.settled()
    news = stand.connect()
    heard.after(news.tell)
    heard.after(news.tell)


def test_a_stopped_listener_hears_nothing_more(stand: Stand) -> None:
    heard, other = Heard(), Heard()
    listening = stand.listen(heard)
    stand.listen(other)
    heard.settled()
    other.settled()
    listening.stop()
    before, after = heard.times, other.times
    stand.connect().tell()
    waited(lambda: other.times > after, within_s=20, what="the other hears")
    assert heard.times == before


def test_who_has_nothing_to_tell_for_long_keeps_its_connection_and_says_nothing(stand: Stand) -> None:
    heard, again = Heard(), threading.Event()

    def hear() -> None:
        heard()
        again.set()

    stand.listen(hear)
    heard.settled()
    news = rpc.news.connect(configured(stand.url, heartbeat_s=1))
    stand.made.append(news)
    heard.after(news.tell)
    again.clear()
    assert not CLOCK.wait(again, 4.0), "it has told again what it told before a connection that it lost"


def test_nobody_need_listen(stand: Stand) -> None:
    news = stand.connect()
    news.tell()
    news.close()


def test_news_told_while_the_broker_is_away_returns_at_once_and_is_heard_when_it_is_back(own: RabbitMQ) -> None:
    stand, heard = Stand(own.url), Heard()
    try:
        stand.listen(heard)
        heard.settled()
        teller = stand.connect()
        teller.tell()
        own.kill()
        before = heard.times
        for _ in range(1000):
            teller.tell()
        own.start()
        waited(lambda: heard.times > before, within_s=30, what="the listener found the broker again")
        late = Heard()
        stand.listen(late)
        late.settled()
        for each in (heard, late):
            each.after(teller.tell)
    finally:
        stand.close()


def test_a_listener_begun_without_a_broker_hears_once_there_is_one(own: RabbitMQ) -> None:
    own.kill()
    stand, heard = Stand(own.url), Heard()
    try:
        stand.listen(heard)
        stand.connect().tell()
        assert heard.times == 0
        own.start()
        waited(lambda: heard.times >= 1, within_s=30, what="the listener found the broker")
    finally:
        stand.close()


def test_a_listeners_queue_is_its_own_holds_one_message_and_goes_with_it(own: RabbitMQ) -> None:
    stand, heard = Stand(own.url), Heard()

    def queues() -> list[list[str]]:
        lines = own.ctl("list_queues", "name", "exclusive", "auto_delete", "arguments").splitlines()
        return [line.split("\t") for line in lines if line.startswith(topics.NEWS)]

    try:
        listening = stand.listen(heard)
        heard.settled()
        ((name, exclusive, auto_delete, arguments),) = queues()
        assert (exclusive, auto_delete) == ("true", "true")
        assert '"x-max-length",1' in arguments.replace(" ", "")
        with connection(configured(own.url).bus, name="stranger") as stranger, pytest.raises(Exception, match="RESOURCE_LOCKED"):
            stranger.default_channel.queue_declare(name, passive=True)
        listening.stop()
        waited(lambda: queues() == [], within_s=20, every_s=0.2, what="the queue is gone")
    finally:
        stand.close()


def test_closing_does_not_wait_for_a_frozen_broker(own: RabbitMQ) -> None:
    stand = Stand(own.url)
    news = rpc.news.connect(configured(own.url, stop_timeout_s=0.5))
    listening = news.listen(Heard())
    own.pause()
    try:
        news.tell()
        closing = [threading.Thread(target=close, daemon=True) for close in (listening.stop, news.close)]
        for each in closing:
            each.start()
        waited(lambda: not any(each.is_alive() for each in closing), within_s=20, what="both are closed while it is frozen")
    finally:
        own.resume()
        stand.close()
