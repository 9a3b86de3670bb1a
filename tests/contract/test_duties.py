"""The leader's duties on SQLite and coordination in memory, with couriers as the processes they are."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email import message_from_string
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from cli.lab.parts.daemons import waited
from leader import courier
from leader.courier import Courier, Order
from leader.duties import Tenure
from leader.notifications import NotificationsDuty
from leader.rounds import Rounds
from leader.statistics import StatisticsDuty
from sanderling import secrets as keys
from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import OutOfSpace, StaleTerm, Unavailable
from sanderling.images.base import Capacity, Images
from sanderling.model.exports import Connection, Export, ExportId, ExportPhase, Gateway
from sanderling.model.notifications import Rule
from sanderling.model.statistics import Sample
from sanderling.records import events, notifications, statistics, terms
from sanderling.records.database import Records
from sanderling.records.tables import RuleRow
from sanderling.secrets import Keyring
from tests.receiver import Mailbox, Receiver

CLOCK = SystemClock()
WITHIN_S = 120.0


class Pool:
    """Images as far as statistics ask."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()

    def capacity(self) -> Capacity | None:
        self.answers.wait(60)
        return Capacity(1000, 400)


class Held(Tenure):
    """A tenure that a test takes away."""

    def __init__(self, term: int = 1) -> None:
        super().__init__(term, [], until=CLOCK.monotonic() + 3600, bounds=settings.Leader(), clock=CLOCK)
        self.failures: list[tuple[str, int]] = []
        self.over = False

    def holds(self) -> bool:
        return not self.over

    def fail(self, why: str, *, outranked_by: int = 0) -> None:
        self.failures.append((why, outranked_by))


@dataclass
class Stage:
    """Where duties act."""

    configured: settings.Settings
    records: Records
    coordination: EmbeddedCoordination = field(default_factory=lambda: EmbeddedCoordination(clock=CLOCK))
    pool: Pool = field(default_factory=Pool)
    begun: list[Rounds] = field(default_factory=list)
    sessions: dict[str, str] = field(default_factory=dict)

    def statistics(self, term: int = 1, **options: Any) -> Held:
        configured = replace(self.configured, statistics=replace(self.configured.statistics, **options))
        images = cast("Images", self.pool)
        return self._begin(
            StatisticsDuty(configured, records=self.records, coordination=self.coordination, images=images, clock=CLOCK),
            term,
        )

    def notifications(self, term: int = 1) -> Held:
        return self._begin(NotificationsDuty(self.configured, records=self.records, clock=CLOCK), term)

    def _begin(self, duty: Rounds, term: int) -> Held:
        tenure = Held(term)
        self.begun.append(duty)
        duty.start(tenure)
        return tenure

    def stop(self) -> None:
        while self.begun:
            self.begun.pop().stop()

    def rule(self, url: str, name: str = "mine", *kinds: str) -> Rule:
        with self.records.begin() as session:
            return notifications.create(
                session,
                name=name,
                kinds=kinds or ("disk.*",),
                sealed_url=Keyring(self.configured.secrets).seal(url),
                receiver="x",
                now=CLOCK.wall(),
                actor="test",
                rules_max=100,
            )

    def shown(self, name: str = "mine") -> Rule:
        with self.records.read() as session:
            return notifications.get(session, name)

    def happens(self, kind: str = "disk.failed", *, times: int = 1) -> int:
        with self.records.begin() as session:
            for _ in range(times):
                events.append(session, kind, at=CLOCK.wall(), actor="test", data={"name": "vol"})
        with self.records.read() as session:
            return events.newest(session)

    def kinds(self) -> list[str]:
        with self.records.read() as session:
            return [event.kind for event in events.page(session, after=0, limit=1000)]

    def lead_on(self, term: int) -> None:
        """Another leads, in that term, and has written."""
        with self.records.begin() as session:
            terms.hold(session, "cluster", term)

    def samples(self, resource: str | None = None) -> list[Sample]:
        with self.records.read() as session:
            since = CLOCK.wall().replace(year=2020)
            return statistics.page(session, since=since, span_s=statistics.FINE, limit=10_000, resource=resource)

    def gateway(self, name: str, **said: Any) -> None:
        if name not in self.sessions:
            self.sessions[name] = self.coordination.open_session(name, check_ttl_s=3600.0)
        value = Gateway(name=name, **said)
        assert self.coordination.acquire(value.key, value.model_dump_json().encode(), consul_session=self.sessions[name])

    def dies(self, name: str) -> None:
        self.coordination.close_session(self.sessions.pop(name))

    def serves(self, name: str, disk_id: str) -> None:
        connection = Connection("iqn.x:i", "10.0.0.9", 4000, "10.0.0.1")
        value = Export(generation=1, node=name, phase=ExportPhase.SERVING, connections=(connection,))
        key = ExportId(disk_id, 0).key
        assert self.coordination.acquire(key, value.model_dump_json().encode(), consul_session=self.sessions[name])


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    file = tmp_path / "keys"
    keys.add(file)
    configured = settings.Settings(
        records=settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite", busy_timeout_s=5.0, idle_timeout_s=2.0),
        statistics=settings.Statistics(interval_s=0.5, export_interval_s=0.5, ask_timeout_s=0.2),
        notifications=settings.Notifications(
            loopback="on", interval_s=0.05, retry_first_s=0.05, retry_most_s=0.2, timeout_s=5.0, couriers=2
        ),
        secrets=settings.Secrets(key_file=str(file)),
    )
    records = Records(configured.records, clock=CLOCK)
    records.migrate()
    made = Stage(configured, records)
    try:
        yield made
    finally:
        made.pool.answers.set()
        made.stop()
        records.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def until(true: Callable[[], bool], what: str) -> None:
    waited(true, within_s=WITHIN_S, what=what)


