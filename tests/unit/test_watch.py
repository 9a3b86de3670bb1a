"""The worker's view of the store: everything now and then, single keys at once, and never an older value after a newer one."""

import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar, cast

import pytest

from cli.lab.parts.daemons import waited
from iscsi_worker.view import View
from iscsi_worker.watch import ATTENDED_MAX, LOOKED_AT_MOST, Watch
from sanderling.clock import SystemClock
from sanderling.coordination.base import Entry, Listing
from sanderling.coordination.changes import KEPT, Journal
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import Unavailable
from sanderling.model.exports import Export, ExportId
from sanderling.model.marks import MARKS_KEY, Marks
from sanderling.settings import Coordination, Settings, Worker

CLOCK = SystemClock()
Answer = TypeVar("Answer")
A, B = ExportId("a", 0), ExportId("b", 1)


class Held(EmbeddedCoordination):
    """A store whose answers to the thread `slow` wait until the test lets them through."""

    def __init__(self) -> None:
        super().__init__(clock=CLOCK)
        self.asked, self.let = threading.Event(), threading.Event()
        self.listed = 0
        self.asked_with: list[int] = []
        self.got: list[str] = []
        self.is_away = False

    def watch(self, prefix: str, *, index: int, timeout_s: float) -> Listing:
        self.asked_with.append(index)
        return super().watch(prefix, index=index, timeout_s=timeout_s)

    def list(self, prefix: str) -> Listing:
        if self.is_away:
            raise Unavailable("away", dependency="consul")
        self.listed += 1
        return self._held(super().list(prefix))

    def get(self, key: str) -> Entry | None:
        if self.is_away:
            raise Unavailable("away", dependency="consul")
        self.got.append(key)
        return self._held(super().get(key))

    def _held(self, answer: Answer) -> Answer:
        if threading.current_thread().name == "slow":
            self.asked.set()
            assert self.let.wait(10)
        return answer


class Site:
    def __init__(self, rest_s: float = 0.0, read_all_s: float = 3600.0) -> None:
        self.store = Held()
        self.changes, self.news = 0, cast(Collection[str] | None, None)
        own = Worker(
            watch_rest_per_key_s=rest_s,
            watch_rest_most_s=rest_s,
            read_all_per_key_s=read_all_s,
            read_all_most_s=max(1.0, read_all_s),
            renew_interval_s=0.1,
        )
        settings = Settings(coordination=Coordination(backend="embedded", watch_timeout_s=0.2), iscsi_worker=own)
        self.watch = Watch(settings, self.store, on_change=self.changed, clock=CLOCK)

    def changed(self, keys: Collection[str] | None) -> None:
        self.changes += 1
        self.news = keys

    def write(self, export: ExportId, node: str) -> None:
        assert self.store.put(export.key, Export(generation=1, node=node).model_dump_json().encode())

    def tell(self, journal: Journal, *exports: ExportId, session: str | None = None) -> None:
        """Write what the journal's writer has changed, under its session if it has one."""
        journal.note(export.key for export in exports)
        put = partial(self.store.acquire, consul_session=session) if session else self.store.put
        assert journal.write(put, again=True)

    def node(self, export: ExportId = A) -> str | None:
        view = self.watch.latest
        return view.exports[export].export.node if view and export in view.exports else None


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_single_key_is_read_at_once_and_the_rest_stays_as_it_was(site: Site) -> None:
    site.write(A, "1")
    site.write(B, "1")
    site.watch.fresh()
    site.write(A, "2")
    site.write(B, "2")
    site.watch.look(A.key)
    assert (site.node(A), site.node(B)) == ("2", "1")


def test_what_was_never_read_is_read_whole(site: Site) -> None:
    site.write(A, "1")
    site.write(B, "1")
    site.watch.look(A.key)
    assert (site.node(A), site.node(B)) == ("1", "1")


@pytest.mark.parametrize("key", [A.key, "disks/a", "nodes/n"])
def test_a_key_that_is_gone_is_gone_from_the_view(site: Site, key: str) -> None:
    site.write(A, "1")
    site.watch.fresh()
    site.store.delete(key)
    view = site.watch.look(key)
    assert key not in view.read
    assert (A in view.exports) == (key != A.key)


def test_marks_are_read_like_any_other_key(site: Site) -> None:
    site.watch.fresh()
    site.store.put(MARKS_KEY, Marks(drained=frozenset({"n"})).model_dump_json().encode())
    assert site.watch.look(MARKS_KEY).marks.drained == {"n"}
    site.store.delete(MARKS_KEY)
    assert site.watch.look(MARKS_KEY).marks == Marks()


