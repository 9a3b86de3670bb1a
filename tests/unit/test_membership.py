"""A node's consul session over its own restarts and the store's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from iscsi_worker.membership import Membership
from sanderling.clock import ManualClock
from sanderling.coordination.changes import Changes
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.model.exports import Gateway, Prepared, Store
from sanderling.settings import Coordination, General, Images, Settings

GATEWAY = Gateway(name="a")


class Slow(EmbeddedCoordination):
    """A store that takes its time to say whether a session lives."""

    def __init__(self, *, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self._time = clock

    def session_is_live(self, consul_session: str) -> bool:
        is_live = super().session_is_live(consul_session)
        self._time.advance(1.5)
        return is_live


class Counting(EmbeddedCoordination):
    """A store that remembers which keys were acquired."""

    def __init__(self, *, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.acquired: list[str] = []

    def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        self.acquired.append(key)
        return super().acquire(key, value, consul_session=consul_session, expected=expected)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        sanderling=General(node="a", runtime_dir=str(tmp_path)),
        coordination=Coordination(backend="embedded"),
        images=Images(backend="files"),
    )


@pytest.fixture
def store(settings: Settings, clock: ManualClock) -> EmbeddedCoordination:
    return EmbeddedCoordination(clock=clock)


@pytest.fixture
def start(settings: Settings, store: EmbeddedCoordination, clock: ManualClock) -> Callable[[], Membership]:
    """Start a worker's membership as its process would, with nothing but the folder to go by."""
    return lambda: Membership(settings, store, clock=clock)


def test_a_restarted_worker_goes_on_with_the_session_that_still_lives(start: Callable[[], Membership]) -> None:
    before = start().ensure()
    assert start().ensure() == before


@pytest.mark.rows("IS-5", "W-IS-6")
def test_a_restarted_worker_whose_session_is_gone_opens_a_new_one(
    start: Callable[[], Membership], store: EmbeddedCoordination
) -> None:
    before = start().ensure()
    store.close_session(before)
    again = start()
    again.prove()
    assert again.ensure() != before


def test_a_restarted_worker_feeds_its_session_before_it_does_anything_else(
    start: Callable[[], Membership], store: EmbeddedCoordination, settings: Settings, clock: ManualClock
) -> None:
    session = start().ensure()
    for _ in range(4):
        clock.advance(settings.coordination.check_ttl_s * 0.75)
        start().feed()
    assert store.session_is_live(session)


def test_the_session_is_proven_only_from_the_moment_the_question_was_asked(
    start: Callable[[], Membership], settings: Settings, clock: ManualClock
) -> None:
    membership = start()
    assert membership.proven_until(membership.consul_session) == 0.0
    membership.ensure()
    assert membership.proven_until(membership.consul_session) == clock.monotonic() + settings.iscsi_worker.lease_s, (
        "who has just opened it has proof of it"
    )
    clock.advance(1.0)
    membership.turned()
    membership.prove()
    assert membership.proven_until(membership.consul_session) == clock.monotonic() + settings.iscsi_worker.lease_s


def test_a_proof_is_as_old_as_its_question_however_late_the_answer(settings: Settings, clock: ManualClock) -> None:
    membership = Membership(settings, Slow(clock=clock), clock=clock)
    membership.ensure()
    clock.advance(1.0)
    asked_at = clock.monotonic()
    membership.prove()
    assert membership.proven_until(membership.consul_session) == asked_at + settings.iscsi_worker.lease_s


def test_a_proof_of_one_session_says_nothing_of_the_next(
    start: Callable[[], Membership], store: EmbeddedCoordination, settings: Settings, clock: ManualClock
) -> None:
    membership = start()
    store.close_session(membership.ensure())
    membership.prove()
    clock.advance(1.0)
    second = start()
    assert second.proven_until(second.consul_session) == 0.0, "one that was found on disk has yet to be proved"
    before = second.consul_session
    second.prove()
    second.ensure()
    assert second.proven_until(before) == 0.0
    assert second.proven_until(second.consul_session) == clock.monotonic() + settings.iscsi_worker.lease_s


def test_a_worker_whose_loop_hangs_lets_its_session_die(
    start: Callable[[], Membership], store: EmbeddedCoordination, settings: Settings, clock: ManualClock
) -> None:
    membership = start()
    session = membership.ensure()
    bound = settings.coordination.check_ttl_s
    for _ in range(4):
        clock.advance(bound * 0.75)
        membership.feed()
    assert not store.session_is_live(session)


def test_a_worker_whose_loop_turns_keeps_its_session(
    start: Callable[[], Membership], store: EmbeddedCoordination, settings: Settings, clock: ManualClock
) -> None:
    membership = start()
    session = membership.ensure()
    for _ in range(4):
        clock.advance(settings.coordination.check_ttl_s * 0.75)
        membership.turned()
        membership.feed()
    assert store.session_is_live(session)


