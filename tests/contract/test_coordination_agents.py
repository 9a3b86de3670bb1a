"""Coordination on real Consul agents that die, hang and forget."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import consul
import pytest

from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import waited
from sanderling.coordination.base import Coordination
from sanderling.errors import Unavailable
from tests.contract.coordination_calls import WITHIN_S, assert_unavailable, coordination, within_bound
from tests.parts import usage


@contextmanager
def running(*agents: ConsulAgent) -> Iterator[None]:
    try:
        for agent in agents:
            agent.start()
        usage.used("Consul", agents[0].version)
        yield
    finally:
        for agent in agents:
            agent.stop()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ConsulAgent]:
    """An agent of the test's own, to be broken."""
    one = ConsulAgent(tmp_path / "a")
    with running(one):
        yield one


def test_without_an_agent_every_method_is_unavailable(agent: ConsulAgent) -> None:
    store = coordination(agent.url)
    assert store.put("a", b"1")
    agent.kill()
    assert_unavailable(store)


def test_an_agent_that_hangs_is_unavailable_within_the_bound_and_usable_once_it_goes_on(agent: ConsulAgent) -> None:
    store = coordination(agent.url, request_timeout_s=0.5)
    assert store.put("a", b"1")
    agent.pause()
    assert_unavailable(store)
    agent.resume()
    waited(lambda: _answers(store), within_s=WITHIN_S, what="Consul answers again")


def _answers(store: Coordination) -> bool:
    try:
        return store.get("a") is not None
    except Unavailable:
        return False


def test_a_live_agent_without_servers_feeds_a_check_and_proves_nothing(agent: ConsulAgent, tmp_path: Path) -> None:
    client = ConsulAgent(tmp_path / "c", node_name="consul-c", server=False, join=[agent.lan])
    with running(client):
        store = coordination(client.url)
        mine = store.open_session("worker", check_ttl_s=60.0)
        assert store.session_is_live(mine)
        agent.kill()
        store.renew_session(mine)
        assert_unavailable(store, "session_is_live", "get", "put", "watch")
        with pytest.raises(Unavailable):
            store.session_is_live(mine)


def test_what_a_dead_node_locked_can_be_taken(agent: ConsulAgent, tmp_path: Path) -> None:
    client = ConsulAgent(tmp_path / "c", node_name="consul-c", server=False, join=[agent.lan])
    with running(client):
        theirs = coordination(client.url)
        assert theirs.acquire("a", b"theirs", consul_session=theirs.open_session("worker", check_ttl_s=300.0))
        ours = coordination(agent.url)
        heir = ours.open_session("worker", check_ttl_s=300.0)
        client.kill()
        waited(lambda: ours.acquire("a", b"ours", consul_session=heir), within_s=60.0, what="the dead node's lock falls")


def forgotten(agent: ConsulAgent) -> None:
    agent.kill()
    agent.forget()
    agent.start()


@pytest.mark.rows("W-LE-7")
def test_a_watch_goes_on_after_the_store_lost_its_data_and_its_index_went_back(agent: ConsulAgent) -> None:
    store = coordination(agent.url)
    for n in range(100):
        store.put("a", b"%d" % n)
    old = store.list("")
    forgotten(agent)
    listing = store.watch("", index=old.index, timeout_s=0.5)
    assert listing.entries == ()
    assert listing.index < old.index
    for value in (b"1", b"2"):
        assert store.put("a", value)
        listing = within_bound(partial(store.watch, "", index=listing.index, timeout_s=300.0))
        assert [entry.value for entry in listing.entries] == [value]


def test_a_watch_that_was_cut_off_looks_at_once_at_the_store_that_came_back(agent: ConsulAgent) -> None:
    store = coordination(agent.url)
    for n in range(100):
        store.put("a", b"%d" % n)
    old = store.list("")
    agent.kill()
    assert_unavailable(store, "watch")
    agent.forget()
    agent.start()
    listing = within_bound(lambda: store.watch("", index=old.index, timeout_s=300.0))
    assert listing.entries == ()


@pytest.mark.rows("W-PA-8")
def test_checks_end_with_their_session_and_those_of_the_dead_are_swept(agent: ConsulAgent) -> None:
    store = coordination(agent.url)
    checks = consul.Consul("127.0.0.1", agent.ports.http).agent.checks
    closed, dead, other = (store.open_session(name, check_ttl_s=ttl) for name, ttl in (("w", 300.0), ("w", 0.2), ("o", 0.2)))
    assert len(checks()) == 3
    store.close_session(closed)
    assert len(checks()) == 2
    waited(lambda: not store.session_is_live(dead), within_s=WITHIN_S, what="the silent session dies")
    waited(lambda: not store.session_is_live(other), within_s=WITHIN_S, what="the silent session dies")
    alive = store.open_session("w", check_ttl_s=300.0)
    assert sorted(check.split(":")[1] for check in checks()) == ["o", "w"]
    store.open_session("w", check_ttl_s=300.0)
    assert store.session_is_live(alive)


def test_a_refused_write_leaves_the_locks_own_counter_alone(agent: ConsulAgent) -> None:
    store = coordination(agent.url)
    raw = consul.Consul("127.0.0.1", agent.ports.http).kv
    mine = store.open_session("w", check_ttl_s=300.0)
    store.acquire("a", b"1", consul_session=mine)
    assert not store.put("a", b"2")
    assert raw.get("sanderling/a")[1]["LockIndex"] == 1
    assert raw.put("sanderling/a", b"past us")  # what we guard against: Consul itself lets it through
    assert raw.get("sanderling/a")[1]["LockIndex"] == 0