def slowly(site: Site, read: Callable[[], View]) -> Callable[[], View]:
    """Begin to read; what is returned lets the answer, as it was then, through."""
    views: list[View] = []
    slow = threading.Thread(target=lambda: views.append(read()), name="slow", daemon=True)
    slow.start()
    assert site.store.asked.wait(10)

    def let() -> View:
        site.store.let.set()
        slow.join(10)
        return views[0]

    return let


def test_a_listing_that_was_asked_for_before_does_not_undo_what_was_read_since(site: Site) -> None:
    site.write(A, "1")
    site.watch.fresh()
    site.write(B, "other")
    let = slowly(site, site.watch.fresh)
    site.write(A, "2")
    site.watch.look(A.key)
    let()
    assert (site.node(A), site.node(B)) == ("2", "other")


def test_a_key_that_was_asked_for_before_does_not_undo_what_was_read_since(site: Site) -> None:
    site.write(A, "1")
    site.watch.fresh()
    let = slowly(site, lambda: site.watch.look(A.key))
    site.write(A, "2")
    site.watch.fresh()
    let()
    assert site.node(A) == "2"


def test_a_key_that_is_attended_is_seen_while_the_watch_rests() -> None:
    site, stopping = Site(rest_s=1000), threading.Event()
    site.write(A, "1")
    follower = threading.Thread(target=site.watch.follow, args=(stopping,), daemon=True)
    follower.start()
    try:
        waited(lambda: site.node() == "1", within_s=10, what="the first view")
        site.watch.attend(A.key, for_s=60)
        site.write(A, "2")
        waited(lambda: site.node() == "2", within_s=10, what="the attended key's change")
        assert site.changes > 1
    finally:
        stopping.set()
        site.watch.stop()
        follower.join(10)


def test_attention_ends_by_itself_and_no_more_keys_are_attended_than_allowed(site: Site) -> None:
    site.watch.fresh()
    for number in range(ATTENDED_MAX + 5):
        site.watch.attend(f"nodes/{number}", for_s=0.1)
    assert len(site.watch._attended) <= ATTENDED_MAX
    waited(lambda: not site.watch._attended, within_s=10, what="nothing is attended any more")


def test_what_a_journal_names_is_looked_at_and_nothing_else(site: Site) -> None:
    for export in (A, B):
        site.write(export, "1")
    journal = Journal("iscsi_worker", "x")
    site.watch.turn()
    for export in (A, B):
        site.write(export, "2")
    site.tell(journal, A)
    listed, site.changes = site.store.listed, 0
    assert site.watch.turn() == 2  # the journal, and what it names
    assert (site.node(A), site.node(B), site.changes) == ("2", "1", 1)
    assert (site.store.got, site.store.listed) == ([A.key], listed)


def test_whoever_is_told_of_a_change_is_told_which_keys_it_was_in(site: Site) -> None:
    journal = Journal("iscsi_worker", "x")
    site.write(A, "1")
    site.watch.turn()
    site.write(A, "2")
    site.tell(journal, A, B)
    site.watch.turn()
    assert site.news == [A.key, B.key]
    journal.note(f"disks/{number}" for number in range(KEPT + 1))
    site.tell(journal)
    site.watch.turn()
    assert site.news is None, "anything may have changed"


class Door:
    """A lock that tells how many came to it."""

    def __init__(self) -> None:
        self.lock, self.came, self.timeout_s = threading.Lock(), threading.Semaphore(0), 0.0

    def acquire(self, timeout: float) -> bool:
        self.came.release()
        self.timeout_s = timeout
        return self.lock.acquire(timeout=10)

    def release(self) -> None:
        self.lock.release()


def test_one_reads_everything_at_a_time_and_the_next_for_all_that_waited(site: Site) -> None:
    door = Door()
    site.watch._reading = door  # type: ignore[assignment]
    slow = threading.Thread(target=site.watch.fresh, name="slow")
    slow.start()
    assert site.store.asked.wait(10)
    site.write(A, "2")
    found = list[View]()
    others = [threading.Thread(target=lambda: found.append(site.watch.fresh())) for _ in range(3)]
    for other in others:
        other.start()
    assert all(door.came.acquire(timeout=10) for _ in range(4))
    assert site.store.listed == 1
    site.store.let.set()
    for thread in (slow, *others):
        thread.join(10)
    assert (len(found), site.store.listed, door.timeout_s) == (3, 2, 0.1)
    assert {view.exports[A].export.node for view in found} == {"2"}


