"""What only a real broker can show of the bus: its queues, its absence, and what strangers send. Each test is one trap."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kombu.entity import Queue

import rpc.oslo
from cli.lab.parts.daemons import run, spawn, waited
from cli.lab.parts.rabbitmq import RabbitMQ
from rpc import topics
from rpc.bus import Bus, Endpoint
from rpc.connections import connection
from rpc.listening import DEAF
from rpc.messages import Ping, Pong, Wake
from rpc.parking import parking
from sanderling.errors import NotFound, SettingsRefused, Unavailable
from tests.parts import usage
from tests.parts.buses import Buses, Got, configured


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A broker for this file alone: these tests pause, kill and reconfigure it. It serves TLS too."""
    tls = tmp_path_factory.mktemp("tls")
    make_certificates(tls)
    broker = RabbitMQ(tmp_path_factory.mktemp("own-rabbitmq"), tls=tls)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def broker(own: RabbitMQ) -> Iterator[RabbitMQ]:
    usage.used("RabbitMQ", own.version)
    yield own
    if not own.alive:
        own.start()


@pytest.fixture
def buses(broker: RabbitMQ) -> Iterator[Buses]:
    buses = Buses(broker.url)
    try:
        yield buses
    finally:
        buses.close()


def make_certificates(folder: Path) -> None:
    """A CA, a certificate by it for 127.0.0.1, and a CA that signed nothing."""
    subject, days = ["-subj", "/CN=test"], ["-days", "2"]
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for ca in ("ca", "other-ca"):
        run([*new, "-x509", "-keyout", f"{folder}/{ca}.key", "-out", f"{folder}/{ca}.pem", "-subj", f"/CN={ca}", *days])
    run([*new, "-keyout", f"{folder}/server.key", "-out", f"{folder}/server.csr", *subject])
    (folder / "names").write_text("subjectAltName = IP:127.0.0.1\n")
    signed = ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-extfile", f"{folder}/names"]
    run(["openssl", "x509", "-req", "-in", f"{folder}/server.csr", "-out", f"{folder}/server.pem", *signed, *days])


def operations(handler: Any) -> list[Endpoint]:
    return [Endpoint("operation", {"wake": (Wake, handler)})]


def hears(buses: Buses, got: Got, topic: str) -> None:
    """A cast is heard, within the time that the driver needs to find the broker again."""
    sender = buses.connect()

    def heard() -> bool:
        with contextlib.suppress(Unavailable):
            sender.cast(topic, "operation.wake", Wake(operation_id="still there?"))
        return any(m.operation_id == "still there?" for m in got.messages)

    waited(heard, within_s=30, every_s=0.2, what="the server hears")


def queues(broker: RabbitMQ, *columns: str) -> dict[str, list[str]]:
    rows = [line.split("\t") for line in broker.ctl("list_queues", "name", *columns).splitlines()[1:]]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.rows("OM-15", "W-OM-1")
