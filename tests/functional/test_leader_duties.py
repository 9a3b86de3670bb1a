"""Three candidates as processes on real Consul, with the records they share: however the leader is lost, nobody is told twice.

Each candidate reaches Consul through a proxy of its own, which is how one is cut off. A receiver on loopback counts what comes.
"""

import itertools
import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cli.lab.parts.daemons import waited
from cli.lab.processes import Process
from cli.lab.proxy import FaultProxy, Mode
from sanderling import coordination, settings
from sanderling import secrets as keys
from sanderling.clock import SystemClock
from sanderling.coordination.leaders import leader_of
from sanderling.model.leaders import CLUSTER, Leader
from sanderling.model.notifications import Rule
from sanderling.records import events, notifications, statistics
from sanderling.records.database import Records
from sanderling.secrets import Keyring
from tests.receiver import Receiver

NODES = ("a", "b", "c")
ROUNDS = 30 if os.environ.get("SANDERLING_FULL") else 6
WITHIN_S = 120.0
EVERY_S = 1.0  # a delivery is two durable writes: what is produced must not outrun a slow disk
CLOCK = SystemClock()
BOUNDS = settings.Leader(candidacy_pause_s=2.0, duty_start_timeout_s=3.0)
STATISTICS = settings.Statistics(interval_s=1.0, ask_timeout_s=1.0)


def gap_max_s() -> float:
    """The stated bound on a gap in statistics (docs/operations.md)."""
    lost_s = BOUNDS.check_ttl_s + BOUNDS.lock_delay_s + BOUNDS.lease_s + BOUNDS.duty_stop_timeout_s + 2 * BOUNDS.watch_timeout_s
    return lost_s + STATISTICS.ask_timeout_s + 2 * STATISTICS.interval_s + 5.0


@dataclass
class Site:
    """The candidates, their proxies, and what they share."""

    configured: settings.Settings
    folder: Path
    records: Records
    store: coordination.base.Coordination
    to: tuple[str, int]
    candidates: dict[str, Process] = field(default_factory=dict)
    proxies: dict[str, FaultProxy] = field(default_factory=dict)

    def candidate(self, node: str, **changes: Any) -> Process:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.proxies[node] = FaultProxy(("127.0.0.1", port), self.to)
        self.proxies[node].start()
        own = replace(
            self.configured,
            sanderling=settings.General(node=node, runtime_dir=str(self.folder), log_level="DEBUG"),
            coordination=replace(self.configured.coordination, url=f"http://127.0.0.1:{port}"),
            **changes,
        )
        self.candidates[node] = Process(node, "sanderling-leader", own, self.folder, "")
        return self.candidates[node]

    def leader(self) -> Leader | None:
        return leader_of(self.store, CLUSTER)

    def wait_for_leader(self, *, after_term: int = 0) -> Leader:
        """The leader of a later term, once its duties run."""
        found: list[Leader] = []

        def leads() -> bool:
            leader = self.leader()
            if leader is None or leader.term <= after_term:
                return False
            said = self.candidates[leader.node].log(event="duty started")
            found.append(leader)
            return len([entry for entry in said if entry["term"] == leader.term]) == 2

        waited(leads, within_s=WITHIN_S, what=f"somebody leads after term {after_term}")
        return found[-1]

    def rule(self, url: str, name: str) -> Rule:
        with self.records.begin() as session:
            return notifications.create(
                session,
                name=name,
                kinds=("disk.*",),
                sealed_url=Keyring(self.configured.secrets).seal(url),
                receiver="x",
                now=CLOCK.wall(),
                actor="test",
                rules_max=10,
            )

    def shown(self, name: str) -> Rule:
        with self.records.read() as session:
            return notifications.get(session, name)

    def happens(self) -> int:
        with self.records.begin() as session:
            for kind in ("disk.failed", "operation.failed", "disk.started"):
                events.append(session, kind, at=CLOCK.wall(), actor="test", data={"name": "vol"})
        with self.records.read() as session:
            return events.newest(session)

    def told_of(self) -> list[int]:
        """The ids of the events that the rules name."""
        with self.records.read() as session:
            found = events.page(session, after=0, limit=1_000_000)
        return [event.id for event in found if event.kind.startswith("disk.")]

    def measured(self) -> list[float]:
        """How long the cluster went without a sample, between any two."""
        with self.records.read() as session:
            found = statistics.page(
                session, since=CLOCK.wall() - timedelta(days=1), span_s=statistics.FINE, limit=1_000_000, resource="cluster"
            )
        return [(after.at - before.at).total_seconds() for before, after in itertools.pairwise(found)]


