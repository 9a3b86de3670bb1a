"""A candidate for leadership: looks at the key, decides, acts once, and says what it did."""

import threading
from collections.abc import Callable, Sequence

import structlog

from leader import metrics
from leader.duties import Duty, Tenure, end_process
from leader.election import Act, Action, Standing, View, decide
from sanderling.clock import Clock
from sanderling.coordination.base import ABSENT, Coordination, Entry
from sanderling.errors import SessionLost, Unavailable
from sanderling.model.leaders import Leader, leader_key
from sanderling.settings import Settings

log = structlog.get_logger(__name__)


class Candidate:
    """Stands for the leadership of one service for as long as it runs, one candidate per node."""

    def __init__(
        self,
        service: str,
        duties: Sequence[Duty],
        settings: Settings,
        *,
        coordination: Coordination,
        clock: Clock,
        end_process: Callable[[], None] = end_process,
    ) -> None:
        self._service, self._duties, self._coordination, self._clock = service, duties, coordination, clock
        self._node, self._bounds = settings.sanderling.node, settings.leader
        self._stop_within_s = settings.leader.watch_timeout_s + settings.leader.duty_stop_timeout_s
        self._stop_within_s += 2 * settings.coordination.request_timeout_s
        self._end_process = end_process
        self._stopping, self._asked_to_step_down = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=f"candidate-{service}", daemon=True)
        self._consul_session: str | None = None
        self._tenure: Tenure | None = None
        self._entry: Entry | None = None
        self._seen_since, self._stands_from = clock.monotonic(), clock.monotonic()
        self._index, self._term_seen = 0, 0
        self._failures = 0  # leaderships in a row that ended because a duty failed
        self._said = ""

    def start(self) -> None:
        metrics.LEADS.labels(self._service).set_function(lambda: self.leads)
        metrics.TERM.labels(self._service).set_function(lambda: self._term_seen)
        self._thread.start()

    def stop(self) -> None:
        """Stop the duties, then let go of the key, so that another leads at once. Bounded; the store forgets the rest."""
        self._stopping.set()
        self._thread.join(self._stop_within_s)

    def step_down(self) -> None:
        """If this one leads, let another; it does not stand again for `candidacy_pause_s`."""
        if self.leads:
            self._asked_to_step_down = True

    @property
    def leads(self) -> bool:
        """Whether this candidate leads now, as far as it can prove."""
        tenure = self._tenure
        return tenure is not None and tenure.holds()

    def turn(self, look_s: float) -> Action:
        """One round: look for at most `look_s`, decide, act. Raises what the store raises."""
        self._look(look_s)
        action = decide(self._view(), self._clock.monotonic(), self._bounds)
        if self._said != (said := f"{action.act}: {action.why}"):
            log.info("election", service=self._service, act=action.act, why=action.why)
            self._said = said
        self._carry_out(action)
        return action

    def _run(self) -> None:
        look_s = 0.0
        while True:
            try:
                action = self.turn(look_s)
                if action.act is Act.END:
                    return
                look_s = action.look_s
            except SessionLost as problem:
                self._count("session-lost")
                log.warning("the consul session is gone", service=self._service, detail=problem.detail)
                self._consul_session = None
                self._end_tenure()
            except Unavailable as problem:
                self._count("unavailable")
                if self._said != (said := f"out of reach: {problem.detail}"):
                    log.warning("the store is out of reach", service=self._service, detail=problem.detail)
                    self._said = said
                if self._has_to_stop():
                    return
            except Exception:
                self._count("fault")
                log.exception("a turn of the election failed", service=self._service)
                if self._has_to_stop():
                    return

    def _count(self, why: str) -> None:
        metrics.FAILED.labels(self._service, why).inc()

    def _has_to_stop(self) -> bool:
        """Wait a little; True once this candidate is told to stop, and nothing of it acts any more."""
        if not self._clock.wait(self._stopping, self._bounds.renew_interval_s):
            return False
        self._end_tenure()
        return True

    def _look(self, look_s: float) -> None:
        before = self._clock.monotonic()
        if self._consul_session is not None:
            self._coordination.renew_session(self._consul_session)
        key = leader_key(self._service)
        listing = self._coordination.watch(key, index=self._index, timeout_s=look_s)
        entry = next((entry for entry in listing.entries if entry.key == key), None)
        if entry != self._entry or self._index == 0:
            self._seen_since = self._clock.monotonic()
        self._entry, self._index = entry, listing.index
        leader = Leader.from_value(entry.value) if entry else None
        self._term_seen = max(self._term_seen, leader.term if leader else 0)
        if self._tenure is not None and self._view().is_locked_by_us:
            self._tenure.extend(before + self._bounds.lease_s)
            log.debug("lease extended", service=self._service, term=self._tenure.term, until=self._tenure.until)

    def _view(self) -> View:
        return View(
            entry=self._entry,
            seen_since=self._seen_since,
            consul_session=self._consul_session,
            standing=self._tenure.standing if self._tenure else Standing.FOLLOWS,
            term_seen=self._term_seen,
            wall_s=self._clock.wall().timestamp(),
            node=self._node,
            stands_from=self._stands_from,
            asked_to_step_down=self._asked_to_step_down,
            stopping=self._stopping.is_set(),
        )

    def _carry_out(self, action: Action) -> None:
        match action.act:
            case Act.CAMPAIGN:
                self._campaign(action.term)
            case Act.RESIGN:
                self._resign()
            case Act.DEMOTE:
                self._end_tenure()
            case Act.REST | Act.END:
                self._rest()

    def _campaign(self, term: int) -> None:
        if self._consul_session is None:
            self._consul_session = self._coordination.open_session(
                f"leader-{self._service}-{self._node}",
                check_ttl_s=self._bounds.check_ttl_s,
                lock_delay_s=self._bounds.lock_delay_s,
            )
        before = self._clock.monotonic()
        leader = Leader(node=self._node, term=term, since=self._clock.wall())
        expected = self._entry.modify_index if self._entry else ABSENT
        if not self._coordination.acquire(
            leader_key(self._service), leader.to_value(), consul_session=self._consul_session, expected=expected
        ):
            return
        self._tenure = Tenure(
            term,
            self._duties,
            until=before + self._bounds.lease_s,
            bounds=self._bounds,
            clock=self._clock,
            end_process=self._end_process,
        )
        metrics.BEGUN.labels(self._service).inc()
        log.info("leading", service=self._service, term=term, until=self._tenure.until)
        self._tenure.begin()

    def _resign(self) -> None:
        """The duties first: who releases the key as left says that none of them acts any more."""
        assert self._entry is not None, "only a leader resigns"
        assert self._consul_session is not None, "only a leader resigns"
        self._end_tenure()
        pause_s = self._bounds.candidacy_pause_s * 2.0 ** min(max(self._failures - 1, 0), 32)
        self._stands_from = self._clock.monotonic() + min(pause_s, self._bounds.candidacy_pause_most_s)
        leader = Leader.from_value(self._entry.value)
        assert leader is not None, "a leader wrote the value it holds"
        left = leader.model_copy(update={"left": True})
        self._coordination.release(leader_key(self._service), left.to_value(), consul_session=self._consul_session)

    def _end_tenure(self) -> None:
        self._asked_to_step_down = False
        if self._tenure is not None:
            self._failures = self._failures + 1 if self._tenure.standing is Standing.FAILED else 0
            self._tenure.end()
            self._term_seen = max(self._term_seen, self._tenure.outranked_by)
            log.info("no longer leading", service=self._service, term=self._tenure.term)
            self._tenure = None

    def _rest(self) -> None:
        consul_session, self._consul_session = self._consul_session, None
        if consul_session is not None:
            self._coordination.close_session(consul_session)