def test_every_queue_that_outlives_a_process_is_a_durable_quorum_queue(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus = buses.connect()
    bus.serve(unique, "one", operations(Got()))
    bus.listen({})
    with pytest.raises(NotFound):
        bus.call(unique, "no.method", Ping(), timeout_s=10)
    seen = queues(broker, "type", "durable")
    for name in (unique, f"{unique}.one", topics.PARKED, f"{topics.REPORTS}.info"):
        assert seen.pop(name) == ["quorum", "true"]
    ours = [name for name in seen if name.startswith(("reply_", f"{unique}_fanout_"))]
    assert len(ours) >= 2
    assert all(seen[name] == ["classic", "false"] for name in ours)


@pytest.mark.rows("OM-2", "OM-5", "OM-6", "OM-7")
def test_a_message_bears_an_id_of_its_own_in_an_envelope_and_the_topic_and_ends_with_its_time_limit(
    broker: RabbitMQ, buses: Buses, unique: str
) -> None:
    bus = buses.connect()
    bus.serve(unique, "one", operations(Got())).stop()
    for number in range(2):
        bus.cast(unique, "operation.wake", Wake(operation_id=str(number)))
    with pytest.raises(Unavailable):
        bus.call(unique, "operation.wake", Wake(operation_id="2"), timeout_s=0.5)
    for number in range(3, 5):
        bus.cast(unique, "operation.wake", Wake(operation_id=str(number)))
    with connection(configured(broker.url).bus, name="test") as raw:
        found = list(iter(lambda: Queue(unique, no_declare=True).bind(raw.channel()).get(no_ack=True), None))
    envelopes = [json.loads(message.body) for message in found]
    assert {envelope["oslo.version"] for envelope in envelopes} == {"2.0"}
    bodies = [json.loads(envelope["oslo.message"]) for envelope in envelopes]
    assert [body["args"]["message"]["operation_id"] for body in bodies] == ["0", "1", "3", "4"], (
        "a call ends with the time of its caller"
    )
    assert len({body["_unique_id"] for body in bodies}) == len(bodies)
    assert {message.delivery_info["routing_key"] for message in found} == {unique}
    kinds = dict(line.split("\t") for line in broker.ctl("list_exchanges", "name", "type").splitlines()[1:])
    assert {kinds[message.delivery_info["exchange"]] for message in found} == {"topic"}


@pytest.mark.rows("OM-5", "OM-11", "OM-18", "W-OM-3")
def test_a_server_listens_in_three_ways_on_one_connection_and_senders_have_others_of_their_own(
    broker: RabbitMQ, buses: Buses, unique: str
) -> None:
    bus, all_there = buses.connect(), threading.Barrier(4, timeout=20)
    bus.serve(unique, "one", operations(lambda _: Pong(server=str(all_there.wait()))))
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(bus.call, unique, "operation.wake", Wake(operation_id=str(n)), timeout_s=20) for n in range(4)]
    assert [call.result() for call in calls]
    channels = dict(line.split("\t") for line in broker.ctl("list_channels", "pid", "connection").splitlines()[1:])
    consumers = [line.split("\t") for line in broker.ctl("list_consumers", "queue_name", "channel_pid").splitlines()[1:]]
    ours = {queue: channels[pid] for queue, pid in consumers if queue.startswith(unique)}
    assert len(ours) == 3
    assert len(set(ours.values())) == 1
    assert len({connected for pid, connected in channels.items() if pid not in {pid for _, pid in consumers}}) >= 4


