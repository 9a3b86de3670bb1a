"""What a candidate does next: a pure decision on what it sees and the time.

Nobody takes a key that the last leader did not leave in order before a lease, and the time that its duties may take to stop,
have passed since the key was first seen free. A lease runs from before a look that proved the lock, so by then the last leader
has stopped or ended itself, whatever the store's own delays. Only a process frozen in the middle of an act can still finish
that act; the term is what makes others refuse it. Whoever died as the leader lets the others go first.
"""

from dataclasses import dataclass
from enum import StrEnum

from sanderling import settings
from sanderling.coordination.base import Entry
from sanderling.model.leaders import Leader


class Standing(StrEnum):
    """`failed`: a duty did not start, or cannot go on. `over`: the lease ran out."""

    FOLLOWS = "follows"
    LEADS = "leads"
    FAILED = "failed"
    OVER = "over"


class Act(StrEnum):
    WAIT = "wait"
    REST = "rest"  # give back a consul session that is not needed, and with it a lock that is not wanted
    CAMPAIGN = "campaign"
    GO_ON = "go_on"
    RESIGN = "resign"  # stop the duties, then let go of the key as left
    DEMOTE = "demote"  # stop the duties; the key is not ours, or is to be won anew
    END = "end"


@dataclass(frozen=True, slots=True)
class View:
    """What the candidate of `node` knows at one moment. `seen_since` is when the entry was first seen as it is now."""

    entry: Entry | None
    seen_since: float
    consul_session: str | None
    standing: Standing
    term_seen: int
    wall_s: float
    node: str = ""
    stands_from: float = 0.0
    asked_to_step_down: bool = False
    stopping: bool = False

    @property
    def is_locked_by_us(self) -> bool:
        return self.consul_session is not None and self.entry is not None and self.entry.consul_session == self.consul_session

    @property
    def is_free(self) -> bool:
        return self.entry is None or self.entry.consul_session is None

    @property
    def last(self) -> Leader | None:
        """Who leads, or led last."""
        return Leader.from_value(self.entry.value) if self.entry else None

    @property
    def was_left(self) -> bool:
        return self.last is not None and self.last.left

    @property
    def died_over_it(self) -> bool:
        """Whether the last leader was of this node and did not leave: its duties may be what it died of."""
        return self.last is not None and self.last.node == self.node and not self.last.left


@dataclass(frozen=True, slots=True)
class Action:
    """`look_s` bounds the next look; `term` is set for a campaign."""

    act: Act
    why: str
    look_s: float
    term: int = 0


def decide(view: View, now: float, bounds: settings.Leader) -> Action:
    """The one next thing to do."""
    if view.standing is not Standing.FOLLOWS:
        return _as_leader(view, bounds)
    if view.stopping:
        return Action(Act.END, "told to stop", 0.0)
    if now < view.stands_from:
        return _wait(view, view.stands_from - now, "stepped down", bounds)
    if not view.is_free and not view.is_locked_by_us:
        return _wait(view, bounds.watch_timeout_s, "another leads", bounds)
    waits = bounds.lease_s + bounds.duty_stop_timeout_s + (bounds.candidacy_pause_s if view.died_over_it else 0.0)
    since = view.seen_since + (0.0 if view.was_left or view.is_locked_by_us else waits)
    if now < since:
        return _wait(view, since - now, "the last leader may still be stopping", bounds)
    return Action(Act.CAMPAIGN, "the key is free", bounds.renew_interval_s, term=_next_term(view))


def _as_leader(view: View, bounds: settings.Leader) -> Action:
    if not view.is_locked_by_us:
        why = "the key is free" if view.is_free else "another has the key"
        return Action(Act.DEMOTE, why, 0.0)
    if view.stopping:
        return Action(Act.RESIGN, "told to stop", 0.0)
    if view.asked_to_step_down:
        return Action(Act.RESIGN, "asked to step down", 0.0)
    if view.standing is Standing.FAILED:
        return Action(Act.RESIGN, "a duty failed", 0.0)
    if view.standing is Standing.OVER:
        return Action(Act.DEMOTE, "the lease ran out", 0.0)
    return Action(Act.GO_ON, "the key is ours", bounds.renew_interval_s)


def _wait(view: View, longest_s: float, why: str, bounds: settings.Leader) -> Action:
    act = Act.WAIT if view.consul_session is None else Act.REST
    return Action(act, why, min(longest_s, bounds.watch_timeout_s))


def _next_term(view: View) -> int:
    """One more than any seen. Without a last leader to go by the store is new or was lost: the time of day outgrows old terms."""
    return max(view.term_seen + 1, 0 if view.last is not None else int(view.wall_s))
