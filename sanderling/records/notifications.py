"""Notification rules, and the deliveries of their events: each one claimed before it is sent and confirmed after.

A claim is stored before anything is sent, so whoever comes after a leader that died knows which event may have been sent
already: that one, under the same key, and no other. What ends a claim compares the claim itself, not the leader's term: that
an event was delivered stays true when another leads by then.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import false, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from sanderling.errors import Conflict, Exhausted, NotFound
from sanderling.model.notifications import GIVEN_UP, TEST, Rule, is_meant
from sanderling.records import events
from sanderling.records.events import Event
from sanderling.records.tables import EventRow, RuleRow
from sanderling.settings import Notifications

BEHIND_MAX = 1000  # more than this that wait are not counted


class Due(NamedTuple):
    """A rule as far as its leader has to know."""

    id: str
    name: str
    kinds: tuple[str, ...]
    cursor: int
    not_before: datetime | None
    failures: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed event with where it goes. `key` is the same however often it is sent, and no other event's."""

    rule_id: str
    rule: str
    sealed_url: str
    event: Event
    term: int

    @property
    def key(self) -> str:
        return f"{self.rule_id}-{self.event.id}"


def create(
    session: Session,
    *,
    name: str,
    kinds: Sequence[str],
    sealed_url: str,
    receiver: str,
    now: datetime,
    actor: str,
    rules_max: int,
) -> Rule:
    """A rule for every event from now on; `Conflict` when the name is taken, `Exhausted` when there are too many."""
    if (session.scalar(select(func.count()).select_from(RuleRow)) or 0) >= rules_max:
        raise Exhausted(f"there are {rules_max} rules already ([notifications] rules_max); delete one first")
    row = RuleRow(
        id=str(uuid.uuid4()),
        name=name,
        kinds=list(kinds),
        sealed_url=sealed_url,
        receiver=receiver,
        created_by=actor,
        created_at=now,
        cursor=0,
        failures=0,
        delivered=0,
        given_up=0,
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"there is a rule {name} already; choose another name or delete it", field="name") from error
    data = {"name": name, "kinds": list(kinds), "receiver": receiver}
    events.append(session, "notification.created", at=now, actor=actor, resource_id=row.id, data=data)
    row.cursor = events.newest(session)
    return _describe(session, row)


def page(session: Session, *, marker: str | None, limit: int) -> list[Rule]:
    """By name, after the name `marker`."""
    query = select(RuleRow).order_by(RuleRow.name).limit(limit)
    if marker is not None:
        query = query.where(RuleRow.name > marker)
    return [_describe(session, row) for row in session.scalars(query)]


def get(session: Session, name: str) -> Rule:
    return _describe(session, _row(session, name))


def remove(session: Session, name: str, *, now: datetime, actor: str) -> None:
    """Deliver nothing more by this rule; what is being sent right now may still arrive."""
    row = _row(session, name)
    session.delete(row)
    session.flush()
    events.append(session, "notification.deleted", at=now, actor=actor, resource_id=row.id, data={"name": row.name})


def request_test(session: Session, name: str, *, now: datetime, actor: str) -> int:
    """Put a message for this rule alone into the history; its event's id. It is delivered behind what waits already."""
    row = _row(session, name)
    events.append(session, TEST, at=now, actor=actor, resource_id=row.name, data={"name": row.name})
    return events.newest(session)


def rules(session: Session) -> list[Due]:
    """All there are."""
    return [
        Due(row.id, row.name, tuple(row.kinds), row.cursor, row.next_attempt_at, row.failures, row.delivered)
        for row in session.scalars(select(RuleRow).order_by(RuleRow.name))
    ]


def first_meant(rule: Due, found: Sequence[Event], *, after: int) -> int | None:
    """The id of the first of these events behind `after` that this rule is told of."""
    return next(
        (
            event.id
            for event in found
            if event.id > after and is_meant(rule.kinds, rule.name, kind=event.kind, resource_id=event.resource_id)
        ),
        None,
    )


def skip(session: Session, rule_id: str, *, to: int) -> None:
    """Nothing up to that event is this rule's concern."""
    session.execute(update(RuleRow).where(RuleRow.id == rule_id, RuleRow.cursor < to).values(cursor=to))


