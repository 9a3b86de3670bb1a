"""The worker's view of the store: everything now and then, single keys at once, and never an older value after a newer one."""

import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from cli.lab.parts.daemons import waited
from iscsi_worker.view import View
from iscsi_worker.watch import ATTENDED_MAX, Watch
from sanderling.clock import SystemClock
from sanderling.coordination.base import Entry, Listing
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.model.exports import Export, ExportId
from sanderling.model.marks import MARKS_KEY, Marks
from sanderling.settings import Coordination, Settings, Worker

CLOCK = SystemClock()
Answer = TypeVar("Answer")
A, B = ExportId("a", 0), ExportId("b", 1)


class Held(EmbeddedCoordination):
    """A store whose answers to the thread `slow` wait until the test lets them through."""

    def __init__(self) -> None:
        super().__init__(Coordination(backend="embedded"), clock=CLOCK)
        self.asked, self.let = threading.Event(), threading.Event()

    def list(self, prefix: str) -> Listing:
        return self._held(super().list(prefix))

    def get(self, key: str) -> Entry | None:
        return self._held(super().get(key))

    def _held(self, answer: Answer) -> Answer:
        if threading.current_thread().name == "slow":
            self.asked.set()
            assert self.let.wait(10)
        return answer


class Site:
    def __init__(self, rest_s: float = 0.0) -> None:
        self.store = Held()
        self.changes = 0
        settings = Settings(
            coordination=Coordination(backend="embedded", watch_timeout_s=0.2),
            iscsi_worker=Worker(watch_rest_per_key_s=rest_s, watch_rest_most_s=rest_s),
        )
        self.watch = Watch(settings, self.store, on_change=self.changed, clock=CLOCK)

    def changed(self) -> None:
        self.changes += 1

    def write(self, export: ExportId, node: str) -> None:
        assert self.store.put(export.key, Export(generation=1, node=node).model_dump_json().encode())

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


def test_a_key_that_is_attended_is_seen_while_the_watch_of_everything_rests() -> None:
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