# --- statistics ---


@pytest.mark.rows("LE-20")
def test_the_pool_each_gateway_and_each_export_are_measured(stage: Stage) -> None:
    stage.gateway("a")
    stage.serves("a", "d1")
    stage.statistics()
    until(lambda: bool(stage.samples()), "something was measured")
    found = {sample.resource: sample.figures for sample in stage.samples()}
    assert found["cluster"] == {
        "total_bytes": 1000,
        "free_bytes": 400,
        "used_bytes": 600,
        "gateways": 1,
        "exports": 1,
        "exports_served": 1,
        "connections": 1,
    }
    assert found["gateway/a"] == {"live": True, "withdrawing": False, "exports": 1, "connections": 1}
    assert found["export/d1/0"] == {"gateway": "a", "phase": "serving", "connections": 1}


def test_a_key_that_is_no_exports_costs_no_leader_its_duty(stage: Stage) -> None:
    stage.gateway("a")
    stage.serves("a", "d1")
    for stray in ("stray", "d1/x", "d1/00", "d1/0/1"):
        stage.coordination.put(f"exports/{stray}", b'{"generation": 1}')
    tenure = stage.statistics()
    until(lambda: bool(stage.samples()), "something was measured")
    assert {sample.resource for sample in stage.samples("export/")} == {"export/d1/0"}
    assert not tenure.failures


def test_a_pool_that_does_not_answer_leaves_its_figures_out_and_holds_nothing_up(stage: Stage) -> None:
    stage.pool.answers.clear()
    stage.statistics()
    until(lambda: len(stage.samples("cluster")) >= 3, "it goes on measuring")
    assert {sample.figures["used_bytes"] for sample in stage.samples("cluster")} == {None}


def test_more_exports_than_a_turn_may_measure_are_measured_in_turn(stage: Stage) -> None:
    stage.gateway("a")
    for number in range(5):
        stage.serves("a", f"d{number}")
    stage.statistics(exports_max=2)
    until(lambda: len({sample.resource for sample in stage.samples("export/")}) == 5, "each has been measured")
    slots = {sample.at for sample in stage.samples("export/")}
    assert all(len([sample for sample in stage.samples("export/") if sample.at == at]) <= 2 for at in slots)


def test_a_gateway_that_is_lost_or_leaves_or_comes_back_is_told_once_whoever_leads(stage: Stage) -> None:
    stage.gateway("a")
    stage.gateway("b")
    stage.statistics(term=1)
    until(lambda: len(stage.samples("gateway/")) >= 2, "both were measured")
    stage.stop()
    stage.dies("a")
    stage.gateway("b", withdrawing=True)
    stage.dies("b")
    for term in (2, 3):
        before = len(stage.samples("cluster"))
        stage.statistics(term=term)
        until(lambda before=before: len(stage.samples("cluster")) >= before + 2, "it measures")  # type: ignore[misc]
        stage.stop()
    assert sorted(stage.kinds()) == ["gateway.left", "gateway.lost"]
    stage.gateway("a")
    stage.statistics(term=4)
    until(lambda: "gateway.back" in stage.kinds(), "it came back")


@pytest.mark.rows("W-LE-6", "LE-22")
def test_a_leader_that_another_has_followed_measures_nothing_more_and_says_in_which_term(stage: Stage) -> None:
    tenure = stage.statistics(term=1)
    until(lambda: bool(stage.samples()), "it measures")
    stage.lead_on(5)
    until(lambda: bool(tenure.failures), "it hands on")
    assert tenure.failures[0][1] == 5
    with pytest.raises(StaleTerm):
        stage.statistics(term=4)


def test_a_leader_without_records_does_not_begin(stage: Stage, tmp_path: Path) -> None:
    stage.records = Records(settings.Records(url=f"sqlite:///{tmp_path}/none.sqlite"), clock=CLOCK)
    with pytest.raises(Unavailable):
        stage.statistics()
    with pytest.raises(Unavailable):
        stage.notifications()


