"""A courier: a process that delivers one event at a time, as the leader's duty orders, and records what became of it.

It is a process because a delivery may hang in code that nobody can interrupt, and because it is to finish what it began when
the leader is killed or frozen in the middle: it confirms in the records by itself, so that nobody need send again. Orders come
as lines on its standard input, answers go as lines to its standard output; it ends when its input does.
"""

import json
import logging
import signal
import sys
import threading
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from sanderling import logs, receivers, settings
from sanderling.clock import Clock, SystemClock
from sanderling.errors import DeliveryFailed, Problem, SecretUnreadable, SettingsRefused, StaleTerm, Unavailable
from sanderling.model.leaders import CLUSTER as SERVICE
from sanderling.model.notifications import is_severe
from sanderling.receivers import Note
from sanderling.records import notifications, terms
from sanderling.records.database import Records
from sanderling.records.notifications import Delivery
from sanderling.secrets import Keyring

BODY_MAX: Final = 4000


class Order(NamedTuple):
    """`until` is when the lease of the term runs out, on CLOCK_MONOTONIC: nothing is begun after it."""

    rule_id: str
    event_id: int
    term: int
    until: float


class Answer(NamedTuple):
    """What became of an order: delivered, failed, nothing (to do), waits (for another, `wait_s`), over (the lease is), away (the
    records are), or stale (`term` is in force).
    """

    rule_id: str
    outcome: str
    wait_s: float = 0.0
    term: int = 0


class Courier:
    """Carries orders out, one after the other."""

    def __init__(
        self, options: settings.Notifications, records: Records, keyring: Keyring, *, lasts_s: float, clock: Clock
    ) -> None:
        """`lasts_s` is how long a claim may be at work at most, confirming included."""
        self._options, self._records, self._keyring = options, records, keyring
        self._lasts_s, self._clock, self._never = lasts_s, clock, threading.Event()

    def carry_out(self, order: Order) -> Answer:
        """Bounded; raises nothing of the receiver's or the records'."""
        try:
            return self._carry_out(order)
        except StaleTerm as problem:
            return Answer(order.rule_id, "stale", term=problem.context["term"])
        except Unavailable:
            return Answer(order.rule_id, "away")

    def _carry_out(self, order: Order) -> Answer:
        if self._clock.monotonic() >= order.until:
            return Answer(order.rule_id, "over")
        with self._records.begin() as session:
            terms.hold(session, SERVICE, order.term)
            now = self._records.now()
            claimed = notifications.claim(session, order.rule_id, order.event_id, term=order.term, now=now, lasts_s=self._lasts_s)
        if claimed is None:
            return Answer(order.rule_id, "nothing")
        if not isinstance(claimed, Delivery):
            return Answer(order.rule_id, "waits", wait_s=max(0.0, (claimed - now).total_seconds()))
        if self._clock.monotonic() >= order.until:
            with self._records.begin() as session:
                notifications.release(session, claimed)
            return Answer(order.rule_id, "over")
        return self._send(claimed)

    def _send(self, delivery: Delivery) -> Answer:
        deadline = self._clock.monotonic() + self._lasts_s
        reason = ""
        try:
            receivers.send(self._keyring.unseal(delivery.sealed_url), note(delivery), self._options)
        except (DeliveryFailed, SecretUnreadable, SettingsRefused) as problem:
            reason = problem.detail
        while True:
            try:
                self._note(delivery, reason)
            except Unavailable:
                if self._clock.monotonic() >= deadline:
                    raise  # in doubt: it is sent again, under the same key
                self._clock.wait(self._never, self._options.retry_first_s)
            else:
                return Answer(delivery.rule_id, "failed" if reason else "delivered")

    def _note(self, delivery: Delivery, reason: str) -> None:
        with self._records.begin() as session:
            now = self._records.now()
            if reason:
                notifications.refuse(session, delivery, reason, now=now, options=self._options)
            else:
                notifications.confirm(session, delivery, now=now)


def note(delivery: Delivery) -> Note:
    """An event as it is told: in words for people, whole for programs."""
    event = delivery.event
    told = event.model_dump(mode="json")
    name = event.data.get("name") or event.data.get("resource_name") or event.resource_id or ""
    lines = [f"{label}: {told[field]}" for label, field in _LINES.items() if told[field]]
    details = [f"{field}: {json.dumps(value, ensure_ascii=False)}" for field, value in event.data.items()]
    return Note(
        key=delivery.key,
        title=f"Sanderling: {event.kind} {name}".rstrip()[:200],
        body="\n".join([*lines, *details])[:BODY_MAX],
        is_severe=is_severe(event.kind),
        event={**told, "key": delivery.key, "rule": delivery.rule},
    )


_LINES: Final = {"event": "id", "kind": "kind", "at": "at", "by": "actor", "about": "resource_id", "operation": "operation_id"}


def told(configured: settings.Settings) -> str:
    """The first line of its input: what it has to know, its secrets too, which are in no argument and no environment."""
    parts = asdict(configured)
    return json.dumps({name: parts[name] for name in ("sanderling", "records", "notifications", "secrets")})


def lasts_s(configured: settings.Settings) -> float:
    """How long one delivery may be at work, confirming included."""
    return configured.notifications.timeout_s + 2 * configured.records.busy_timeout_s


def main() -> None:
    """Carry out the orders that come, until there are no more."""
    for number in (signal.SIGTERM, signal.SIGINT):  # it ends with its input: what it has begun is not to be in doubt
        signal.signal(number, signal.SIG_IGN)
    known: dict[str, Any] = json.loads(sys.stdin.readline())
    configured = settings.Settings(
        sanderling=settings.General(**known["sanderling"]),
        records=settings.Records(**known["records"]),
        notifications=settings.Notifications(**known["notifications"]),
        secrets=settings.Secrets(**known["secrets"]),
    )
    logs.configure(configured.sanderling, process="courier")  # else structlog writes to standard output, among the answers
    logging.getLogger("urllib3").propagate = False  # its lines may hold a receiver's URL
    clock = SystemClock()
    try:
        keyring = Keyring(configured.secrets)
    except SettingsRefused as problem:
        sys.exit(f"sanderling-leader: courier: {problem.detail}")
    records = Records(configured.records, clock=clock)
    courier = Courier(configured.notifications, records, keyring, lasts_s=lasts_s(configured), clock=clock)
    for line in sys.stdin:
        try:
            answer = courier.carry_out(Order(*json.loads(line)))
        except Problem as problem:
            sys.exit(f"sanderling-leader: courier: {problem.detail}")
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    records.close()


if __name__ == "__main__":
    main()