def claim(
    session: Session, rule_id: str, event_id: int, *, term: int, now: datetime, lasts_s: float
) -> Delivery | datetime | None:
    """Take the delivery of that event. A time when it is to be asked for again: another may still be sending it until then.

    None when there is nothing to do: the rule is gone, or is told of that event already. The caller has held its term.
    """
    row = session.get(RuleRow, rule_id, with_for_update=True)
    if row is None or row.cursor >= event_id:
        return None
    is_anothers = row.attempt_event is not None and row.attempt_term != term
    if is_anothers and row.attempt_until is not None and row.attempt_until > now:
        return row.attempt_until
    event = events.get(session, event_id)
    if event is None:
        row.cursor = event_id
        return None
    row.attempt_event, row.attempt_term, row.attempt_until = event_id, term, now + timedelta(seconds=lasts_s)
    return Delivery(row.id, row.name, row.sealed_url, event, term)


def confirm(session: Session, delivery: Delivery, *, now: datetime) -> bool:
    """It was delivered. False, and nothing written, when somebody else has claimed it since."""
    row = _claimed(session, delivery)
    if row is None:
        return False
    _pass(row, delivery.event.id)
    row.delivered, row.delivered_at, row.last_error = row.delivered + 1, now, None
    return True


def release(session: Session, delivery: Delivery) -> None:
    """Nothing was sent: whoever is next need not wait."""
    row = _claimed(session, delivery)
    if row is not None:
        row.attempt_event = row.attempt_term = row.attempt_until = None


def refuse(session: Session, delivery: Delivery, reason: str, *, now: datetime, options: Notifications) -> bool:
    """It was not delivered: to be tried again after a pause that doubles, or given up; False as `confirm` says it."""
    row = _claimed(session, delivery)
    if row is None:
        return False
    row.attempt_event = row.attempt_term = row.attempt_until = None
    row.failures, row.last_error, row.failing_since = row.failures + 1, reason, row.failing_since or now
    pause_s = min(options.retry_first_s * 2.0 ** min(row.failures - 1, 32), options.retry_most_s)
    row.next_attempt_at = now + timedelta(seconds=pause_s)
    if now - row.failing_since >= timedelta(seconds=options.keep_s):
        _pass(row, delivery.event.id)
        row.given_up += 1
        data = {"name": row.name, "event": delivery.event.id, "kind": delivery.event.kind, "reason": reason}
        events.append(session, GIVEN_UP, at=now, actor="leader", resource_id=row.id, data=data)
    return True


def _pass(row: RuleRow, event_id: int) -> None:
    row.cursor, row.failures = event_id, 0
    row.attempt_event = row.attempt_term = row.attempt_until = row.failing_since = row.next_attempt_at = None


def _claimed(session: Session, delivery: Delivery) -> RuleRow | None:
    row = session.get(RuleRow, delivery.rule_id, with_for_update=True)
    if row is None or (row.attempt_event, row.attempt_term) != (delivery.event.id, delivery.term):
        return None
    return row


def _row(session: Session, name: str) -> RuleRow:
    """By name or id. A name may look like an id, and then the name counts."""
    either = (RuleRow.name == name) | (RuleRow.id == name)
    row = session.scalars(select(RuleRow).where(either).order_by((RuleRow.name == name).desc())).first()
    if row is None:
        raise NotFound(f"there is no notification rule {name[:64]}; GET /v1/notifications lists those there are", rule=name[:64])
    return row


def _behind(row: RuleRow) -> ColumnElement[bool]:
    """The events that this rule is still to be told of."""
    like = (EventRow.kind.like(_like(pattern), escape="\\") for pattern in row.kinds)
    return (EventRow.id > row.cursor) & or_(
        or_(false(), *like) & ~EventRow.kind.startswith("notification."),
        (EventRow.kind == TEST) & (EventRow.resource_id == row.name),
    )


def _like(pattern: str) -> str:
    return pattern.replace("_", "\\_").replace("*", "%")


def _describe(session: Session, row: RuleRow) -> Rule:
    waiting = select(EventRow.id).where(_behind(row)).limit(BEHIND_MAX).subquery()
    return Rule(
        id=row.id,
        name=row.name,
        kinds=tuple(row.kinds),
        receiver=row.receiver,
        created_by=row.created_by,
        created_at=row.created_at,
        cursor=row.cursor,
        behind=session.scalar(select(func.count()).select_from(waiting)) or 0,
        delivered=row.delivered,
        delivered_at=row.delivered_at,
        given_up=row.given_up,
        failures=row.failures,
        failing_since=row.failing_since,
        next_attempt_at=row.next_attempt_at,
        last_error=row.last_error,
    )