def test_who_would_wait_long_for_another_that_reads_everything_is_told_to_ask_again(site: Site) -> None:
    with site.watch._reading, pytest.raises(Unavailable, match="ask again"):
        site.watch.fresh()


@pytest.mark.rows("IS-9")
def test_what_several_writers_changed_meanwhile_is_one_change(site: Site) -> None:
    one, other = Journal("iscsi_worker", "x"), Journal("iscsi_worker", "y")
    for journal in (one, other):
        site.tell(journal)
    site.watch.turn()
    site.write(A, "2")
    site.write(B, "2")
    site.tell(one, A)
    site.tell(other, B)
    site.changes = 0
    site.watch.turn()
    assert (site.changes, set(site.news or ())) == (1, {A.key, B.key})


@pytest.mark.rows("IS-10", "IS-11")
def test_while_the_store_is_away_it_is_asked_again_after_the_same_pause_however_often_that_failed_and_after_none_once_it_is_back(
    site: Site,
) -> None:
    paused, stopping = list[float](), threading.Event()

    class Clock(SystemClock):
        def wait(self, event: threading.Event, timeout_s: float) -> bool:
            paused.append(timeout_s)
            if len(paused) == 20:
                site.store.is_away = False
                site.write(A, "1")
            return event.is_set()

    site.watch._clock, site.watch._on_change, site.store.is_away = Clock(), lambda _: stopping.set(), True
    site.watch.follow(stopping)
    assert (set(paused), len(paused), site.node(A)) == ({0.1}, 20, "1")


def test_whoever_is_told_of_a_change_for_which_everything_had_to_be_read_is_told_of_everything(site: Site) -> None:
    site.write(A, "1")
    site.write(A, "2")
    site.watch.turn()
    with site.store._lock:
        site.store._store.entries[A.key] = Entry(A.key, Export(generation=1, node="old").model_dump_json().encode(), 1)
    site.tell(Journal("iscsi_worker", "x"), A)
    site.watch.turn()
    assert (site.node(A), site.news) == ("old", None)


def test_a_change_that_was_seen_already_is_no_news(site: Site) -> None:
    journal = Journal("iscsi_worker", "x")
    site.watch.turn()
    site.tell(journal, A)
    site.watch.turn()
    site.changes = 0
    assert site.watch.turn() == 0
    assert site.changes == 0
    site.write(A, "2")
    site.tell(journal, A)
    site.watch.fresh()
    assert site.watch.turn() == 0, "a listing of everything holds the journals too"


@pytest.mark.parametrize("missed", ["more than a journal keeps", "another beginning", "the journal is gone"])
def test_who_cannot_tell_what_it_missed_reads_everything(site: Site, missed: str) -> None:
    journal = Journal("iscsi_worker", "x")
    site.tell(journal, A)
    site.write(B, "1")
    site.watch.turn()
    site.write(B, "2")
    match missed:
        case "more than a journal keeps":
            journal.note(f"disks/{number}" for number in range(KEPT))
            site.tell(journal, A)
        case "another beginning":
            site.tell(Journal("iscsi_worker", "x"), A)
        case _:
            assert site.store.delete(journal.key)
    site.watch.turn()
    assert site.node(B) == "2"


def test_the_end_of_a_workers_session_frees_what_it_held_before_anybody_says_so(site: Site) -> None:
    session = site.store.open_session("x", check_ttl_s=3600)
    assert site.store.acquire(A.key, Export(generation=1, node="x").model_dump_json().encode(), consul_session=session)
    site.tell(Journal("iscsi_worker", "x"), session=session)
    site.watch.turn()
    assert site.watch.latest
    assert set(site.watch.latest.held_by(session)) == {A}
    site.store.close_session(session)
    site.watch.turn()
    assert set(site.watch.latest.held_by(None)) == {A}


def test_what_could_not_be_read_after_a_session_had_ended_is_read_again_at_once(site: Site) -> None:
    session = site.store.open_session("x", check_ttl_s=3600)
    site.tell(Journal("iscsi_worker", "x"), session=session)
    for _ in range(2):
        site.watch.turn()
    site.store.close_session(session)
    site.store.is_away = True
    with pytest.raises(Unavailable):
        site.watch.turn()
    site.store.is_away = False
    site.store.asked_with.clear()
    site.watch.turn()
    assert site.store.asked_with[0] < site.store.list("").index, "it does not wait for the next change"


def test_a_journal_that_came_and_went_between_two_readings_is_forgotten(site: Site) -> None:
    journal, passing = Journal("conductor", "x"), Journal("conductor", "y")
    site.watch.turn()
    site.tell(passing, A)
    site.watch.turn()
    assert site.store.delete(passing.key)
    site.watch.turn()
    listed = site.store.listed
    for _ in range(3):
        site.tell(journal, A)
        site.watch.turn()
    assert site.store.listed == listed