@pytest.mark.rows("OM-17")
def test_a_busy_server_leaves_the_rest_in_the_broker(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    began, go = threading.Semaphore(0), threading.Event()

    def work(_: Wake) -> None:
        began.release()
        go.wait(30)

    bus = buses.connect(handlers=2, prefetch=3)
    bus.serve(unique, "one", operations(work))
    for number in range(40):
        bus.cast(unique, "operation.wake", Wake(operation_id=str(number)))
    assert all(began.acquire(timeout=10) for _ in range(2))
    still = 40 - 2 - 1  # two at work, and one read that waits for a handler
    waited(lambda: int(queues(broker, "messages")[unique][0]) == still, within_s=10, what="the queue keeps the rest")
    assert int(queues(broker, "messages_unacknowledged")[unique][0]) <= 3
    go.set()
    assert all(began.acquire(timeout=10) for _ in range(38))


CHILD = """
import sys, threading
import rpc.oslo
from rpc.bus import Endpoint
from rpc.messages import Wake
from tests.parts.buses import configured

def work(message):
    print("began", message.operation_id, flush=True)
    threading.Event().wait()

bus = rpc.oslo.connect(configured(sys.argv[1]))
if sys.argv[3] == "cast":
    serving = bus.serve(sys.argv[2], "child", [Endpoint("operation", {"wake": (Wake, work)})])
else:
    serving = bus.listen({sys.argv[2]: (Wake, work)})
print("listening", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("kind", ["cast", "report"])
def test_a_process_killed_at_work_loses_a_cast_but_not_a_report(
    buses: Buses, broker: RabbitMQ, unique: str, tmp_path: Path, kind: str
) -> None:
    log, got, bus = tmp_path / "child.log", Got(), buses.connect()
    child = spawn("child", [sys.executable, "-c", CHILD, broker.url, unique, kind], log=log)
    try:
        waited(lambda: "listening" in log.read_text(), within_s=20, what="the child listens")
        if kind == "cast":
            bus.cast(unique, "operation.wake", Wake(operation_id="x"))
        else:
            bus.notify(unique, Wake(operation_id="x"))
        waited(lambda: "began x" in log.read_text(), within_s=20, what="the child is at work")
    finally:
        child.kill()
    if kind == "cast":
        bus.serve(unique, "heir", operations(got))
        bus.call(unique, "operation.wake", Wake(operation_id="end"), timeout_s=10)
        assert [m.operation_id for m in got.messages] == ["end"]
    else:
        bus.listen({unique: (Wake, got)})
        assert [m.operation_id for m in got.wait(1)] == ["x"]


ENDING = """
import sys, threading
from pathlib import Path
import rpc.oslo
from rpc.bus import Endpoint
from rpc.messages import Wake
from tests.parts.buses import configured
from cli.lab.parts.daemons import waited

go = threading.Event()

def work(message):
    print("began", flush=True)
    go.wait()

bus = rpc.oslo.connect(configured(sys.argv[1], stop_timeout_s=0.5))
bus.serve(sys.argv[2], "child", [Endpoint("operation", {"wake": (Wake, work)})])
waited(Path(sys.argv[3]).exists, within_s=60, what="told to go on")
go.set()
bus.close()
print("closed", flush=True)
"""


def test_a_process_ends_though_a_reply_of_it_waits_for_the_broker(
    buses: Buses, broker: RabbitMQ, unique: str, tmp_path: Path
) -> None:
    log, go_on, bus = tmp_path / "child.log", tmp_path / "go-on", buses.connect()
    child = spawn("child", [sys.executable, "-c", ENDING, broker.url, unique, str(go_on)], log=log)
    try:
        asking = threading.Thread(target=ask, args=(bus, unique), daemon=True)
        waited(lambda: f"{unique}.child" in queues(broker), within_s=20, what="the child listens")
        asking.start()
        waited(lambda: "began" in log.read_text(), within_s=20, what="the child is at work")
        broker.settle()
        broker.kill()
        go_on.touch()
        child.wait(within_s=30)
        assert "closed" in log.read_text()
    finally:
        child.kill()


def ask(bus: Bus, topic: str) -> None:
    with contextlib.suppress(Unavailable):
        bus.call(topic, "operation.wake", Wake(operation_id="x"), server="child", timeout_s=20)


def test_without_a_broker_every_send_is_unavailable(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    fresh, used = buses.connect(), buses.connect()
    used.serve(unique, "one", [])
    used.call(unique, "bus.ping", Ping(), timeout_s=10)
    broker.settle()
    broker.kill()
    for bus in (fresh, used):
        message = Wake(operation_id="x")
        sends: list[Callable[[], object]] = [
            partial(bus.cast, unique, "operation.wake", message),
            partial(bus.fanout, unique, "operation.wake", message),
            partial(bus.notify, unique, message),
            partial(bus.call, unique, "operation.wake", message, timeout_s=2),
        ]
        for send in sends:
            with pytest.raises(Unavailable) as raised:
                send()
            assert raised.value.context["dependency"] == "bus"


@pytest.mark.rows("OM-4")
def test_a_frozen_broker_makes_a_send_unavailable_too(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus = buses.connect(send_timeout_s=1.0)
    bus.cast(unique, "operation.wake", Wake(operation_id="x"))
    broker.pause()
    try:
        with pytest.raises(Unavailable):
            bus.cast(unique, "operation.wake", Wake(operation_id="x"))
        with pytest.raises(Unavailable):
            bus.notify(unique, Wake(operation_id="x"))
    finally:
        broker.resume()


def test_a_server_begun_without_a_broker_listens_once_there_is_one(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    broker.settle()
    broker.kill()
    got, reports = Got(), Got()
    bus = buses.connect(send_timeout_s=0.5)
    bus.serve(unique, "one", operations(got))
    bus.listen({unique: (Wake, reports)})
    broker.start()
    hears(buses, got, unique)
    buses.connect().notify(unique, Wake(operation_id="r"))
    reports.wait(1)


def test_a_server_stopped_while_the_broker_is_away_stays_stopped(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    got, heir = Got(), Got()
    bus = buses.connect(stop_timeout_s=1.0)
    serving = bus.serve(unique, "one", operations(got))
    broker.settle()
    broker.kill()
    serving.stop()
    broker.start()
    buses.connect().serve(unique, "two", operations(heir))
    hears(buses, heir, unique)
    waited(lambda: queues(broker, "consumers")[f"{unique}.one"] == ["0"], within_s=20, what="nobody listens as the first")


@pytest.mark.rows("OM-8", "OM-16")
def test_a_server_hears_again_after_a_restart_of_the_broker(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus, got, reports = buses.connect(), Got(reply=Pong(server="x")), Got()
    bus.serve(unique, "one", operations(got))
    bus.listen({unique: (Wake, reports)})
    bus.call(unique, "operation.wake", Wake(operation_id="before"), timeout_s=10)
    broker.settle()
    broker.kill()
    broker.start()
    hears(buses, got, unique)

    def answered() -> bool:
        with contextlib.suppress(Unavailable):
            bus.call(unique, "operation.wake", Wake(operation_id="after"), timeout_s=1)
            bus.notify(unique, Wake(operation_id="report"))
            return True
        return False

    waited(answered, within_s=20, what="a call is answered")
    reports.wait(1)


@pytest.mark.rows("W-OM-1")
def test_what_was_cast_and_reported_survives_the_broker(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus, got, reports = buses.connect(), Got(), Got()
    bus.serve(unique, "one", operations(Got())).stop()
    bus.cast(unique, "operation.wake", Wake(operation_id="kept"))
    bus.notify(unique, Wake(operation_id="kept too"))
    broker.settle()
    broker.kill()
    broker.start()
    heir = buses.connect()
    heir.serve(unique, "two", operations(got))
    heir.listen({unique: (Wake, reports)})
    assert got.wait(1)[0].operation_id == "kept"
    assert reports.wait(1)[0].operation_id == "kept too"


@pytest.mark.rows("OM-16")
@pytest.mark.parametrize("deleted", ["topic", "server", "fanout"])
def test_a_server_whose_queue_was_deleted_hears_again(broker: RabbitMQ, buses: Buses, unique: str, deleted: str) -> None:
    bus, got = buses.connect(), Got()
    bus.serve(unique, "one", operations(got))
    start = {"topic": unique, "server": f"{unique}.one", "fanout": f"{unique}_fanout_"}[deleted]
    broker.ctl("delete_queue", min(name for name in queues(broker) if name.startswith(start)))
    sender = buses.connect()

    def heard() -> bool:
        if deleted == "fanout":
            sender.fanout(unique, "operation.wake", Wake(operation_id="x"))
        else:
            sender.cast(unique, "operation.wake", Wake(operation_id="x"), server="one" if deleted == "server" else None)
        return bool(got.messages)

    waited(heard, within_s=20, every_s=0.2, what="the server hears")


def test_a_deaf_server_is_noticed_and_built_again(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus, got = buses.connect(), Got()
    bus.serve(unique, "one", operations(got))
    with connection(configured(broker.url).bus, name="test") as raw:
        for name in (unique, f"{unique}.one"):
            raw.default_channel.queue_unbind(name, topics.EXCHANGE, name)
    hears(buses, got, unique)
    assert DEAF.labels(f"{unique}.one")._value.get() >= 1


def test_a_busy_server_is_not_taken_for_deaf(buses: Buses, unique: str) -> None:
    go, began, ended = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def work(_: Wake) -> None:
        began.release()
        go.wait(30)
        ended.release()

    bus = buses.connect(handlers=1, probe_interval_s=0.1, probe_failures_max=1)
    bus.serve(unique, "one", operations(work))
    bus.cast(unique, "operation.wake", Wake(operation_id="long"))
    assert began.acquire(timeout=10)
    waited(lambda: not threading.Event().wait(1.5), within_s=10, what="fifteen probes have gone by")
    assert DEAF.labels(f"{unique}.one")._value.get() == 0
    go.set()
    assert ended.acquire(timeout=10)


@pytest.mark.rows("OM-20")
def test_a_caller_whose_reply_queue_is_gone_gets_answers_again(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus = buses.connect()
    buses.connect().serve(unique, "one", [])
    before = set(queues(broker))
    bus.call(unique, "bus.ping", Ping(), timeout_s=10)
    (reply,) = {name for name in queues(broker) if name.startswith("reply_")} - before
    broker.ctl("delete_queue", reply)

    def answered() -> bool:
        with contextlib.suppress(Unavailable):
            return bool(bus.call(unique, "bus.ping", Ping(), timeout_s=2))
        return False

    waited(answered, within_s=20, what="a call is answered")


def envelope(inside: str, *, version: str = "2.0") -> bytes:
    return json.dumps({"oslo.version": version, "oslo.message": inside}).encode()


HOSTILE = [
    b"",
    b"\xff\x00 no JSON",
    b"[1, 2]",
    b'"text"',
    b"{}",
    envelope("no JSON"),
    envelope("[]"),
    envelope("{}", version="9.0"),
    envelope("{}"),
    envelope('{"method": 7, "args": [], "namespace": {}}'),
    envelope('{"method": "wake", "namespace": "operation", "args": {"message": 5}}'),
    envelope('{"method": "wake", "namespace": "operation", "args": ' + '{"message":' * 20000 + "1" + "}" * 20001),
    envelope('{"method": "wake", "namespace": "operation", "args": {"message": {"operation_id": "' + "x" * 3_000_000 + '"}}}'),
]


@pytest.mark.rows("OM-19", "W-OM-5")
def test_nothing_that_a_stranger_sends_stops_a_server(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    bus, got, reports = buses.connect(), Got(), Got()
    bus.serve(unique, "one", operations(got))
    bus.listen({unique: (Wake, reports)})
    with connection(configured(broker.url).bus, name="test") as raw:
        producer = raw.Producer()
        for body in HOSTILE:
            for key in (unique, f"{topics.REPORTS}.info"):
                producer.publish(
                    body, exchange=topics.EXCHANGE, routing_key=key, content_type="application/json", content_encoding="utf-8"
                )
    bus.cast(unique, "operation.wake", Wake(operation_id="good"))
    bus.notify(unique, Wake(operation_id="good"))
    assert [m.operation_id for m in got.wait(1)] == ["good"]
    assert [m.operation_id for m in reports.wait(1)] == ["good"]
    empty = {unique: ["0"], f"{topics.REPORTS}.info": ["0"]}
    waited(lambda: empty.items() <= queues(broker, "messages").items(), within_s=20, what="both queues are empty")
    reasons = {p["reason"] for p in buses.parked(unique)}
    assert reasons == {"not-found", "malformed", "too-large"}


def test_parking_is_bounded_and_drops_the_oldest(broker: RabbitMQ, buses: Buses, unique: str) -> None:
    buses.parked(unique)
    broker.ctl("delete_queue", topics.PARKED)
    park = parking(configured(broker.url, parked_max=3).bus)
    for number in range(6):
        park(unique, "m", {"number": number}, "failed", "for the test")
    waited(lambda: queues(broker, "messages")[topics.PARKED] == ["3"], within_s=10, what="three are kept")
    broker.ctl("delete_queue", topics.PARKED)


def test_tls_is_verified(broker: RabbitMQ, own: RabbitMQ, tmp_path: Path, unique: str) -> None:
    assert own.tls is not None
    good, wrong_ca = str(own.tls / "ca.pem"), str(own.tls / "other-ca.pem")
    wrong_name = own.tls_url.replace("127.0.0.1", "localhost")
    for url, ca_file, verified in ((own.tls_url, good, True), (own.tls_url, wrong_ca, False), (wrong_name, good, False)):
        bus = rpc.oslo.connect(configured(url, ca_file=ca_file))
        try:
            raw = connection(configured(url, ca_file=ca_file).bus, name="test")
            with contextlib.nullcontext() if verified else pytest.raises(Unavailable):
                bus.cast(unique, "operation.wake", Wake(operation_id="x"))
            with raw, contextlib.nullcontext() if verified else pytest.raises(OSError, match="certificate"):
                raw.connect()
        finally:
            bus.close()


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("rabbit://127.0.0.1/?ssl=true", {}),
        ("rabbit://127.0.0.1/?ssl_ca_file=/tmp/x", {}),
        ("rabbit://127.0.0.1/", {"ca_file": "/nowhere/ca.pem"}),
        ("rabbit://u:p@one,u:p@two/", {"ca_file": __file__}),
        ("kafka://127.0.0.1/", {}),
        ("127.0.0.1", {}),
    ],
)
def test_a_bus_that_would_verify_nothing_or_cannot_be_is_refused(url: str, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsRefused, match=r"\[bus\]"):
        rpc.oslo.connect(configured(url, **changes))
