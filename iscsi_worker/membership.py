"""This node's place among the gateways: its consul session, the proof that it still lives, and what it says to the others:
the gateway key, and the journal of the keys it has changed.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.coordination.changes import Journal
from sanderling.errors import SessionLost, Unavailable
from sanderling.model.exports import Gateway
from sanderling.settings import Settings

log = structlog.get_logger(__name__)


class Membership:
    """One consul session at a time, its id kept on disk so that a restarted worker goes on with it.

    `feed` and `prove` are called by threads of their own, apart, so that a store that hangs does not keep a live worker from
    feeding; the other methods are called by the reconcile loop alone.
    """

    def __init__(self, settings: Settings, coordination: Coordination, *, clock: Clock) -> None:
        self._settings = settings
        self._coordination = coordination
        self._clock = clock
        self._file = Path(settings.sanderling.runtime_dir) / "consul_session"
        self._session = self._kept()
        self._lost: str | None = None
        self._proof: tuple[str | None, float] = (None, 0.0)
        self._gateway: Gateway | None = None
        self._journal = Journal("iscsi_worker", settings.sanderling.node)
        self._turned_at = clock.monotonic()
        self._announced_at = -math.inf

    @property
    def consul_session(self) -> str | None:
        return self._session

    def proven_until(self, consul_session: str | None) -> float:
        """Until when (monotonic) this session is known to hold what it locks, for the purpose of leases; 0 for one of before."""
        session, until = self._proof
        return until if session is not None and session == self._session == consul_session else 0.0

    @property
    def is_certain(self) -> bool:
        """Whether the present session was proved within the last two renewals: too short a time for a take-over."""
        own = self._settings.iscsi_worker
        return self.proven_until(self._session) - self._clock.monotonic() > own.lease_s - 2 * own.renew_interval_s

    @property
    def is_member(self) -> bool:
        """Whether the gateway key is held by the present session."""
        return self._gateway is not None

    def turned(self) -> None:
        """The reconcile loop has turned; a worker whose loop hangs must not keep its session alive."""
        self._turned_at = self._clock.monotonic()

    def ensure(self) -> str:
        """The session to work with: the present one, which may be the one of before the restart, or a new one."""
        if self._session is None or self._session == self._lost:
            self._gateway = None
            began = self._clock.monotonic()
            self._session = self._coordination.open_session(
                self._settings.sanderling.node, check_ttl_s=self._settings.coordination.check_ttl_s
            )
            self._proof = (self._session, began + self._settings.iscsi_worker.lease_s)
            self._keep(self._session)
            log.info("consul session opened", consul_session=self._session)
        return self._session

    def feed(self) -> None:
        """Feed the session's check, unless the reconcile loop hangs. It asks nobody but the Consul agent of this node."""
        session, since_s = self._session, self._clock.monotonic() - self._turned_at
        if session is None or session == self._lost:
            return
        if since_s > self._settings.coordination.check_ttl_s:
            log.error("the reconcile loop hangs; the session's check is not fed", since_s=since_s)
            return
        try:
            self._coordination.renew_session(session)
        except SessionLost:
            self._lose(session)
        except Unavailable as problem:
            log.warning("cannot feed the consul session's check", problem=problem.detail)

    def prove(self) -> None:
        """Ask, by a consistent read, whether the session lives; a store that hangs may hold this up for long."""
        session, began = self._session, self._clock.monotonic()
        if session is None or session == self._lost:
            return
        try:
            live = self._coordination.session_is_live(session)
        except Unavailable as problem:
            log.warning("cannot prove the consul session", problem=problem.detail)
            return
        if live:
            self._proof = (session, began + self._settings.iscsi_worker.lease_s)
        else:
            self._lose(session)

    @property
    def journal_key(self) -> str:
        """Where the others find out what to look at."""
        return self._journal.key

    def note(self, keys: Iterable[str]) -> None:
        """Let everybody look at these, with the next `announce`."""
        self._journal.note(keys)

    def is_overdue(self, now: float) -> bool:
        """Whether nothing was announced for so long that it should not be put off any more."""
        return now - self._announced_at >= self._settings.iscsi_worker.take_retry_s

    def announce(self, gateway: Gateway, *, seen: bool) -> None:
        """Publish this gateway if it differs from what was published, or if its keys are not `seen` any more; then the journal.

        A key that cannot be had is tried for again next time.
        """
        assert self._session is not None, "announced before there was a session"
        self._announced_at = self._clock.monotonic()
        try:
            if not (seen and gateway == self._gateway) and not self._say(gateway):
                log.warning("the gateway key is held by another session; waiting for it to end", gateway=gateway.name)
            if not self._journal.write(self._acquire, again=not seen):
                log.warning("the journal is held by another session; waiting for it to end", key=self._journal.key)
        except SessionLost:
            self._lost = self._session

    def _say(self, gateway: Gateway) -> bool:
        if not self._acquire(gateway.key, gateway.model_dump_json().encode()):
            self._gateway = None
            return False
        before, self._gateway = self._gateway, gateway
        if before is None or _matters_to_all(before) != _matters_to_all(gateway) or not self._journal.is_written:
            self._journal.note([gateway.key])
        return True

    def _acquire(self, key: str, value: bytes) -> bool:
        assert self._session is not None, "written before there was a session"
        return self._coordination.acquire(key, value, consul_session=self._session)

    def leave(self) -> None:
        """End the session, and with it what it locks."""
        if self._session is not None:
            self._coordination.close_session(self._session)
        self._file.unlink(missing_ok=True)
        self._session = self._gateway = None

    def _lose(self, session: str) -> None:
        log.error("consul session lost", consul_session=session)
        self._lost = session

    def _kept(self) -> str | None:
        """The session of before the restart: fed from the first moment, and given up once a proof fails."""
        try:
            return self._file.read_text().strip() or None
        except FileNotFoundError:
            return None

    def _keep(self, session: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(session)
        os.replace(fresh, self._file)


def _matters_to_all(gateway: Gateway) -> Gateway:
    """Without what concerns only those who take part in a move, or who look for the owner of what is free."""
    return gateway.model_copy(update={"running": {}, "prepared": {}, "kept": {}})
