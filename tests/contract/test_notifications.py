"""What a rule promises: each event once and in order, whoever delivers it and whatever that one dies of."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from sanderling import settings
from sanderling.clock import ManualClock
from sanderling.errors import Conflict, Exhausted, NotFound
from sanderling.model.notifications import GIVEN_UP, Rule
from sanderling.records import events, notifications
from sanderling.records.database import Records
from sanderling.records.notifications import Delivery

OPTIONS = settings.Notifications(retry_first_s=1.0, retry_most_s=8.0, keep_s=100.0)
LASTS_S = 20.0


@dataclass
class Site:
    """Records with a rule in them."""

    records: Records
    clock: ManualClock

    def rule(self, name: str = "mine", *kinds: str) -> Rule:
        with self.records.begin() as session:
            return notifications.create(
                session,
                name=name,
                kinds=kinds or ("disk.*",),
                sealed_url="sealed",
                receiver="json://h",
                now=self.clock.wall(),
                actor="test",
                rules_max=3,
            )

    def shown(self, name: str = "mine") -> Rule:
        with self.records.read() as session:
            return notifications.get(session, name)

    def happens(self, kind: str = "disk.failed") -> int:
        with self.records.begin() as session:
            events.append(session, kind, at=self.clock.wall(), actor="test", data={"name": "vol"})
        with self.records.read() as session:
            return events.newest(session)

    def claim(self, rule: Rule, event_id: int, *, term: int = 1) -> Delivery | object:
        with self.records.begin() as session:
            return notifications.claim(session, rule.id, event_id, term=term, now=self.clock.wall(), lasts_s=LASTS_S)

    def claimed(self, rule: Rule, event_id: int, *, term: int = 1) -> Delivery:
        delivery = self.claim(rule, event_id, term=term)
        assert isinstance(delivery, Delivery)
        return delivery

    def confirm(self, delivery: Delivery) -> bool:
        with self.records.begin() as session:
            return notifications.confirm(session, delivery, now=self.clock.wall())

    def refuse(self, delivery: Delivery, reason: str = "the receiver answered 503") -> bool:
        with self.records.begin() as session:
            return notifications.refuse(session, delivery, reason, now=self.clock.wall(), options=OPTIONS)

    def kinds(self) -> list[str]:
        with self.records.read() as session:
            return [event.kind for event in events.page(session, after=0, limit=100)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    clock = ManualClock()
    records = Records(settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=clock)
    records.migrate()
    yield Site(records, clock)
    records.close()


def test_a_rule_begins_with_what_happens_after_it_was_made(site: Site) -> None:
    site.happens()
    rule = site.rule()
    assert rule.behind == 0
    site.happens()
    site.happens("operation.failed")
    assert site.shown().behind == 1


def test_an_event_that_was_delivered_is_not_delivered_again(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    assert site.confirm(site.claimed(rule, event_id))
    assert site.claim(rule, event_id) is None
    assert site.claim(rule, event_id, term=2) is None
    assert (site.shown().cursor, site.shown().delivered, site.shown().behind) == (event_id, 1, 0)


def test_the_key_of_an_event_is_the_same_for_every_attempt_and_no_other_events(site: Site) -> None:
    rule, other = site.rule(), site.rule("other")
    first, second = site.happens(), site.happens()
    attempts = [site.claimed(rule, first, term=1), site.claimed(rule, first, term=1)]
    assert len({attempt.key for attempt in attempts}) == 1
    assert len({attempts[0].key, site.claimed(rule, second).key, site.claimed(other, first).key}) == 3


def test_what_another_leader_may_still_be_sending_is_waited_for_and_then_taken_over(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    lost = site.claimed(rule, event_id, term=1)
    assert site.claim(rule, event_id, term=2) == site.clock.wall() + timedelta(seconds=LASTS_S)
    site.clock.advance(LASTS_S)
    heir = site.claimed(rule, event_id, term=2)
    assert not site.confirm(lost)
    assert site.confirm(heir)
    assert site.shown().delivered == 1


def test_who_died_after_it_had_delivered_is_believed_whoever_leads_by_then(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    delivery = site.claimed(rule, event_id, term=1)
    site.claim(rule, event_id, term=2)
    assert site.confirm(delivery)
    assert site.claim(rule, event_id, term=2) is None


def test_what_was_claimed_and_not_begun_is_free_at_once(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    delivery = site.claimed(rule, event_id, term=1)
    with site.records.begin() as session:
        notifications.release(session, delivery)
    assert site.claimed(rule, event_id, term=2)


def test_a_receiver_that_is_away_is_tried_less_and_less_often_and_loses_nothing(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    pauses = []
    for _ in range(6):
        assert site.refuse(site.claimed(rule, event_id))
        due = site.shown().next_attempt_at
        assert due is not None
        pauses.append((due - site.clock.wall()).total_seconds())
    assert pauses == [1, 2, 4, 8, 8, 8]
    shown = site.shown()
    assert (shown.failures, shown.last_error, shown.cursor < event_id) == (6, "the receiver answered 503", True)
    assert site.confirm(site.claimed(rule, event_id))
    shown = site.shown()
    assert (shown.failures, shown.last_error, shown.failing_since, shown.next_attempt_at) == (0, None, None, None)


def test_an_event_that_nobody_takes_for_long_enough_is_given_up_and_the_history_says_so(site: Site) -> None:
    rule, first, second = site.rule(), site.happens(), site.happens()
    site.refuse(site.claimed(rule, first))
    site.clock.advance(OPTIONS.keep_s)
    site.refuse(site.claimed(rule, first))
    assert (site.shown().given_up, site.shown().cursor, site.shown().behind) == (1, first, 1)
    assert site.kinds()[-1] == GIVEN_UP
    assert site.confirm(site.claimed(rule, second))


def test_a_failure_that_comes_late_changes_nothing_of_another_leaders_attempt(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    lost = site.claimed(rule, event_id, term=1)
    site.clock.advance(LASTS_S)
    site.claimed(rule, event_id, term=2)
    assert not site.refuse(lost)
    assert site.shown().failures == 0


def test_a_rule_that_was_deleted_delivers_nothing_more(site: Site) -> None:
    rule, event_id = site.rule(), site.happens()
    delivery = site.claimed(rule, event_id)
    with site.records.begin() as session:
        notifications.remove(session, "mine", now=site.clock.wall(), actor="test")
    assert not site.confirm(delivery)
    assert site.claim(rule, event_id) is None
    with pytest.raises(NotFound):
        site.shown()


def test_there_is_a_bound_on_rules_and_one_of_each_name(site: Site) -> None:
    site.rule("a")
    with pytest.raises(Conflict, match="already"):
        site.rule("a")
    site.rule("b")
    site.rule("c")
    with pytest.raises(Exhausted):
        site.rule("d")


def test_a_test_message_waits_for_its_own_rule_alone(site: Site) -> None:
    mine, other = site.rule("mine", "disk.*"), site.rule("other", "*")
    with site.records.begin() as session:
        event_id = notifications.request_test(session, "mine", now=site.clock.wall(), actor="test")
    assert (site.shown("mine").behind, site.shown("other").behind) == (1, 0)
    with site.records.read() as session:
        found = events.page(session, after=0, limit=100)
        due = {rule.name: rule for rule in notifications.rules(session)}
    assert notifications.first_meant(due["mine"], found, after=mine.cursor) == event_id
    assert notifications.first_meant(due["other"], found, after=other.cursor) is None


def test_what_is_counted_as_waiting_is_what_is_delivered(site: Site) -> None:
    rule = site.rule("mine", "disk.*", "*_gap", "a.b")
    for kind in ("disk.failed", "alert_gap", "alertxgap", "a.b", "axb", "notification.deleted", "x.disk.y"):
        site.happens(kind)
    with site.records.read() as session:
        found = events.page(session, after=rule.cursor, limit=100)
        (due,) = notifications.rules(session)
    meant, after = [], rule.cursor
    while (event_id := notifications.first_meant(due, found, after=after)) is not None:
        meant.append(next(event.kind for event in found if event.id == event_id))
        after = event_id
    assert meant == ["disk.failed", "alert_gap", "a.b"]
    assert site.shown().behind == len(meant)


def test_what_concerns_nobody_is_passed_and_never_gone_back_over(site: Site) -> None:
    rule, event_id = site.rule(), site.happens("operation.failed")
    for to in (event_id, event_id - 1):
        with site.records.begin() as session:
            notifications.skip(session, rule.id, to=to)
    assert site.shown().cursor == event_id
