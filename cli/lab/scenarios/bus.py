"""F1, F9, F10: the broker gone or frozen, messages lost, repeated and long out of date, and messages that nobody can take."""

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from kombu.connection import Connection
from kombu.entity import Exchange, Queue

from cli.lab.lab import CLOCK, NODES, Lab, LabFailed, inside
from cli.lab.proxy import FaultProxy, Mode
from cli.lab.scenarios.base import PATIENT_S, Scenario
from cli.lab.scenarios.moves import moved
from rpc import topics
from rpc.messages import ExportCommand
from sanderling.errors import StaleEpoch
from sanderling.model.exports import Epoch

WORKERS = tuple(f"{topics.ISCSI_WORKER}.{node}" for node in NODES)
QUEUES = (topics.CONDUCTOR, *WORKERS, f"{topics.REPORTS}.info")
BEGUN_WITHIN_S = 10.0
TRACE = "amq.rabbitmq.trace"
COMMANDS = {"export.path_host", "export.clean"}
NOTHING_HAPPENS_S = 1.0
PROXY_PORT = 18501
_PROXIES: list[FaultProxy] = []


def _away_s(lab: Lab) -> float:
    return lab.span(6.0, 60.0)


def killed(lab: Lab, dice: random.Random) -> None:
    lab.ask()
    lab.hold(dice.random() * 0.3)
    lab.cluster.rabbitmq.settle()  # without it this broker can lose a queue that was just declared
    lab.cluster.rabbitmq.kill()
    lab.did("SIGKILL RabbitMQ")
    lab.ask()
    lab.hold(_away_s(lab))
    lab.cluster.rabbitmq.start()


def frozen(lab: Lab, _dice: random.Random) -> None:
    lab.cluster.rabbitmq.pause()
    lab.did("SIGSTOP RabbitMQ: connections stay open and nothing answers")
    lab.ask()
    lab.hold(_away_s(lab))
    lab.cluster.rabbitmq.resume()


def lost(lab: Lab, dice: random.Random) -> None:
    """Another consumer takes its share of every queue and throws it away."""
    stolen: list[Any] = []
    with _broker(lab) as broker, _consuming(broker, [Queue(name, no_declare=True) for name in QUEUES], stolen.append):
        for _ in range(4):
            lab.ask()
            lab.hold(dice.random())
        lab.hold(2.0)
    if stolen:
        lab.did(f"{len(stolen)} messages stolen from {', '.join(QUEUES)}")


def repeated(lab: Lab, dice: random.Random) -> None:
    """What was said while disks were made is said again, in another order, twice, also under new message ids."""

    def make_disks() -> None:
        for _ in range(3):
            lab.ask()
        lab.hold(2.0)
        lab.finish()

    with _broker(lab) as broker:
        again = _said(lab, broker, make_disks) * 2
        dice.shuffle(again)
        _say(broker, again, dice)
        if again:
            lab.did(f"{len(again)} captured messages said again")
    lab.ask()
    lab.hold(3.0)


@contextlib.contextmanager
def proxied(lab: Lab) -> Iterator[None]:
    """Every process talks to the broker through a proxy."""
    broker = urlsplit(lab.cluster.rabbitmq.url)
    assert broker.hostname is not None
    assert broker.port is not None
    configured = {name: process.settings for name, process in lab.cluster.processes.items()}
    proxy = FaultProxy((broker.hostname, PROXY_PORT), (broker.hostname, broker.port))
    with inside(lab.network.parts):
        proxy.start()
    _PROXIES.append(proxy)
    try:
        url = lab.cluster.rabbitmq.url.replace(f":{broker.port}", f":{PROXY_PORT}")
        lab.restart({name: replace(one, bus=replace(one.bus, url=url)) for name, one in configured.items()})
        yield
        lab.restart(configured)
    finally:
        _PROXIES.remove(proxy)
        proxy.stop()


