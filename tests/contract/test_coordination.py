"""What a coordination store promises. Runs on every backend; this file is the definition."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sanderling.clock import Clock, ManualClock, SystemClock
from sanderling.coordination import connect
from sanderling.coordination.base import ABSENT, OPS_MAX, Acquire, Coordination, Delete, Put, Release
from sanderling.errors import SessionLost, TooLarge, Unavailable
from sanderling.settings import Coordination as Bounds
from sanderling.settings import Settings

LOCK_DELAY_S = 2
LONG_S = 300.0  # a check that nobody has to feed during a test
WITHIN_S = 30.0  # bound of what must come about by itself
VALUE_MAX = bytes(range(256)) * 256  # 64 KiB


@dataclass(slots=True)
class Backend:
    """A store, the clock that its promises are measured by, and a way to it for a second process."""

    store: Coordination
    clock: Clock
    another: Callable[[], Coordination]
    opened: list[str] = field(default_factory=list)

    def session(self, name: str = "test", *, check_ttl_s: float = LONG_S) -> str:
        self.opened.append(self.store.open_session(name, check_ttl_s=check_ttl_s, lock_delay_s=LOCK_DELAY_S))
        return self.opened[-1]

    def pass_time(self, seconds: float) -> None:
        self.clock.wait(threading.Event(), seconds)

    def waited(self, until: Callable[[], bool], *, within_s: float = WITHIN_S) -> None:
        deadline = self.clock.monotonic() + within_s
        while not until():
            assert self.clock.monotonic() <= deadline, f"not within {within_s} s"
            self.pass_time(0.05)

    def clean(self) -> None:
        for consul_session in self.opened:
            self.store.close_session(consul_session)
        for entry in self.store.list("").entries:
            self.store.delete(entry.key)
        self.store.close()


def embedded(clock: Clock) -> Backend:
    store = connect(Settings(coordination=Bounds(backend="embedded")), clock=clock)
    return Backend(store, clock, lambda: store)


def on_consul(url: str, prefix: str) -> Backend:
    clock = SystemClock()
    settings = Settings(coordination=Bounds(url=url, prefix=f"{prefix}/"))
    return Backend(connect(settings, clock=clock), clock, lambda: connect(settings, clock=clock))


def cleaned(backend: Backend) -> Iterator[Backend]:
    try:
        yield backend
    finally:
        with suppress(Unavailable):
            backend.clean()


@pytest.fixture(params=["embedded", "consul"])
def backend(request: pytest.FixtureRequest, unique: str) -> Iterator[Backend]:
    """A real part that is missing fails. The embedded store runs on a clock that waiting moves."""
    if request.param == "embedded":
        yield from cleaned(embedded(ManualClock()))
    else:
        yield from cleaned(on_consul(request.getfixturevalue("consul").url, unique))


@pytest.fixture(params=["embedded", "consul"])
def real_time(request: pytest.FixtureRequest, unique: str) -> Iterator[Backend]:
    """For what two threads do to each other: both backends on the clock of the host."""
    if request.param == "embedded":
        yield from cleaned(embedded(SystemClock()))
    else:
        yield from cleaned(on_consul(request.getfixturevalue("consul").url, unique))


@pytest.fixture
def store(backend: Backend) -> Coordination:
    return backend.store


def value_of(store: Coordination, key: str) -> bytes | None:
    entry = store.get(key)
    return entry.value if entry else None


def holder_of(store: Coordination, key: str) -> str | None:
    entry = store.get(key)
    return entry.consul_session if entry else None


def index_of(store: Coordination, key: str) -> int:
    entry = store.get(key)
    return entry.modify_index if entry else ABSENT


def died(backend: Backend, name: str = "test") -> str:
    """A session that locks `held` and whose holder has just been found dead."""
    consul_session = backend.session(name, check_ttl_s=1.0)
    assert backend.store.acquire("held", b"of the dead", consul_session=consul_session)
    backend.waited(lambda: not backend.store.session_is_live(consul_session))
    return consul_session


# Keys and values


def test_a_key_that_is_not_there_is_none(store: Coordination) -> None:
    assert store.get("nothing") is None
    assert store.list("nothing").entries == ()


@pytest.mark.parametrize("value", [b"", b"\x00\xff", VALUE_MAX], ids=["empty", "binary", "64 KiB"])
def test_what_was_written_is_read_back(store: Coordination, value: bytes) -> None:
    assert store.put("a/key:with.marks", value)
    entry = store.get("a/key:with.marks")
    assert entry is not None
    assert (entry.key, entry.value, entry.consul_session) == ("a/key:with.marks", value, None)
    assert store.list("a/").entries == (entry,)


def test_five_values_of_64_kib_fit_into_one_transaction(store: Coordination) -> None:
    assert store.txn([Put(f"a/{n}", VALUE_MAX) for n in range(5)])
    assert [entry.value for entry in store.list("a/").entries] == [VALUE_MAX] * 5


def test_a_value_that_fits_into_no_request_is_too_large(store: Coordination) -> None:
    with pytest.raises(TooLarge):
        store.put("a", VALUE_MAX * 16)
    assert store.get("a") is None


def test_a_listing_holds_what_is_under_the_prefix_by_key(store: Coordination) -> None:
    for key in ("b/2", "b/10", "a/1", "b/1", "c"):
        assert store.put(key, key.encode())
    assert [entry.key for entry in store.list("b/").entries] == ["b/1", "b/10", "b/2"]
    assert [entry.key for entry in store.list("").entries] == ["a/1", "b/1", "b/10", "b/2", "c"]
    assert store.list("none/").index >= 1


def test_absent_writes_only_a_key_that_is_not_there(store: Coordination) -> None:
    assert store.put("a", b"1", expected=ABSENT)
    assert not store.put("a", b"2", expected=ABSENT)
    assert value_of(store, "a") == b"1"


def test_expected_writes_only_what_nobody_changed_since(store: Coordination) -> None:
    store.put("a", b"1")
    seen = index_of(store, "a")
    assert store.put("a", b"2", expected=seen)
    assert not store.put("a", b"3", expected=seen)
    assert not store.put("missing", b"3", expected=seen)
    assert (value_of(store, "a"), store.get("missing")) == (b"2", None)


def test_deleting_compares_too_and_deleting_nothing_is_fine(store: Coordination) -> None:
    store.put("a", b"1")
    seen = index_of(store, "a")
    store.put("a", b"2")
    assert not store.delete("a", expected=seen)
    assert not store.delete("a", expected=ABSENT)
    assert store.delete("a", expected=index_of(store, "a"))
    assert store.get("a") is None
    assert store.delete("a")
    assert store.delete("a", expected=ABSENT)
    assert not store.delete("a", expected=seen)


def test_writers_that_expect_nothing_all_succeed(real_time: Backend) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda n: real_time.store.put("a", b"%d" % n), range(40)))


def test_of_writers_that_expect_the_same_one_succeeds(real_time: Backend) -> None:
    real_time.store.put("a", b"")
    seen = index_of(real_time.store, "a")
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: real_time.store.put("a", b"%d" % n, expected=seen), range(8))) == 1


def test_of_those_that_delete_the_same_one_succeeds(real_time: Backend) -> None:
    store = real_time.store
    for _ in range(5):
        store.put("a", b"")
        seen = index_of(store, "a")
        with ThreadPoolExecutor(8) as pool:
            tried = [pool.submit(store.delete, "a", expected=seen) for _ in range(8)]
        assert sum(deleting.result() for deleting in tried) == 1


# Locks


def test_a_lock_belongs_to_one_session(backend: Backend) -> None:
    store, mine, other = backend.store, backend.session("mine"), backend.session("other")
    assert store.acquire("a", b"1", consul_session=mine)
    assert not store.acquire("a", b"2", consul_session=other)
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"1", mine)
    assert store.acquire("a", b"3", consul_session=mine)
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"3", mine)


def test_of_two_that_acquire_at_once_one_wins(real_time: Backend) -> None:
    sessions = [real_time.session(f"s{n}") for n in range(4)]
    for key in ("a", "b", "c", "d", "e"):
        together = threading.Barrier(len(sessions))

        def take(consul_session: str, key: str = key, together: threading.Barrier = together) -> bool:
            together.wait(WITHIN_S)
            return real_time.store.acquire(key, consul_session.encode(), consul_session=consul_session)

        with ThreadPoolExecutor(len(sessions)) as pool:
            won = dict(zip(sessions, pool.map(take, sessions), strict=True))
        assert sum(won.values()) == 1
        winner = next(consul_session for consul_session, has in won.items() if has)
        entry = real_time.store.get(key)
        assert entry is not None
        assert (entry.value, entry.consul_session) == (winner.encode(), winner)


def test_acquiring_compares_too(backend: Backend) -> None:
    store, mine = backend.store, backend.session()
    assert not store.acquire("a", b"1", consul_session=mine, expected=7)
    assert store.get("a") is None
    assert store.acquire("a", b"1", consul_session=mine, expected=ABSENT)
    assert not store.acquire("a", b"2", consul_session=mine, expected=ABSENT)
    seen = index_of(store, "a")
    assert store.acquire("a", b"2", consul_session=mine, expected=seen)
    assert not store.acquire("a", b"3", consul_session=mine, expected=seen)
    assert value_of(store, "a") == b"2"


def test_a_locked_key_cannot_be_written_or_removed_past_its_lock(backend: Backend) -> None:
    store, mine = backend.store, backend.session()
    assert store.acquire("a", b"1", consul_session=mine)
    before = store.get("a")
    assert before is not None
    assert not store.put("a", b"2")
    assert not store.put("a", b"2", expected=before.modify_index)
    assert not store.put("a", b"2", expected=ABSENT)
    assert not store.delete("a")
    assert not store.delete("a", expected=before.modify_index)
    assert not store.txn([Put("b", b"2"), Put("a", b"2")])
    assert not store.txn([Put("b", b"2"), Delete("a", before.modify_index)])
    assert store.get("a") == before
    assert store.get("b") is None


def test_taking_and_leaving_a_lock_change_the_index_even_when_the_value_stays(backend: Backend) -> None:
    store, mine = backend.store, backend.session()
    store.put("a", b"same")
    free = index_of(store, "a")
    store.acquire("a", b"same", consul_session=mine)
    locked = index_of(store, "a")
    store.release("a", b"same", consul_session=mine)
    assert free < locked < index_of(store, "a")
    assert not store.put("a", b"late", expected=free)
    assert not store.put("a", b"late", expected=locked)


@pytest.mark.rows("PA-43")
def test_releasing_writes_and_unlocks_in_one_step_for_the_holder_alone(backend: Backend) -> None:
    store, mine, other = backend.store, backend.session(), backend.session()
    assert not store.release("a", b"0", consul_session=mine)
    store.acquire("a", b"1", consul_session=mine)
    assert not store.release("a", b"2", consul_session=other)
    assert holder_of(store, "a") == mine
    assert store.release("a", b"3", consul_session=mine)
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"3", None)
    assert not store.release("a", b"4", consul_session=mine)
    assert value_of(store, "a") == b"3"


def test_a_released_key_can_be_taken_at_once(backend: Backend) -> None:
    store, mine, other = backend.store, backend.session(), backend.session()
    store.acquire("a", b"1", consul_session=mine)
    store.release("a", b"2", consul_session=mine)
    assert store.acquire("a", b"3", consul_session=other)


# Transactions


def test_a_transaction_does_all_of_it(backend: Backend) -> None:
    store, mine = backend.store, backend.session()
    store.put("gone", b"1")
    store.acquire("left", b"1", consul_session=mine)
    assert store.txn(
        [Put("new", b"n", ABSENT), Delete("gone"), Release("left", b"l", mine), Acquire("taken", b"t", mine), Delete("never")]
    )
    assert {entry.key: (entry.value, entry.consul_session) for entry in store.list("").entries} == {
        "left": (b"l", None),
        "new": (b"n", None),
        "taken": (b"t", mine),
    }


@pytest.mark.parametrize(
    "refused",
    [
        Put("there", b"x", ABSENT),
        Put("there", b"x", 1),
        Delete("missing", 1),
        Acquire("theirs", b"x", "mine"),
        Release("theirs", b"", "mine"),
    ],
    ids=["put absent", "put stale", "delete stale", "acquire", "release"],
)
def test_a_transaction_does_nothing_when_one_of_it_is_refused(backend: Backend, refused: Any) -> None:
    store, mine, theirs = backend.store, backend.session(), backend.session()
    store.put("there", b"1")
    store.acquire("theirs", b"1", consul_session=theirs)
    before = store.list("").entries
    if isinstance(refused, Acquire | Release):
        refused = replace(refused, consul_session=mine)
    assert not store.txn([Put("new", b"n"), Acquire("taken", b"t", mine), refused])
    assert store.list("").entries == before


def test_a_lock_is_handed_on_in_one_step(backend: Backend) -> None:
    store, source, heir = backend.store, backend.session("source"), backend.session("heir")
    store.acquire("a", b"1", consul_session=source)
    assert store.txn([Release("a", b"", source), Acquire("a", b"2", heir)])
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"2", heir)
    assert not store.txn([Release("a", b"", source), Acquire("a", b"3", source)])
    assert holder_of(store, "a") == heir


def test_a_lock_is_not_handed_on_when_its_key_was_written_since(backend: Backend) -> None:
    store, source, heir = backend.store, backend.session("source"), backend.session("heir")
    store.acquire("a", b"1", consul_session=source)
    (seen,) = store.list("a").entries
    store.acquire("a", b"2", consul_session=source)
    assert not store.txn([Release("a", b"", source, seen.modify_index), Acquire("a", b"3", heir)])
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"2", source)
    (seen,) = store.list("a").entries
    assert store.txn([Release("a", b"", source, seen.modify_index), Acquire("a", b"3", heir)])
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"3", heir)


def test_a_lock_is_not_handed_on_to_the_dead(backend: Backend) -> None:
    store, source, heir = backend.store, backend.session("source"), backend.session("heir")
    store.acquire("a", b"1", consul_session=source)
    store.close_session(heir)
    with pytest.raises(SessionLost):
        store.txn([Release("a", b"", source), Acquire("a", b"2", heir)])
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"1", source)


def test_a_transaction_holds_64_operations_and_not_65(store: Coordination) -> None:
    ops = [Put(f"a/{n:02}", b"") for n in range(OPS_MAX + 1)]
    assert store.txn(ops[:OPS_MAX])
    assert len(store.list("a/").entries) == 64
    with pytest.raises(AssertionError, match="65 operations"):
        store.txn(ops)
    with pytest.raises(AssertionError, match="66 operations"):
        store.txn([Delete(f"a/{n:02}", 1) for n in range(33)])


def test_a_key_comes_once_in_a_transaction(store: Coordination) -> None:
    with pytest.raises(AssertionError, match="comes twice"):
        store.txn([Put("a", b"1"), Put("a", b"2")])


# Sessions


def test_a_lock_lives_as_long_as_its_session_is_fed(backend: Backend) -> None:
    store, mine = backend.store, backend.session(check_ttl_s=1.0)
    store.acquire("a", b"1", consul_session=mine)
    for _ in range(12):
        store.renew_session(mine)
        backend.pass_time(0.25)
    assert store.session_is_live(mine)
    assert holder_of(store, "a") == mine


def test_a_lock_outlives_a_silent_holder_no_longer_than_promised(backend: Backend) -> None:
    store, heir = backend.store, backend.session("heir")
    assert store.acquire("a", b"1", consul_session=backend.session("holder", check_ttl_s=1.0))
    backend.waited(lambda: store.acquire("a", b"2", consul_session=heir), within_s=store.failover_bound_s + LOCK_DELAY_S)


def test_what_the_dead_locked_is_unlocked_and_keeps_its_value(backend: Backend) -> None:
    store, dead = backend.store, died(backend)
    backend.waited(lambda: holder_of(store, "held") is None)
    assert value_of(store, "held") == b"of the dead"
    assert not store.release("held", b"", consul_session=dead)


def test_a_session_that_died_is_lost(backend: Backend) -> None:
    store, dead = backend.store, died(backend)
    with pytest.raises(SessionLost):
        store.renew_session(dead)
    for key in ("held", "new"):  # `held` may be in its lock-delay, which says False to the living only
        with pytest.raises(SessionLost):
            store.acquire(key, b"", consul_session=dead)
    store.close_session(dead)
    assert store.get("new") is None


def test_the_lock_delay_keeps_others_from_what_the_dead_held(backend: Backend) -> None:
    store, heir = backend.store, backend.session("heir")
    died(backend)
    assert not store.acquire("held", b"", consul_session=heir)
    assert not store.txn([Acquire("other", b"", heir), Acquire("held", b"", heir)])
    backend.waited(lambda: store.acquire("held", b"", consul_session=heir))


def test_without_a_lock_delay_the_next_has_the_lock_at_once(backend: Backend) -> None:
    store, heir = backend.store, backend.session("heir")
    mine = store.open_session("mine", check_ttl_s=LONG_S)
    assert store.acquire("a", b"1", consul_session=mine)
    store.close_session(mine)
    assert store.acquire("a", b"2", consul_session=heir)


def test_a_closed_session_is_gone_and_its_locks_with_it(backend: Backend) -> None:
    store, mine, heir = backend.store, backend.session(), backend.session("heir")
    store.acquire("a", b"1", consul_session=mine)
    store.close_session(mine)
    assert not store.session_is_live(mine)
    assert (value_of(store, "a"), holder_of(store, "a")) == (b"1", None)
    assert not store.acquire("a", b"2", consul_session=heir)
    backend.waited(lambda: store.acquire("a", b"2", consul_session=heir))
    with pytest.raises(SessionLost):
        store.renew_session(mine)
    store.close_session(mine)


@pytest.mark.parametrize("never", ["00000000-0000-4000-8000-000000000000", "no id at all", ""])
def test_a_session_that_never_was_is_lost_too(store: Coordination, never: str) -> None:
    assert not store.session_is_live(never)
    with pytest.raises(SessionLost):
        store.renew_session(never)
    with pytest.raises(SessionLost):
        store.acquire("a", b"", consul_session=never)
    store.close_session(never)
    assert store.get("a") is None


def test_a_process_that_starts_again_goes_on_with_its_session(backend: Backend) -> None:
    mine = backend.session(check_ttl_s=1.0)
    backend.store.acquire("a", b"1", consul_session=mine)
    again = backend.another()
    for _ in range(8):
        again.renew_session(mine)
        backend.pass_time(0.25)
    assert again.session_is_live(mine)
    assert again.acquire("a", b"2", consul_session=mine)
    again.close_session(mine)
    assert not backend.store.session_is_live(mine)


def test_sessions_of_one_name_are_apart(backend: Backend) -> None:
    store, one, two = backend.store, backend.session("same"), backend.session("same")
    assert one != two
    store.close_session(one)
    assert store.session_is_live(two)


# Watching


@pytest.mark.rows("IS-8")
def test_a_watch_without_a_change_returns_what_there_is(backend: Backend) -> None:
    store = backend.store
    store.put("a/1", b"1")
    listing = store.list("a/")
    again = store.watch("a/", index=listing.index, timeout_s=0.2)
    assert again.entries == listing.entries
    assert again.index >= listing.index


def test_a_watch_from_index_0_returns_what_there_is(backend: Backend) -> None:
    backend.store.put("a/1", b"1")
    assert [entry.key for entry in backend.store.watch("a/", index=0, timeout_s=LONG_S).entries] == ["a/1"]


@pytest.mark.rows("IS-6")
def test_a_watch_of_nothing_waits_no_longer_than_it_may_and_sees_the_first_key(backend: Backend) -> None:
    store = backend.store
    nothing = store.watch("a/", index=store.list("a/").index, timeout_s=0.2)
    assert nothing.entries == ()
    store.put("a/1", b"1")
    assert [entry.key for entry in store.watch("a/", index=nothing.index, timeout_s=LONG_S).entries] == ["a/1"]


@pytest.mark.rows("LE-7")
def test_a_watch_sees_every_change_since_its_index(backend: Backend) -> None:
    store, mine = backend.store, backend.session()
    changes: list[Callable[[], bool]] = [
        lambda: store.put("a/1", b"1"),
        lambda: store.put("a/1", b"2"),
        lambda: store.acquire("a/1", b"2", consul_session=mine),
        lambda: store.acquire("a/2", b"2", consul_session=mine),
        lambda: store.release("a/1", b"2", consul_session=mine),
        lambda: store.delete("a/1"),
    ]
    listing, deadline = store.list("a/"), backend.clock.monotonic() + WITHIN_S
    for change in changes:
        before = listing
        assert change()
        listing = store.watch("a/", index=before.index, timeout_s=LONG_S)
        assert listing.entries != before.entries
        assert listing.entries == store.list("a/").entries
    assert backend.clock.monotonic() < deadline  # none was found only when the wait was over


def test_a_watch_sees_the_locks_of_the_dead_fall(backend: Backend) -> None:
    store, mine = backend.store, backend.session(check_ttl_s=1.0)
    store.acquire("a", b"1", consul_session=mine)
    listing = store.list("a")
    deadline = backend.clock.monotonic() + WITHIN_S
    while listing.entries[0].consul_session is not None:
        listing = store.watch("a", index=listing.index, timeout_s=LONG_S)
        assert backend.clock.monotonic() < deadline


@pytest.mark.rows("IS-8")
def test_a_change_wakes_the_watch_that_waits_for_it(real_time: Backend) -> None:
    store = real_time.store
    store.put("a/1", b"1")
    index = store.list("a/").index
    with ThreadPoolExecutor(1) as pool:
        for value in (b"2", b"3", b"4"):
            waiting = pool.submit(store.watch, "a/", index=index, timeout_s=100.0)
            real_time.pass_time(0.1)  # so that it does wait; if it does not yet, the test proves less and passes
            assert not waiting.done()
            store.put("a/1", value)
            listing = waiting.result(WITHIN_S)
            assert [entry.value for entry in listing.entries] == [value]
            index = listing.index
