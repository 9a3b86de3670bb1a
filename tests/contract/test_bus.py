"""What the bus promises (rpc/bus.py), on every backend. What only a broker can show is in test_bus_rabbitmq.py."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from cli.lab.parts.daemons import waited
from rpc.bus import Endpoint
from rpc.messages import Message, Ping, Pong, Wake
from rpc.parking import POISON
from sanderling.errors import Busy, Malformed, NotFound, Problem, TooLarge, Unavailable
from tests.parts.buses import Buses, Got


class Anything(Message):
    thing: Any


class LaterWake(Wake):
    version: str = "1.9"
    since_then: str = "a field of a later release"


class MuchLaterWake(Wake):
    version: str = "2.0"


@pytest.fixture(params=["fake", "rabbit"])
def buses(request: pytest.FixtureRequest) -> Iterator[Buses]:
    """A broker, or within one process what stands in for it; a broker that is missing fails."""
    buses = Buses("fake://" if request.param == "fake" else request.getfixturevalue("rabbitmq").url)
    try:
        yield buses
    finally:
        buses.close()


def operations(handler: Any, kind: type[Message] = Wake) -> list[Endpoint]:
    return [Endpoint("operation", {"wake": (kind, handler)})]


def poison(topic: str, reason: str) -> float:
    return float(POISON.labels(topic, reason)._value.get())


@pytest.mark.rows("OM-1", "OM-12")
def test_a_cast_reaches_one_server_of_its_topic(buses: Buses, unique: str) -> None:
    got = Got()
    bus = buses.connect()
    bus.serve(unique, "one", operations(got))
    buses.connect().serve(unique, "two", operations(got))
    for number in range(20):
        bus.cast(unique, "operation.wake", Wake(operation_id=str(number)))
    got.wait(20)
    bus.call(unique, "bus.ping", Ping(), server="one", timeout_s=10)
    bus.call(unique, "bus.ping", Ping(), server="two", timeout_s=10)
    assert Counter(m.operation_id for m in got.messages) == {str(number): 1 for number in range(20)}


@pytest.mark.rows("OM-1", "OM-13")
def test_a_cast_to_a_named_server_reaches_that_one_alone(buses: Buses, unique: str) -> None:
    one, two = Got(), Got()
    bus = buses.connect()
    bus.serve(unique, "one", operations(one))
    bus.serve(unique, "two", operations(two))
    for _ in range(5):
        bus.cast(unique, "operation.wake", Wake(operation_id="x"), server="two")
    two.wait(5)
    assert one.messages == []


@pytest.mark.rows("OM-1", "OM-14")
def test_a_fanout_reaches_every_server(buses: Buses, unique: str) -> None:
    got = [Got(), Got(), Got()]
    for number, each in enumerate(got):
        buses.connect().serve(unique, str(number), operations(each))
    buses.connect().fanout(unique, "operation.wake", Wake(operation_id="all"))
    for each in got:
        assert [m.operation_id for m in each.wait(1)] == ["all"]


def test_a_cast_that_nobody_serves_is_no_error(buses: Buses, unique: str) -> None:
    bus = buses.connect()
    bus.cast(unique, "operation.wake", Wake(operation_id="x"))
    bus.cast(unique, "operation.wake", Wake(operation_id="x"), server="nobody")
    bus.fanout(unique, "operation.wake", Wake(operation_id="x"))


def test_a_call_returns_the_fields_of_the_reply(buses: Buses, unique: str) -> None:
    bus = buses.connect()
    bus.serve(unique, "one", operations(Got(reply=Pong(server="the one"))))
    assert bus.call(unique, "operation.wake", Wake(operation_id="x"), timeout_s=10)["server"] == "the one"


def test_a_call_of_a_handler_without_a_reply_returns_no_fields(buses: Buses, unique: str) -> None:
    bus = buses.connect()
    bus.serve(unique, "one", operations(Got()))
    assert bus.call(unique, "operation.wake", Wake(operation_id="x"), timeout_s=10) == {}


@pytest.mark.rows("OM-20")
def test_a_call_that_nobody_answers_is_unavailable_after_its_time(buses: Buses, unique: str) -> None:
    with pytest.raises(Unavailable) as raised:
        buses.connect().call(unique, "bus.ping", Ping(), timeout_s=0.5)
    assert raised.value.context["dependency"] == "bus"


def test_every_server_answers_a_ping_with_its_name(buses: Buses, unique: str) -> None:
    bus = buses.connect()
    for name in ("one", "two"):
        bus.serve(unique, name, [])
    assert [bus.call(unique, "bus.ping", Ping(), server=name, timeout_s=10)["server"] for name in ("one", "two")] == [
        "one",
        "two",
    ]


def test_a_problem_of_the_handler_is_raised_at_the_caller_with_all_it_says(buses: Buses, unique: str) -> None:
    def refuse(_: Wake) -> None:
        raise Busy("operation 7 is under way", operation_id="7")

    bus = buses.connect()
    bus.serve(unique, "one", operations(refuse))
    with pytest.raises(Busy) as raised:
        bus.call(unique, "operation.wake", Wake(operation_id="x"), timeout_s=10)
    assert (type(raised.value), str(raised.value), raised.value.context) == (
        Busy,
        "operation 7 is under way",
        {"operation_id": "7"},
    )
    assert buses.parked(unique) == []


def test_any_other_failure_of_a_handler_tells_the_caller_nothing_of_it_and_parks_the_message_once(
    buses: Buses, unique: str
) -> None:
    def fail(message: Wake) -> Pong:
        if message.operation_id == "bad":
            raise ValueError("secret")
        return Pong(server=message.operation_id)

    bus = buses.connect()
    bus.serve(unique, "one", operations(fail))
    with pytest.raises(Problem) as raised:
        bus.call(unique, "operation.wake", Wake(operation_id="bad"), timeout_s=10)
    assert raised.value.code == "internal"
    assert "secret" not in str(raised.value.to_wire())
    assert bus.call(unique, "operation.wake", Wake(operation_id="good"), timeout_s=10)["server"] == "good"
    assert [(p["reason"], p["payload"]["operation_id"]) for p in buses.parked(unique)] == [("failed", "bad")]
    assert poison(unique, "failed") == 1


@pytest.mark.rows("OM-9")
@pytest.mark.parametrize("method", ["operation.sleep", "operation.__init__", "operation.methods", "node.wake", "wake", ""])
def test_only_the_methods_of_an_endpoint_can_be_reached(buses: Buses, unique: str, method: str) -> None:
    bus, got = buses.connect(), Got()
    bus.serve(unique, "one", operations(got))
    with pytest.raises(NotFound):
        bus.call(unique, method, Wake(operation_id="x"), timeout_s=10)
    assert got.messages == []
    assert [p["reason"] for p in buses.parked(unique)] == ["not-found"]
    assert poison(unique, "not-found") == 1


@pytest.mark.rows("W-OM-5")
def test_a_message_that_breaks_a_rule_is_parked_once_and_the_queue_moves_on(buses: Buses, unique: str) -> None:
    bus, got = buses.connect(), Got()
    bus.serve(unique, "one", operations(got))
    bus.cast(unique, "operation.wake", Ping())
    bus.cast(unique, "operation.wake", Anything(thing=1))
    bus.cast(unique, "operation.wake", Wake(operation_id="good"))
    assert [m.operation_id for m in got.wait(1)] == ["good"]
    waited(lambda: poison(unique, "malformed") == 2, within_s=10, what="both are counted")
    parked: list[dict[str, Any]] = []
    waited(lambda: len(parked.__iadd__(buses.parked(unique))) == 2, within_s=10, what="both are parked")
    assert all("operation_id" in p["detail"] for p in parked)
    with pytest.raises(Malformed, match="operation_id"):
        bus.call(unique, "operation.wake", Ping(), timeout_s=10)


@pytest.mark.rows("OM-1", "OM-3")
def test_a_newer_message_is_read_unless_its_major_version_is_newer(buses: Buses, unique: str) -> None:
    bus, got = buses.connect(), Got()
    bus.serve(unique, "one", operations(got))
    bus.call(unique, "operation.wake", LaterWake(operation_id="later"), timeout_s=10)
    with pytest.raises(Malformed, match="version"):
        bus.call(unique, "operation.wake", MuchLaterWake(operation_id="much later"), timeout_s=10)
    assert [m.operation_id for m in got.messages] == ["later"]


@pytest.mark.rows("OM-3")
def test_what_arrives_is_json_on_every_backend(buses: Buses, unique: str) -> None:
    bus, got = buses.connect(), Got()
    bus.serve(unique, "one", operations(got, Anything))
    when = datetime(2026, 11, 21, tzinfo=UTC)
    bus.cast(unique, "operation.wake", Anything(thing={"pair": (1, 2), "set": {3}, "when": when}))
    thing = got.wait(1)[0].thing
    assert thing == {"pair": [1, 2], "set": [3], "when": "2026-11-21T00:00:00Z"}
    assert type(thing["pair"]) is list


def test_a_message_that_is_too_large_is_refused_by_its_sender(buses: Buses, unique: str) -> None:
    bus = buses.connect(payload_max_bytes=2000)
    for send in (bus.cast, bus.fanout, lambda *to: bus.call(*to, timeout_s=1), lambda _topic, *what: bus.notify(*what)):
        with pytest.raises(TooLarge):
            send(unique, "operation.wake", Wake(operation_id="x" * 3000))


def test_a_message_that_is_too_large_for_its_server_is_parked_cut_short(buses: Buses, unique: str) -> None:
    got = Got()
    buses.connect(payload_max_bytes=2000).serve(unique, "one", operations(got))
    with pytest.raises(TooLarge):
        buses.connect().call(unique, "operation.wake", Wake(operation_id="x" * 3000), timeout_s=10)
    assert [(p["reason"], len(p["payload"])) for p in buses.parked(unique)] == [("too-large", 2000)]
    assert got.messages == []


@pytest.mark.rows("OM-10", "OM-17")
def test_a_server_has_a_bounded_number_of_handlers_at_work(buses: Buses, unique: str) -> None:
    go, lock, at_work, most = threading.Event(), threading.Lock(), [0], [0]

    def work(_: Wake) -> None:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        go.wait(30)
        with lock:
            at_work[0] -= 1
            done.release()

    done = threading.Semaphore(0)
    bus = buses.connect(handlers=2)
    bus.serve(unique, "one", operations(work))
    for number in range(8):
        bus.cast(unique, "operation.wake", Wake(operation_id=str(number)))
    waited(lambda: at_work[0] == 2, within_s=10, what="two are at work")
    go.set()
    assert all(done.acquire(timeout=10) for _ in range(8))
    assert most[0] == 2


@pytest.mark.rows("OM-19")
def test_a_stopped_server_takes_nothing_more(buses: Buses, unique: str) -> None:
    bus, got, heir = buses.connect(), Got(), Got()
    serving = bus.serve(unique, "one", operations(got))
    bus.call(unique, "operation.wake", Wake(operation_id="before"), timeout_s=10)
    serving.stop()
    bus.cast(unique, "operation.wake", Wake(operation_id="after"))
    bus.serve(unique, "two", operations(heir))
    assert [m.operation_id for m in heir.wait(1)] == ["after"]
    assert [m.operation_id for m in got.messages] == ["before"]


@pytest.mark.rows("OM-19")
def test_stopping_waits_for_the_handlers_at_work_but_not_for_ever(buses: Buses, unique: str) -> None:
    began, go, ended = threading.Semaphore(0), threading.Event(), threading.Event()

    def work(_: Wake) -> None:
        began.release()
        go.wait(30)
        ended.set()

    bus = buses.connect(stop_timeout_s=0.5)
    serving = bus.serve(unique, "one", operations(work))
    bus.cast(unique, "operation.wake", Wake(operation_id="x"))
    assert began.acquire(timeout=10)
    serving.stop()
    assert not ended.is_set()
    go.set()
    patient = buses.connect().serve(unique, "two", operations(work))
    go.clear()
    ended.clear()
    bus.cast(unique, "operation.wake", Wake(operation_id="x"), server="two")
    assert began.acquire(timeout=10)
    threading.Timer(0.3, go.set).start()
    patient.stop()
    assert ended.is_set()


def test_many_threads_may_share_a_bus(buses: Buses, unique: str) -> None:
    bus = buses.connect()
    bus.serve(unique, "one", operations(lambda m: Pong(server=m.operation_id)))

    def ask(number: int) -> str:
        return str(bus.call(unique, "operation.wake", Wake(operation_id=str(number)), timeout_s=30)["server"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(64))) == [str(number) for number in range(64)]


def test_a_report_goes_to_one_listener_of_its_type(buses: Buses, unique: str) -> None:
    got, other = Got(), Got()
    bus = buses.connect()
    for _ in range(2):
        buses.connect().listen({f"{unique}.seen": (Wake, got), f"{unique}.other": (Wake, other)})
    for number in range(10):
        bus.notify(f"{unique}.seen", Wake(operation_id=str(number)))
    bus.notify(f"{unique}.other", Wake(operation_id="other"))
    got.wait(10)
    other.wait(1)
    assert Counter(m.operation_id for m in got.messages) == {str(number): 1 for number in range(10)}


def test_a_report_waits_for_a_listener(buses: Buses, unique: str) -> None:
    bus, got = buses.connect(), Got()
    bus.notify(f"{unique}.seen", Wake(operation_id="early"))
    bus.listen({f"{unique}.seen": (Wake, got)})
    assert [m.operation_id for m in got.wait(1)] == ["early"]


def test_a_report_comes_again_until_what_its_handler_needs_is_available(buses: Buses, unique: str) -> None:
    attempts = threading.Semaphore(0)
    away = threading.Event()

    def record(message: Wake) -> None:
        attempts.release()
        if not away.is_set():
            raise Unavailable("the records are away", dependency="records")
        got(message)

    bus, got = buses.connect(), Got()
    bus.listen({f"{unique}.seen": (Wake, record)})
    bus.notify(f"{unique}.seen", Wake(operation_id="x"))
    assert all(attempts.acquire(timeout=20) for _ in range(3))
    away.set()
    got.wait(1)
    assert [p for p in buses.parked("sanderling_reports") if p["method"].startswith(unique)] == []


def test_a_report_that_fails_otherwise_is_parked_once_and_the_queue_moves_on(buses: Buses, unique: str) -> None:
    def refuse(message: Wake) -> None:
        if message.operation_id == "bad":
            raise ValueError("no")
        raise NotFound("there is no such disk")

    bus, got = buses.connect(), Got()
    bus.listen({f"{unique}.seen": (Wake, refuse), f"{unique}.end": (Ping, got)})
    bus.notify(f"{unique}.seen", Wake(operation_id="bad"))
    bus.notify(f"{unique}.seen", Wake(operation_id="gone"))
    bus.notify(f"{unique}.seen", Ping())
    bus.notify(f"{unique}.unheard-of", Ping())
    bus.notify(f"{unique}.end", Ping())
    got.wait(1)
    parked: list[dict[str, Any]] = []

    def all_parked() -> bool:
        parked.extend(p for p in buses.parked("sanderling_reports") if p["method"].startswith(unique))
        return len(parked) >= 4

    waited(all_parked, within_s=10, what="all four are parked")
    assert sorted((p["reason"], p["method"].removeprefix(unique)) for p in parked) == [
        ("failed", ".seen"),
        ("malformed", ".seen"),
        ("not-found", ".seen"),
        ("not-found", ".unheard-of"),
    ]
