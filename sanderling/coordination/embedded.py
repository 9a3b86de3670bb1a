"""Coordination for one process: what Consul does, lock-delay and checks included, on the clock it is given."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

import structlog

from sanderling.clock import Clock
from sanderling.coordination.base import Acquire, Delete, Entry, Listing, Op, Put, Release, assert_sound
from sanderling.errors import SessionLost, TooLarge

log = structlog.get_logger(__name__)

VALUES_MAX_BYTES = 384 * 1024  # of one transaction: what Consul's 512 KiB leave once values are base64


@dataclass(slots=True)
class _Session:
    name: str
    check_ttl_s: float
    lock_delay_s: int
    fed_at: float

    @property
    def dies_at(self) -> float:
        return self.fed_at + self.check_ttl_s


@dataclass(slots=True)
class _Store:
    """All that the lock guards."""

    entries: dict[str, Entry] = field(default_factory=dict)
    sessions: dict[str, _Session] = field(default_factory=dict)
    delayed_until: dict[str, float] = field(default_factory=dict)
    deleted_at: dict[str, int] = field(default_factory=dict)  # newest index of a removal, by the key's first part
    index: int = 1


class EmbeddedCoordination:
    """Lives and dies with the process. Nothing but the clock moves it, so a test with a manual clock needs no threads."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._store = _Store()
        self._watchers: set[threading.Event] = set()
        self.failover_bound_s = 1.0

    def get(self, key: str) -> Entry | None:
        with self._lock:
            self._bury_the_silent()
            return self._store.entries.get(key)

    def list(self, prefix: str) -> Listing:
        with self._lock:
            self._bury_the_silent()
            return self._listing(prefix)

    def watch(self, prefix: str, *, index: int, timeout_s: float) -> Listing:
        deadline = self._clock.monotonic() + timeout_s
        changed = threading.Event()
        with self._lock:
            self._watchers.add(changed)
        try:
            while True:
                with self._lock:
                    changed.clear()
                    now = self._bury_the_silent()
                    if now >= deadline or self._newest(prefix) > index:
                        return self._listing(prefix)
                    until = min([deadline, *(session.dies_at for session in self._store.sessions.values())])
                self._clock.wait(changed, until - now)
        finally:
            with self._lock:
                self._watchers.discard(changed)

    def put(self, key: str, value: bytes, *, expected: int | None = None) -> bool:
        return self.txn([Put(key, value, expected)])

    def delete(self, key: str, *, expected: int | None = None) -> bool:
        return self.txn([Delete(key, expected)])

    def txn(self, ops: Sequence[Op]) -> bool:
        assert_sound(ops)
        if sum(len(op.value) for op in ops if not isinstance(op, Delete)) > VALUES_MAX_BYTES:
            raise TooLarge(f"the values of one transaction are more than {VALUES_MAX_BYTES} bytes", dependency="coordination")
        with self._lock:
            now = self._bury_the_silent()
            for op in ops:
                if isinstance(op, Acquire):
                    self._alive(op.consul_session)
            staged: dict[str, Entry | None] = {}
            for op in ops:
                before = staged[op.key] if op.key in staged else self._store.entries.get(op.key)
                if not self._allows(op, before, now):
                    return False
                staged[op.key] = self._after(op, before)
            self._commit(staged)
            return True

    def open_session(self, name: str, *, check_ttl_s: float, lock_delay_s: int = 0) -> str:
        with self._lock:
            consul_session = str(uuid4())
            self._store.sessions[consul_session] = _Session(name, check_ttl_s, lock_delay_s, self._bury_the_silent())
            return consul_session

    def renew_session(self, consul_session: str) -> None:
        with self._lock:
            now = self._bury_the_silent()
            self._alive(consul_session).fed_at = now

    def session_is_live(self, consul_session: str) -> bool:
        with self._lock:
            self._bury_the_silent()
            return consul_session in self._store.sessions

    def close_session(self, consul_session: str) -> None:
        with self._lock:
            now = self._bury_the_silent()
            if consul_session in self._store.sessions:
                self._end(consul_session, at=now)

    def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        return self.txn([Acquire(key, value, consul_session, expected)])

    def release(self, key: str, value: bytes, *, consul_session: str) -> bool:
        return self.txn([Release(key, value, consul_session)])

    def close(self) -> None:
        """There is nothing to give back."""

    def _alive(self, consul_session: str) -> _Session:
        session = self._store.sessions.get(consul_session)
        if session is None:
            raise SessionLost(f"consul session {consul_session} is gone", consul_session=consul_session)
        return session

    def _bury_the_silent(self) -> float:
        """End every session whose check was not fed in time, as of the moment it died; returns now."""
        now = self._clock.monotonic()
        dead = [(session.dies_at, name) for name, session in self._store.sessions.items() if session.dies_at <= now]
        for died_at, consul_session in sorted(dead):
            log.info("consul session died", consul_session=consul_session, name=self._store.sessions[consul_session].name)
            self._end(consul_session, at=died_at)
        return now

    def _end(self, consul_session: str, *, at: float) -> None:
        until = at + self._store.sessions.pop(consul_session).lock_delay_s
        locked = [entry for entry in self._store.entries.values() if entry.consul_session == consul_session]
        still = {key: delayed for key, delayed in self._store.delayed_until.items() if delayed > at}
        self._store.delayed_until = still | {entry.key: until for entry in locked}
        index = self._store.index + 1
        self._commit({entry.key: replace(entry, consul_session=None, modify_index=index) for entry in locked})

    def _allows(self, op: Op, before: Entry | None, now: float) -> bool:
        holder = before.consul_session if before else None
        if op.expected is not None and op.expected != (before.modify_index if before else 0):
            return False
        if isinstance(op, Release):
            return holder == op.consul_session
        if not isinstance(op, Acquire):
            return holder is None
        return holder == op.consul_session or (holder is None and self._store.delayed_until.get(op.key, -math.inf) <= now)

    def _after(self, op: Op, before: Entry | None) -> Entry | None:
        """The entry once the op is done; as in Consul, an entry that stays the same keeps its index."""
        if isinstance(op, Delete):
            return None
        entry = Entry(op.key, op.value, self._store.index + 1, op.consul_session if isinstance(op, Acquire) else None)
        same = before is not None and (before.value, before.consul_session) == (entry.value, entry.consul_session)
        return before if same else entry

    def _commit(self, staged: Mapping[str, Entry | None]) -> None:
        changes = {key: entry for key, entry in staged.items() if entry != self._store.entries.get(key)}
        if not changes:
            return
        self._store.index += 1
        for key, entry in changes.items():
            if entry is None:
                del self._store.entries[key]
                self._store.deleted_at[_first_part(key)] = self._store.index
            else:
                self._store.entries[key] = entry
        self._wake_watchers()

    def _listing(self, prefix: str) -> Listing:
        found = sorted(key for key in self._store.entries if key.startswith(prefix))
        return Listing(tuple(self._store.entries[key] for key in found), self._store.index)

    def _newest(self, prefix: str) -> int:
        """The index of the newest change that may concern the prefix."""
        kept = (entry.modify_index for key, entry in self._store.entries.items() if key.startswith(prefix))
        removed = (at for part, at in self._store.deleted_at.items() if part.startswith(prefix) or prefix.startswith(part))
        return max([0, *kept, *removed])

    def _wake_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.set()


def _first_part(key: str) -> str:
    return key.partition("/")[0]
