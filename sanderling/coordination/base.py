"""The seam to the store that says who owns what: ordered keys with locks held by consul sessions, and one prefix watch.

Every method talks to the store within `settings` bounds and raises `Unavailable` when it cannot. Reads are consistent: what
they return was true at some moment during the call. tests/contract/test_coordination.py is the definition; it runs on
every backend. Keys are relative ("exports/…"); a backend puts its own prefix before them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sanderling.errors import Problem, Unavailable

_NAMES: Final = frozenset({"consul", "coordination"})
ABSENT = 0  # `expected=ABSENT`: only when there is no such key


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it was read. `consul_session` is the id of the session that locks it, or None."""

    key: str
    value: bytes
    modify_index: int
    consul_session: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries under a prefix, by key, and the index to watch from."""

    entries: tuple[Entry, ...]
    index: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key that nobody locks; `expected` is its modify_index, ABSENT, or None for any."""

    key: str
    value: bytes
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Acquire:
    """Lock a free key for a session, or rewrite the value of a key that it locks already."""

    key: str
    value: bytes
    consul_session: str
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Write the value and unlock, only if that session holds the lock."""

    key: str
    value: bytes
    consul_session: str
    expected: int | None = None


Op = Put | Delete | Acquire | Release
OPS_MAX = 64  # Consul refuses a transaction of more with 413


def assert_sound(ops: Sequence[Op]) -> None:
    """What every backend asks of a transaction: room for it, and each key once, or a Release and then an Acquire of it.

    A Release, Acquire or Delete with `expected` counts twice: Consul needs an operation more to check the index. Of a Release
    and an Acquire of one key the Release carries it, since it changes the key's index.
    """
    weight = sum(1 if isinstance(op, Put) or op.expected is None else 2 for op in ops)
    assert weight <= OPS_MAX, f"{weight} operations do not fit into one transaction of {OPS_MAX}"
    last: dict[str, Op] = {}
    for op in ops:
        handed_on = isinstance(op, Acquire) and op.expected is None and isinstance(last.get(op.key), Release)
        assert op.key not in last or handed_on, f"{op.key} comes twice in one transaction"
        last[op.key] = op


class Coordination(Protocol):
    failover_bound_s: float
    """How long after its holder fell silent, at most, the lock of a session with a check of 1 s can be taken by another."""

    def get(self, key: str) -> Entry | None: ...

    def list(self, prefix: str) -> Listing: ...

    def watch(self, prefix: str, *, index: int, timeout_s: float) -> Listing:
        """Like `list`, but waits until something under the prefix is newer than `index` or the time has passed.

        A return is not a change: compare the entries. When the store's index goes back, the next call with the returned
        index still sees every later change. A watch that follows an `Unavailable` one returns at once.
        """
        ...

    def put(self, key: str, value: bytes, *, expected: int | None = None) -> bool:
        """Write an unlocked key; False when `expected` does not hold or somebody locks the key."""
        ...

    def delete(self, key: str, *, expected: int | None = None) -> bool:
        """Remove a key that nobody locks; False when `expected` does not hold or somebody locks it.

        Removing a key that is not there is True unless `expected` asked for one.
        """
        ...

    def txn(self, ops: Sequence[Op]) -> bool:
        """All of them in one step, or none and False; ops that `assert_sound` refuses are an assertion.

        A Release and then an Acquire of the same key hands its lock on. `SessionLost` when the session of an Acquire is
        gone; `TooLarge` when the values do not fit into one request (five of 64 KiB do).
        """
        ...

    def open_session(self, name: str, *, check_ttl_s: float, lock_delay_s: int = 0) -> str:
        """A new consul session's id. It dies when its check is not fed for `check_ttl_s`, or when the node dies.

        On death every key it locks is unlocked, its value left as it was; nobody can lock it for another `lock_delay_s`.
        """
        ...

    def renew_session(self, consul_session: str) -> None:
        """Feed the check. Proves nothing about ownership; `SessionLost` when it is already known to be gone.

        Asks nobody but the agent of this node, so that servers that hang do not keep a live process from feeding.
        """
        ...

    def session_is_live(self, consul_session: str) -> bool:
        """Whether the session still exists, by a consistent read: True proves that its locks were held during the call."""
        ...

    def close_session(self, consul_session: str) -> None:
        """End the session now; its keys are unlocked, and as after a death the lock-delay keeps others from them: release
        first to hand over at once. Ending one that is gone is no error.
        """
        ...

    def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        """Lock a free key, or rewrite the value of one this session locks already; False when another holds it,
        `expected` does not hold, or the lock-delay after an owner's death is not over. `SessionLost` when the session is gone.
        """
        ...

    def release(self, key: str, value: bytes, *, consul_session: str) -> bool:
        """Write the value and unlock in one step; False when that session does not hold the lock."""
        ...

    def close(self) -> None:
        """Give back connections and threads; sessions stay as they are."""
        ...


def is_about_coordination(problem: Problem) -> bool:
    """Whether it was raised because the coordination store does not answer, by whatever name a backend or a user of it goes."""
    return isinstance(problem, Unavailable) and problem.context.get("dependency") in _NAMES