# --- notifications ---


@pytest.mark.rows("LE-20")
def test_every_event_that_a_rule_names_arrives_once_and_in_order(stage: Stage, receiver: Receiver) -> None:
    stage.rule(receiver.url)
    stage.happens(times=5)
    stage.happens("operation.failed", times=5)
    stage.notifications()
    last = stage.happens(times=5)
    until(lambda: stage.shown().cursor == last, "all were delivered")
    assert len(receiver.events) == 10
    assert receiver.events == sorted(receiver.events)
    assert not receiver.repeats
    assert {body["event"]["kind"] for body in receiver.got} == {"disk.failed"}
    assert receiver.got[0]["title"] == "Sanderling: disk.failed vol"
    assert receiver.got[0]["event"]["key"] == receiver.keys[0]


def test_a_receiver_that_is_away_delays_its_own_rule_alone(stage: Stage, receiver: Receiver) -> None:
    with Receiver() as away:
        away.status = 503
        for number in range(3):
            stage.rule(away.url, f"away-{number}")
        stage.rule(receiver.url)
        stage.notifications()
        last = stage.happens(times=10)
        until(lambda: stage.shown().cursor == last, "the one that answers has got all")
        until(lambda: stage.shown("away-0").failures >= 3, "the others are tried again")
        assert stage.shown("away-0").last_error == "the receiver answered 503"
        away.status = 200
        until(lambda: all(stage.shown(f"away-{n}").cursor == last for n in range(3)), "nothing was lost")
        assert len(away.events) == 30
        assert not away.repeats


def test_a_leader_that_stops_in_the_middle_is_followed_by_one_that_goes_on_there(stage: Stage, receiver: Receiver) -> None:
    stage.rule(receiver.url)
    last = 0
    for term in range(1, 5):
        stage.notifications(term)
        last = stage.happens(times=8)
        until(lambda term=term: len(receiver.events) >= 4 * term, "some were delivered")  # type: ignore[misc]
        stage.stop()
    stage.notifications(5)
    until(lambda: stage.shown().cursor == last, "all were delivered")
    assert sorted(receiver.events) == receiver.events
    assert len(set(receiver.events)) == 32


def test_a_receiver_that_hangs_is_given_its_time_and_no_more(stage: Stage, receiver: Receiver) -> None:
    stage.configured = replace(stage.configured, notifications=replace(stage.configured.notifications, timeout_s=0.3))
    receiver.answers.clear()
    stage.rule(receiver.url)
    stage.notifications()
    stage.happens()
    until(lambda: stage.shown().failures >= 1, "an attempt is over")
    assert stage.shown().last_error == "the receiver did not take it within 0.3 s"


def test_stopping_does_not_wait_for_a_receiver_that_hangs_and_nothing_is_sent_after_it(stage: Stage, receiver: Receiver) -> None:
    receiver.answers.clear()
    stage.rule(receiver.url)
    stage.notifications()
    stage.happens(times=3)
    until(receiver.began.is_set, "the first is being sent")
    stage.stop()
    receiver.answers.set()
    assert stage.shown().delivered == 0
    stage.stop()


def test_a_rules_url_is_in_no_process_list_and_in_nothing_that_is_stored(stage: Stage, receiver: Receiver) -> None:
    receiver.answers.clear()
    stage.rule(receiver.url)
    stage.notifications()
    stage.happens()
    until(receiver.began.is_set, "it is being sent")
    seen = b"".join(
        file.read_bytes()
        for process in Path("/proc").glob("[0-9]*")
        for file in (process / "cmdline", process / "environ")
        if b"leader.courier" in _read(process / "cmdline")
    )
    assert b"leader.courier" in seen
    assert b"canary-secret" not in seen
    receiver.status = 500
    receiver.answers.set()
    until(lambda: stage.shown().failures >= 1, "an attempt is over")
    database = Path(stage.configured.records.url.removeprefix("sqlite:///"))
    stored = b"".join(path.read_bytes() for path in database.parent.glob("records.sqlite*"))
    assert b"disk.failed" in stored
    assert b"canary-secret" not in stored


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


# --- a courier ---


def carrier(stage: Stage) -> Courier:
    configured = stage.configured
    return Courier(
        configured.notifications,
        stage.records,
        Keyring(configured.secrets),
        lasts_s=courier.lasts_s(configured),
        clock=CLOCK,
    )


def order(rule: Rule, event_id: int, *, term: int = 1, until_s: float = 3600.0) -> Order:
    return Order(rule.id, event_id, term, CLOCK.monotonic() + until_s)


