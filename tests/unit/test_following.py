"""Two workers that see of each other what the journals name, and what they follow themselves; nothing is read for them."""

import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from cli.lab.parts.daemons import waited
from sanderling.coordination.base import Op
from sanderling.model.exports import ExportPhase
from tests.unit.test_worker_moves import DISK, EXPORT, Pair, Side


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """a serves, b stands by, and each follows what it is told of."""
    made, stopping = Pair(tmp_path), threading.Event()
    followers = []
    for side in (made.a, made.b):
        side.is_following = True
        followers.append(threading.Thread(target=side.worker._watch.follow, args=(stopping,), daemon=True))
        followers[-1].start()
    made.until(lambda: all(knows(side, "a") for side in (made.a, made.b)), "both know that a serves")
    yield made
    stopping.set()
    for side in (made.a, made.b):
        side.worker._watch.stop()
        side.worker._lanes.stop()
        side.worker._leases.stop()
    for follower in followers:
        follower.join(15)


def knows(side: Side, owner: str) -> bool:
    """Whether that gateway serves it, as far as this one has seen; "" for nobody."""
    view = side.worker._watch.latest
    held = view.exports.get(EXPORT) if view else None
    return held is not None and (held.export.node if held.consul_session else "") == owner


def keys(side: Side) -> Collection[str]:
    view = side.worker._watch.latest
    return view.read if view else ()


def test_what_is_given_up_is_taken_by_the_other_and_that_is_seen_by_the_first(pair: Pair) -> None:
    pair.command(pair.a, "clean")
    pair.until(pair.b.serves, "b serves")
    pair.until(lambda: knows(pair.a, "b"), "a knows that b serves")


def test_what_could_not_be_taken_is_taken_by_the_other(pair: Pair) -> None:
    pair.b.targets.fails = {"start"}
    pair.command(pair.a, "clean")
    pair.until(lambda: pair.value.counter > 1 and pair.value.phase is ExportPhase.TAKING, "b tried")
    pair.a.worker._intents._refused.clear()
    pair.until(pair.a.serves, "a serves again")


def test_what_is_adopted_is_seen_by_the_other(pair: Pair) -> None:
    session, client = pair.a.worker._membership.consul_session, pair.value.client
    assert session is not None
    pair.b.is_dead = True  # slower than a, for a moment
    pair.store.close_session(session)
    pair.a.worker._membership.prove()
    pair.until(lambda: pair.value.counter == 2, "a has its lock again", pair.a)
    pair.b.is_dead = False
    pair.until(lambda: knows(pair.b, "a"), "b knows that a serves")
    assert (pair.value.node, pair.value.client) == ("a", client), "the process that ran goes on"


def test_who_is_handed_the_lock_after_it_was_told_to_stand_by_no_more_hears_of_it(pair: Pair) -> None:
    """Its command ran out while the other drained: nothing but the other's word makes it look."""
    handed, go = threading.Event(), threading.Event()
    plain = pair.store.txn

    def slowly(ops: Sequence[Op]) -> bool:
        if len(ops) == 2:
            handed.set()
            assert go.wait(10)
        return plain(ops)

    pair.store.txn = slowly  # type: ignore[method-assign]
    pair.ask_to_move()
    pair.until(handed.is_set, "a is about to pass the lock on")
    pair.b.worker._intents._wanted.clear()
    pair.until(lambda: not pair.b.targets.actual(), "b stands ready no more")
    pair.until(lambda: not pair.b.worker._watch._attended, "b follows nothing", pair.b)
    go.set()
    pair.until(pair.b.serves, "b serves")


@pytest.mark.parametrize("lost", ["nodes/a", "changes/iscsi_worker/a"])
def test_a_key_of_a_gateway_that_is_lost_is_written_again(pair: Pair, lost: str) -> None:
    with pair.store._lock:
        del pair.store._store.entries[lost]
    pair.a.worker._watch.fresh()
    pair.until(lambda: pair.store.get(lost) is not None, f"{lost} is back")


def test_a_journal_that_a_stranger_has_written_is_locked_by_its_gateway_again(pair: Pair) -> None:
    key = "changes/iscsi_worker/a"
    before = pair.store.get(key)
    assert before is not None
    with pair.store._lock:
        del pair.store._store.entries[key]
    assert pair.store.put(key, before.value)
    pair.a.worker._watch.fresh()

    def is_locked() -> bool:
        now = pair.store.get(key)
        return now is not None and now.consul_session == pair.a.worker._membership.consul_session

    pair.until(is_locked, "a has its journal again")


def test_who_has_handed_an_export_on_knows_whose_it_is_before_that_one_serves(pair: Pair) -> None:
    """Or it would take the address that the other announces for claimed by a stranger, and announce it as well."""
    pair.ask_to_move()
    pair.until(lambda: bool(pair.b.worker._membership._gateway.prepared), "b stands ready", pair.b)  # type: ignore[union-attr]
    pair.until(lambda: knows(pair.a, "b"), "a knows that b has it", pair.a)
    assert pair.a.worker._lanes.look().busy, "a still waits for b"
    pair.until(pair.b.serves, "b serves")


def test_a_running_worker_finds_what_nobody_told_it_of(pair: Pair, tmp_path: Path) -> None:
    side = Side("c", tmp_path, pair.store, pair.memory)
    side.worker.start()
    try:
        waited(lambda: knows(side, "a"), within_s=10, what="the first view")
        for disk_id in ("2", "3", "4"):  # the first may be found while the worker still looks around
            stopped = DISK.model_copy(update={"id": disk_id, "started": False})
            assert pair.store.put(f"disks/{disk_id}", stopped.model_dump_json().encode())
            waited(lambda disk_id=disk_id: f"disks/{disk_id}" in keys(side), within_s=10, what=f"{disk_id} is found")  # type: ignore[misc]
    finally:
        side.worker.stop()