def test_a_store_that_was_put_back_to_an_older_state_is_believed(site: Site) -> None:
    for number in range(5):
        site.write(A, str(number))
    site.watch.turn()
    with site.store._lock:
        old = Entry(A.key, Export(generation=1, node="old").model_dump_json().encode(), 1)
        site.store._store.entries[A.key] = old
    site.watch.look(A.key)
    assert site.node() == "old"


def test_a_key_that_is_gone_stays_gone_when_a_listing_from_before_arrives_late(site: Site) -> None:
    site.write(A, "1")
    site.watch.fresh()
    let = slowly(site, site.watch.fresh)
    site.watch.look(A.key)
    site.store.delete(A.key)
    site.watch.look(A.key)
    let()
    assert site.node() is None


def test_a_key_that_only_looks_like_that_of_an_export_is_not_taken_for_it(site: Site) -> None:
    site.write(A, "1")
    stray = f"exports/{A.disk_id}/0{A.index}"
    assert site.store.put(stray, Export(generation=9).model_dump_json().encode())
    site.watch.fresh()
    assert site.store.delete(stray)
    view = site.watch.fresh()
    assert site.node() == "1"
    assert set(view.held_by(None)) == {A}


def test_a_view_keeps_nothing_of_sessions_that_hold_nothing_and_its_disks_while_none_differs(site: Site) -> None:
    session = site.store.open_session("x", check_ttl_s=3600)
    assert site.store.acquire(A.key, Export(generation=1).model_dump_json().encode(), consul_session=session)
    before = site.watch.fresh()
    site.store.close_session(session)
    after = site.watch.fresh()
    assert set(after.by_session) == {None}
    assert after.disks is before.disks


def test_many_changes_at_once_are_one_listing(site: Site) -> None:
    journal = Journal("conductor", "x")
    site.watch.turn()
    exports = [ExportId(str(number), 0) for number in range(LOOKED_AT_MOST + 1)]
    for export in exports:
        site.write(export, "1")
    listed = site.store.listed
    site.tell(journal, *exports)
    site.watch.turn()
    assert all(site.node(export) == "1" for export in exports)
    assert (site.store.got, site.store.listed) == ([], listed + 1)


def test_what_could_not_be_looked_at_is_looked_at_later(site: Site) -> None:
    journal = Journal("conductor", "x")
    site.watch.turn()
    site.write(A, "2")
    site.tell(journal, A)
    site.store.is_away = True
    with pytest.raises(Unavailable):
        site.watch.turn()
    site.store.is_away = False
    site.watch.turn()
    assert site.node(A) == "2"


def test_what_nobody_told_of_is_found_when_everything_is_read_again() -> None:
    site = Site(read_all_s=0.0)
    site.write(A, "1")
    site.watch.turn()
    site.write(A, "2")
    site.watch.sweep()
    assert (site.node(A), site.changes) == ("2", 2)


def test_everything_is_read_again_only_when_it_is_time_for_that(site: Site) -> None:
    site.write(A, "1")
    site.watch.turn()
    listed = site.store.listed
    site.watch.sweep()
    assert site.store.listed == listed


def test_an_attended_key_stays_as_it_is_when_a_listing_from_before_arrives_late(site: Site) -> None:
    site.write(A, "1")
    site.watch.fresh()
    site.watch.attend(A.key, for_s=60)
    let = slowly(site, site.watch.fresh)
    site.write(A, "2")
    waited(lambda: site.node() == "2", within_s=10, what="the attended key's change")
    let()
    assert site.node() == "2"
    site.watch.stop()


def test_what_was_read_late_of_a_key_does_not_come_back_with_a_listing_from_before(site: Site) -> None:
    site.write(A, "1")
    site.watch.fresh()
    old = site.store.watch(A.key, index=0, timeout_s=0)
    slow = threading.Thread(target=site.watch.fresh, name="slow", daemon=True)
    slow.start()
    assert site.store.asked.wait(10)
    site.write(A, "2")
    site.watch.look(A.key)
    site.watch.saw(A.key, old)
    site.store.let.set()
    slow.join(10)
    assert site.node() == "2"


def test_a_store_that_is_away_is_no_failure_of_reading_everything_again() -> None:
    site = Site(read_all_s=0.0)
    site.watch.fresh()
    site.store.is_away = True
    site.watch.sweep()
    assert site.changes == 0