def late(lab: Lab, dice: random.Random) -> None:
    """Whatever anybody says to anybody arrives that much later, and disks are made and moved meanwhile."""
    delay_s = dice.choice((0.3, 1.0))
    _PROXIES[0].set(Mode.SLOW, delay_s=delay_s)
    lab.did(f"everything that is sent to RabbitMQ arrives {delay_s} s late")
    lab.ask()
    moved(lab, dice)
    lab.hold(lab.span(3.0, 10.0))
    _PROXIES[0].set(Mode.OPEN)


def old_commands(lab: Lab, dice: random.Random) -> None:
    """The commands of moves that are long over: all are refused, and nobody does anything because of them."""

    def move_disks() -> None:
        for _ in range(2):
            moved(lab, dice)

    with _broker(lab) as broker:
        commands = [message for message in _said(lab, broker, move_disks) if _method(message) in COMMANDS]
        if {_method(message) for message in commands} != COMMANDS:
            raise LabFailed(f"moves said {sorted(map(_method, commands))}, not {sorted(COMMANDS)}")
        for _ in range(2):  # whatever was commanded, of whichever disk: its epoch is over after one more move
            moved(lab, dice)
        commands = [message for message in commands if _epoch(message) < lab.epochs()[_export(message)]]
        before, refused = _state(lab), _refused(lab)
        began, again = CLOCK.monotonic(), commands * 3
        dice.shuffle(again)
        for message in again:
            _say(broker, [message], dice)
            lab.hold(dice.random() * 0.1)
    lab.did(f"{len(again)} commands of epochs that are over said again")
    lab.hold(4.0)
    if (count := _refused(lab) - refused) != len(again):
        lab.found("F9", f"{count} of {len(again)} commands of epochs that are over were refused")
    if (after := _state(lab)) != before:
        lab.found("F9", f"old commands had an effect: {before} became {after}")
    if (gap_s := max(lab.gap(began, CLOCK.monotonic()).values())) > NOTHING_HAPPENS_S:
        lab.found("F9", f"nothing was answered for {gap_s:.2f} s while old commands were said")


def _state(lab: Lab) -> tuple[object, ...]:
    """What no old command may change."""
    lab.follow()
    return lab.owners(), lab.epochs(), {name: load.sessions for name, load in lab.loads.items()}


def _refused(lab: Lab) -> int:
    """How many commands the workers have refused for their epoch."""
    found = [entry for node in NODES for entry in lab.cluster.log(node, event="handler refused")]
    return sum(entry["code"] == StaleEpoch.code for entry in found)


def _said(lab: Lab, broker: Connection, act: Callable[[], None]) -> list[Any]:
    """The messages to our topics while that is done."""
    captured: list[Any] = []
    lab.cluster.rabbitmq.ctl("trace_on")
    try:
        exchange = Exchange(TRACE, type="topic", no_declare=True)
        listener = Queue("sanderling-lab-trace", exchange, routing_key="publish.#", durable=False, auto_delete=True)
        with _consuming(broker, [listener], captured.append):
            act()
    finally:
        lab.cluster.rabbitmq.ctl("trace_off")
    return [message for message in captured if message.headers["routing_keys"][0].partition(".")[0] in TOPICS]


def _say(broker: Connection, messages: Sequence[Any], dice: random.Random) -> None:
    """Again, to whom they were said; each second one as it was, the others under new ids."""
    with broker.Producer() as producer:
        for number, message in enumerate(messages):
            producer.publish(
                message.body if number % 2 else _under_a_new_id(message.body, dice),
                exchange=message.headers["exchange_name"],
                routing_key=message.headers["routing_keys"][0],
                content_type="application/json",
                content_encoding="utf-8",
            )


def _call(message: Any) -> dict[str, Any]:
    call: dict[str, Any] = json.loads(json.loads(message.body)["oslo.message"])
    return call


def _method(message: Any) -> str:
    call = _call(message)
    return f"{call.get('namespace')}.{call.get('method')}"


def _export(message: Any) -> str:
    command = ExportCommand.model_validate(_call(message)["args"]["message"])
    return str(command.export)


def _epoch(message: Any) -> Epoch:
    return ExportCommand.model_validate(_call(message)["args"]["message"]).epoch