@pytest.fixture
def site(tmp_path: Path, consul: Any, unique: str) -> Iterator[Site]:
    key_file = tmp_path / "keys"
    keys.add(key_file)
    configured = settings.Settings(
        records=settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"),
        coordination=settings.Coordination(url=consul.url, prefix=f"{unique}/"),
        images=settings.Images(ceph_conf=str(tmp_path / "none.conf"), connect_timeout_s=0.5),
        leader=BOUNDS,
        statistics=STATISTICS,
        notifications=settings.Notifications(loopback="on", interval_s=0.1, retry_first_s=0.2, retry_most_s=1.0),
        secrets=settings.Secrets(key_file=str(key_file)),
    )
    records = Records(configured.records, clock=CLOCK)
    records.migrate()
    store = coordination.connect(configured, clock=CLOCK)
    at = urlsplit(consul.url)
    assert at.hostname is not None
    assert at.port is not None
    made = Site(configured, tmp_path, records, store, (at.hostname, at.port))
    try:
        yield made
    finally:
        for process in made.candidates.values():
            process.kill()
        for proxy in made.proxies.values():
            proxy.stop()
        store.close()
        records.close()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure where whoever runs the tests sees it."""

    def told(figure: str) -> None:
        with capsys.disabled():
            print(f"\n{figure}")  # noqa: T201

    return told


def lose(site: Site, leader: Leader, how: str) -> None:
    process = site.candidates[leader.node]
    match how:
        case "killed":
            process.kill()
        case "paused":
            process.pause()
        case "cut off":
            site.proxies[leader.node].set(Mode.CUT)
        case "told to go":
            assert process.daemon is not None
            process.daemon.signal(signal.SIGUSR1)


def mend(site: Site, node: str) -> None:
    site.proxies[node].set(Mode.OPEN)
    site.candidates[node].resume()
    if not site.candidates[node].alive:
        site.candidates[node].start()


def couriers() -> set[int]:
    """The pids of all couriers that live."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"leader.courier" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(1800)
@pytest.mark.rows("LE-20", "LE-21", "LE-22", "W-LE-6")
def test_however_often_the_leader_is_lost_every_event_is_told_once_and_statistics_go_on(
    site: Site, say: Callable[[str], None]
) -> None:
    before = couriers()
    stopping, counted = threading.Event(), []

    def produce() -> None:
        while not stopping.is_set():
            counted.append(site.happens())
            CLOCK.wait(stopping, EVERY_S)

    producing = threading.Thread(target=produce, daemon=True)
    with Receiver() as receiver, Receiver() as away:
        away.status = 503
        site.rule(receiver.url, "there")
        site.rule(away.url, "away")
        for node in NODES:
            site.candidate(node).start()
        term = site.wait_for_leader().term
        producing.start()
        hows = itertools.islice(itertools.cycle(("killed", "paused", "cut off", "told to go")), ROUNDS)
        try:
            for how in hows:
                told = len(receiver.got)
                waited(lambda told=told: len(receiver.got) > told + 5, within_s=WITHIN_S, what="events arrive")  # type: ignore[misc]
                lost = site.wait_for_leader(after_term=term - 1)
                lose(site, lost, how)
                heir = site.wait_for_leader(after_term=lost.term)
                assert heir.term > lost.term
                term = heir.term
                mend(site, lost.node)
        finally:
            stopping.set()
            producing.join()
        away.status = 200
        wanted = site.told_of()
        for name in ("there", "away"):
            waited(lambda name=name: site.shown(name).cursor >= wanted[-1], within_s=600, what=f"{name} has all")  # type: ignore[misc]
        for process in site.candidates.values():
            process.terminate()
        gap_s, lost_ids = max(site.measured()), set(wanted) - set(receiver.events)
        say(
            f"{ROUNDS} changes of leader, {len(wanted)} events for each of two receivers: {len(lost_ids)} lost, "
            f"{len(receiver.repeats)} and {len(away.repeats)} sent again; statistics: longest gap {gap_s:.0f} s, "
            f"bound {gap_max_s():.0f} s"
        )
        for one in (receiver, away):
            assert list(dict.fromkeys(one.events)) == wanted
            assert not one.repeats
        assert gap_s <= gap_max_s()
    waited(lambda: not couriers() - before, within_s=WITHIN_S, what="no courier is left")


@pytest.mark.timeout(300)
@pytest.mark.rows("W-LE-5", "W-LE-9")
def test_a_leader_that_cannot_start_its_duties_hands_on_and_does_not_take_it_back(site: Site) -> None:
    elsewhere = settings.Records(url=f"sqlite:///{site.folder}/none/records.sqlite")
    broken = site.candidate("a", records=elsewhere)
    broken.start()
    broken.wait_for_log("a duty failed: handing leadership on", within_s=WITHIN_S)
    site.candidate("b").start()
    heir = site.wait_for_leader()
    assert heir.node == "b"
    times = len(broken.log(event="leading"))
    assert times <= 3
    waited(lambda: len(site.measured()) >= 5, within_s=WITHIN_S, what="the heir measures on")
    assert site.leader() == heir
    assert len(broken.log(event="leading")) == times


@pytest.mark.timeout(300)
@pytest.mark.rows("W-LE-4")
def test_a_leader_whose_duties_hang_in_their_start_ends_and_lets_another_lead(site: Site) -> None:
    file = site.folder / "held.sqlite"
    held = settings.Records(url=f"sqlite:///{file}", busy_timeout_s=600.0, statement_timeout_s=700.0)
    records = Records(held, clock=CLOCK)
    records.migrate()
    records.close()
    holding = sqlite3.connect(file, isolation_level=None)
    try:
        holding.execute("BEGIN IMMEDIATE")
        hanging = site.candidate("a", records=held)
        hanging.start()
        waited(lambda: bool(hanging.log(event="leading")), within_s=WITHIN_S, what="it leads")
        site.candidate("b").start()
        hanging.wait_until_dead()
        assert hanging.log(event="a duty failed: handing leadership on")[0]["why"].startswith("statistics did not start within")
        hanging.start()  # as a supervisor does
        assert site.wait_for_leader().node == "b"
    finally:
        holding.close()