@pytest.mark.rows("W-LE-6", "LE-21")
def test_an_order_of_a_leader_that_another_has_followed_sends_nothing(stage: Stage, receiver: Receiver) -> None:
    rule, event_id = stage.rule(receiver.url), stage.happens()
    stage.lead_on(5)
    answer = carrier(stage).carry_out(order(rule, event_id, term=4))
    assert (answer.outcome, answer.term) == ("stale", 5)
    assert not receiver.keys


@pytest.mark.rows("LE-21")
def test_an_order_whose_lease_is_over_sends_nothing(stage: Stage, receiver: Receiver) -> None:
    rule, event_id = stage.rule(receiver.url), stage.happens()
    assert carrier(stage).carry_out(order(rule, event_id, until_s=0.0)).outcome == "over"
    assert not receiver.keys
    assert carrier(stage).carry_out(order(rule, event_id, term=2)).outcome == "delivered", "and nobody has to wait for it"


def test_why_a_receiver_did_not_take_it_is_told_also_where_nothing_but_errors_is_logged(stage: Stage, receiver: Receiver) -> None:
    receiver.status = 503
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        assert carrier(stage).carry_out(order(stage.rule(receiver.url), stage.happens())).outcome == "failed"
    finally:
        logging.getLogger().setLevel(before)
    assert stage.shown().last_error == "the receiver answered 503"


def test_a_redirect_is_not_followed(stage: Stage, receiver: Receiver) -> None:
    with Receiver() as other:
        receiver.status, receiver.location = 307, other.url.replace("json://", "http://")
        rule, event_id = stage.rule(receiver.url), stage.happens()
        assert carrier(stage).carry_out(order(rule, event_id)).outcome == "failed"
        assert not other.began.is_set()
    assert stage.shown().last_error == "the receiver answered 307"


def test_a_name_that_turns_out_to_be_this_host_is_not_sent_to(stage: Stage, receiver: Receiver) -> None:
    stage.configured = replace(stage.configured, notifications=replace(stage.configured.notifications, loopback="off"))
    rule, event_id = stage.rule(receiver.url.replace("127.0.0.1", "localhost")), stage.happens()
    assert carrier(stage).carry_out(order(rule, event_id)).outcome == "failed"
    assert not receiver.began.is_set()
    assert "this host or its link" in str(stage.shown().last_error)


def test_a_key_that_is_gone_is_said_and_loses_nothing(stage: Stage, receiver: Receiver, tmp_path: Path) -> None:
    rule, event_id = stage.rule(receiver.url), stage.happens()
    key_file = Path(stage.configured.secrets.key_file)
    key_file.unlink()
    keys.add(key_file)
    assert carrier(stage).carry_out(order(rule, event_id)).outcome == "failed"
    assert "sealed with a key" in str(stage.shown().last_error)
    assert stage.shown().behind == 1


def test_a_mail_that_is_sent_again_has_the_message_id_that_it_had(stage: Stage) -> None:
    with Mailbox() as mailbox:
        rule, event_id = stage.rule(mailbox.url), stage.happens()
        assert carrier(stage).carry_out(order(rule, event_id)).outcome == "delivered"
        with stage.records.begin() as session:
            session.execute(update(RuleRow).values(cursor=event_id - 1))
        assert carrier(stage).carry_out(order(rule, event_id)).outcome == "delivered"
    mails = [message_from_string(mail) for mail in mailbox.mails]
    assert [mail.get_all("Message-ID") for mail in mails] == [[f"<{rule.id}-{event_id}@sanderling>"]] * 2
    assert mails[0]["Subject"] == "Sanderling: disk.failed vol"


@pytest.mark.parametrize("when", ["before it is sent", "after it was sent"])
def test_a_full_disk_under_the_records_loses_nothing(stage: Stage, receiver: Receiver, when: str) -> None:
    rule, event_id = stage.rule(receiver.url), stage.happens()
    fills = 0 if when == "before it is sent" else 1

    class Full(Records):
        """Without room from the second write on, or the first, and for as long as it is asked in one delivery."""

        writes = 0
        is_full = True

        @contextlib.contextmanager
        def begin(self) -> Iterator[Session]:
            self.writes += 1
            if self.is_full and self.writes > fills:
                raise OutOfSpace("the records' disk is full; make room on it", dependency="records")
            with super().begin() as session:
                yield session

    stage.records.close()
    full = stage.records = Full(stage.configured.records, clock=CLOCK)
    one = Courier(stage.configured.notifications, full, Keyring(stage.configured.secrets), lasts_s=0.3, clock=CLOCK)
    assert one.carry_out(order(rule, event_id)).outcome == "away"
    assert len(receiver.keys) == fills
    full.is_full = False
    assert one.carry_out(order(rule, event_id)).outcome == "delivered"
    assert set(receiver.keys) == {f"{rule.id}-{event_id}"}
    assert stage.shown().cursor == event_id