def test_a_gateway_is_published_under_the_sessions_lock_and_again_when_it_changes(
    start: Callable[[], Membership], store: EmbeddedCoordination
) -> None:
    membership = start()
    session = membership.ensure()
    membership.announce(GATEWAY, seen=True)
    changed = GATEWAY.model_copy(update={"withdrawing": True})
    membership.announce(changed, seen=True)
    entry = store.get(GATEWAY.key)
    assert entry is not None
    assert (Gateway.model_validate_json(entry.value), entry.consul_session) == (changed, session)


def test_a_gateway_whose_key_is_not_seen_is_published_again(settings: Settings, clock: ManualClock) -> None:
    counting = Counting(clock=clock)
    membership = Membership(settings, counting, clock=clock)
    membership.ensure()
    for seen in (False, True, True, False):
        membership.announce(GATEWAY, seen=seen)
    assert counting.acquired == [GATEWAY.key, membership.journal_key] * 2


def told(store: EmbeddedCoordination, membership: Membership) -> tuple[str, ...]:
    entry = store.get(membership.journal_key)
    return Changes.model_validate_json(entry.value).keys if entry else ()


def test_all_are_told_of_what_matters_to_all_and_of_what_was_noted_and_of_nothing_else(
    start: Callable[[], Membership], store: EmbeddedCoordination
) -> None:
    membership = start()
    membership.ensure()
    membership.announce(GATEWAY, seen=True)
    assert told(store, membership) == (GATEWAY.key,), "it is new"
    move = {"prepared": {"d/0": Prepared(generation=1, counter=1, client="c")}, "running": {"d/0": "c"}}
    membership.announce(GATEWAY.model_copy(update=move), seen=True)
    assert told(store, membership) == (GATEWAY.key,)
    membership.announce(GATEWAY.model_copy(update={"refused": {"d/0": "why"}}), seen=True)
    assert told(store, membership) == (GATEWAY.key, GATEWAY.key)
    membership.note(["exports/d/0"])
    membership.announce(GATEWAY, seen=True)
    assert told(store, membership)[2:] == ("exports/d/0", GATEWAY.key)
    membership.announce(GATEWAY.model_copy(update={"store": Store(cut_off=True)}), seen=True)
    assert told(store, membership)[4:] == (GATEWAY.key,)


def test_a_journal_ends_with_the_session_like_the_gateway_key(
    start: Callable[[], Membership], store: EmbeddedCoordination
) -> None:
    membership = start()
    session = membership.ensure()
    membership.announce(GATEWAY, seen=True)
    entries = [store.get(key) for key in (GATEWAY.key, membership.journal_key)]
    assert [entry.consul_session for entry in entries if entry] == [session, session]
    membership.leave()
    entries = [store.get(key) for key in (GATEWAY.key, membership.journal_key)]
    assert [entry.consul_session for entry in entries if entry] == [None, None]


def test_a_second_worker_of_the_same_name_is_no_member_until_the_first_is_gone(
    start: Callable[[], Membership], store: EmbeddedCoordination, settings: Settings, clock: ManualClock, tmp_path: Path
) -> None:
    first = start()
    first.ensure()
    first.announce(GATEWAY, seen=True)
    elsewhere = replace(settings, sanderling=replace(settings.sanderling, runtime_dir=str(tmp_path / "other")))
    second = Membership(elsewhere, store, clock=clock)
    second.ensure()
    second.announce(GATEWAY, seen=True)
    assert not second.is_member
    first.leave()
    second.announce(GATEWAY, seen=True)
    assert second.is_member


def test_leaving_frees_the_key_at_once_and_forgets_the_session(
    start: Callable[[], Membership], store: EmbeddedCoordination
) -> None:
    membership = start()
    before = membership.ensure()
    membership.announce(GATEWAY, seen=True)
    membership.leave()
    entry = store.get(GATEWAY.key)
    assert entry is not None
    assert entry.consul_session is None
    assert start().ensure() != before


def test_a_session_is_certain_only_for_a_moment_after_it_was_proved(
    start: Callable[[], Membership], settings: Settings, clock: ManualClock
) -> None:
    membership = start()
    membership.ensure()
    assert membership.is_certain, "a gateway that has just come may serve what it is handed"
    clock.advance(2 * settings.iscsi_worker.renew_interval_s)
    assert not membership.is_certain
    membership.turned()
    membership.prove()
    assert membership.is_certain
    clock.advance(2 * settings.iscsi_worker.renew_interval_s)
    assert not membership.is_certain
    assert membership.proven_until(membership.consul_session) > clock.monotonic(), "leases last longer"
