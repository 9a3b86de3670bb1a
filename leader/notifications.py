"""The duty of telling: which event each rule's receiver is told of next, and when; couriers do it and record it.

Rules are independent: one whose receiver is away delays nobody but itself. Of one rule the events go out one by one, in order.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy.orm import Session

from leader import metrics
from leader.courier import Order
from leader.couriers import Couriers
from leader.duties import Tenure
from leader.rounds import Rounds
from sanderling.clock import Clock
from sanderling.errors import StaleTerm
from sanderling.model.leaders import CLUSTER as SERVICE
from sanderling.records import events, notifications, terms
from sanderling.records.database import Records
from sanderling.records.notifications import Due
from sanderling.settings import Settings

_GRACE_PART: Final = 0.4  # of the time that stopping may take, for couriers to finish what they are at


class NotificationsDuty(Rounds):
    """Looks for events that somebody is to be told of, and hands them to couriers."""

    name = "notifications"

    def __init__(self, settings: Settings, *, records: Records, clock: Clock) -> None:
        super().__init__(settings.leader, clock=clock)
        self._settings, self._options = settings, settings.notifications
        self._records = records
        self._couriers = self._new_couriers()
        self._looked: dict[str, int] = {}  # by rule: nothing up to that event is its concern, but what is pending
        self._pending: dict[str, int] = {}  # by rule: the next event it is told of
        self._not_before: dict[str, float] = {}

    def prepare(self, tenure: Tenure) -> None:
        with self._records.begin() as session:
            terms.hold(session, SERVICE, tenure.term)
        self._couriers = self._new_couriers()
        self._looked, self._pending, self._not_before = {}, {}, {}

    def halt(self) -> None:
        self._couriers.end(within_s=self._settings.leader.duty_stop_timeout_s * _GRACE_PART)

    def turn(self, tenure: Tenure) -> float:
        self._hear()
        with self._records.read() as session:
            rules = notifications.rules(session)
            is_more = self._look(rules, self._unseen(session, rules))
        self._keep_up(rules, tenure)
        self._hand_out(rules, tenure)
        if tenure.holds():
            metrics.told(rules)
        return 0.0 if is_more else self._options.interval_s

    def _new_couriers(self) -> Couriers:
        return Couriers(self._settings, on_answer=self.wake, clock=self._clock)

    def _hear(self) -> None:
        for answer in self._couriers.answers():
            match answer.outcome:
                case "delivered" | "nothing":
                    self._looked[answer.rule_id] = self._pending.pop(answer.rule_id)
                case "stale":
                    raise StaleTerm(f"the leader of term {answer.term} has written since", service=SERVICE, term=answer.term)
                case "waits":
                    self._not_before[answer.rule_id] = self._clock.monotonic() + answer.wait_s
                case "away" | "over":
                    self._not_before[answer.rule_id] = self._clock.monotonic() + self._options.retry_first_s

    def _unseen(self, session: Session, rules: Sequence[Due]) -> list[events.Event]:
        """Events that a rule without a next one has not been compared with, from the oldest on."""
        behind = [self._position(rule) for rule in rules if rule.id not in self._pending]
        return events.page(session, after=min(behind), limit=self._options.scan_max) if behind else []

    def _position(self, rule: Due) -> int:
        return max(rule.cursor, self._looked.get(rule.id, 0))

    def _look(self, rules: Sequence[Due], found: Sequence[events.Event]) -> bool:
        """Find the next event of each rule; whether there may be more to look at, at once."""
        known = {rule.id for rule in rules}
        for gone in self._pending.keys() - known - self._couriers.at_work:
            del self._pending[gone]
        self._looked = {rule_id: event_id for rule_id, event_id in self._looked.items() if rule_id in known}
        for rule in rules:
            position = self._position(rule)
            if rule.id in self._pending or not found or found[-1].id <= position:
                continue
            first = notifications.first_meant(rule, found, after=position)
            if first is None:
                self._looked[rule.id] = found[-1].id
            else:
                self._pending[rule.id] = first
        return len(found) == self._options.scan_max

    def _keep_up(self, rules: Sequence[Due], tenure: Tenure) -> None:
        """Now and then store how far the rules have come that nothing concerned, so that the next leader need not look again."""
        far = [
            rule
            for rule in rules
            if rule.id not in self._pending and self._position(rule) - rule.cursor >= self._options.scan_max
        ]
        if far and tenure.holds():
            with self._records.begin() as session:
                terms.hold(session, SERVICE, tenure.term)
                for rule in far:
                    notifications.skip(session, rule.id, to=self._position(rule))

    def _hand_out(self, rules: Sequence[Due], tenure: Tenure) -> None:
        now, wall, at_work = self._clock.monotonic(), self._clock.wall(), self._couriers.at_work
        for rule in sorted(rules, key=lambda rule: rule.failures):
            event_id = self._pending.get(rule.id)
            is_due = (rule.not_before is None or rule.not_before <= wall) and self._not_before.get(rule.id, now) <= now
            if event_id is None or rule.id in at_work or not is_due or not tenure.holds():
                continue
            if not self._couriers.order(Order(rule.id, event_id, tenure.term, tenure.until)):
                return