def poison(lab: Lab, _dice: random.Random) -> None:
    bodies: list[bytes | str] = [
        b"\xff\xfe not json",
        "[" * 20_000,
        json.dumps({"oslo.version": "2.0", "oslo.message": "{"}),
        json.dumps({"oslo.version": "9.0", "oslo.message": "{}"}),
        *(json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(each)}) for each in _CALLS),
        b"x" * (50 << 20 if lab.full else 5 << 20),
    ]
    with _broker(lab) as broker, broker.Producer() as producer:
        for body in bodies:
            for queue in QUEUES:
                producer.publish(body, exchange="", routing_key=queue, content_type="application/json", content_encoding="utf-8")
    lab.did(f"{len(bodies)} poisonous messages onto each of {', '.join(QUEUES)}")
    lab.ask()
    lab.hold(3.0)
    lab.finish()
    for process in lab.cluster.processes.values():
        if not process.alive:
            lab.found("F10", f"{process.name} did not survive the poison")


TOPICS = {topics.CONDUCTOR, topics.ISCSI_WORKER, topics.REPORTS}
_CALLS: tuple[dict[str, Any], ...] = (
    {"method": "none.such", "args": {}, "version": "1.0"},
    {"method": "wake", "namespace": "operation", "args": {"message": {"operation_id": ["no", "string"]}}, "version": "1.0"},
    {"method": "wake", "namespace": "operation", "args": {"message": {"operation_id": "../../etc"}}, "version": "77.0"},
    {"method": "clean", "namespace": "export", "args": {"message": {"export": "x", "epoch": -1}}, "version": "1.0"},
    {"event_type": "export.served", "payload": {"export": None}, "priority": "INFO", "publisher_id": 7},
    {"method": 5, "args": [[[[]]]]},
)


def _under_a_new_id(body: Any, dice: random.Random) -> str:
    """Past the broker library's own memory of the messages it has seen."""
    envelope = json.loads(body)
    message = json.loads(envelope["oslo.message"])
    message["_unique_id"] = f"{dice.getrandbits(128):032x}"
    return json.dumps(envelope | {"oslo.message": json.dumps(message)})


@contextlib.contextmanager
def _broker(lab: Lab) -> Iterator[Connection]:
    with Connection(lab.cluster.rabbitmq.amqp_url.replace("amqp://", "pyamqp://"), connect_timeout=10) as broker:
        broker.connect()
        yield broker


@contextlib.contextmanager
def _consuming(broker: Connection, queues: list[Queue], take: Any) -> Iterator[None]:
    """Take from the queues, in a thread, until the end of the block."""
    stopping, begun = threading.Event(), threading.Event()

    def drain() -> None:
        with broker.Consumer(queues, on_message=take, no_ack=True, prefetch_count=1):
            begun.set()
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    broker.drain_events(timeout=0.2)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    if not CLOCK.wait(begun, BEGUN_WITHIN_S):
        raise LabFailed("the broker lets nobody else consume")
    try:
        yield
    finally:
        stopping.set()
        thread.join(10.0)


SCENARIOS = (
    Scenario("F1-killed", "broker killed and started again", killed, quick=1, full=1, keeps=True, patience_s=PATIENT_S),
    Scenario("F1-frozen", "broker frozen and resumed", frozen, quick=1, full=1, keeps=True, patience_s=PATIENT_S),
    Scenario("F9-lost", "every second message lost", lost, quick=1, full=5, keeps=True, patience_s=PATIENT_S),
    Scenario(
        "F9-repeated", "messages repeated late and out of order", repeated, quick=1, full=5, keeps=True, patience_s=PATIENT_S
    ),
    Scenario("F9-late", "everything said arrives late", late, quick=0, full=3, patience_s=PATIENT_S, around=proxied),
    Scenario("F9-old", "commands of moves that are long over", old_commands, quick=1, full=3, patience_s=PATIENT_S),
    Scenario("F10-poison", "messages that nobody can take", poison, quick=1, full=5, keeps=True, patience_s=PATIENT_S),
)
