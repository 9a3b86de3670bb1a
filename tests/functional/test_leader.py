"""Three candidates as processes on real Consul, each on a node with an agent of its own: however the leader is lost, one leads.

The duties log from when to when they ran. Every candidate reads the same CLOCK_MONOTONIC here, so what they logged can be
compared. A duty whose process was killed, and so logged no end, counts as run until its last proved lease and the time it had to
stop were over; so does one whose process was frozen, since it asks its lease before it acts and finds it over when it wakes.
"""

import itertools
import os
import signal
import statistics
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.lab import network
from cli.lab.network import Network
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import waited
from cli.lab.processes import Process
from sanderling import coordination
from sanderling.clock import SystemClock
from sanderling.coordination.leaders import leader_of
from sanderling.model.leaders import CLUSTER as SERVICE
from sanderling.model.leaders import Leader, leader_key
from sanderling.records.database import Records
from sanderling.settings import Coordination, General, Settings
from sanderling.settings import Leader as Bounds
from sanderling.settings import Records as RecordsSettings
from tests.parts import usage

NODES = ("a", "b", "c")
DUTIES = ("statistics", "notifications")
FULL = bool(os.environ.get("SANDERLING_FULL"))
WITHIN_S = 90.0
BOUNDS = Bounds()
CLOCK = SystemClock()


class Ran(NamedTuple):
    """A duty from when to when it may have acted, by its own log."""

    begin: float
    end: float
    term: int
    node: str


@dataclass
class Lab:
    """The candidates, their agents and a view of the store from beside the server."""

    network: Network
    server: ConsulAgent
    agents: dict[str, ConsulAgent]
    candidates: dict[str, Process]
    store: coordination.base.Coordination
    frozen_terms: set[int] = field(default_factory=set)

    def leader(self) -> Leader | None:
        return leader_of(self.store, SERVICE)

    def wait_for_leader(self, *, after_term: int = 0) -> Leader:
        """The leader of a later term, once its duties run."""
        found: list[Leader] = []

        def leads() -> bool:
            leader = self.leader()
            if leader is None or leader.term <= after_term or len(self.starts(leader.term)) < len(DUTIES):
                return False
            found.append(leader)
            return True

        waited(leads, within_s=WITHIN_S, what=f"somebody leads after term {after_term}")
        return found[0]

    def starts(self, term: int) -> list[dict[str, Any]]:
        said = [entry for process in self.candidates.values() for entry in process.log(event="duty started")]
        return [entry for entry in said if entry["term"] == term]

    def wait_until_all_stand(self) -> None:
        for agent in self.agents.values():
            agent.wait_until_usable()
        for process in self.candidates.values():
            process.resume()
            if not process.alive:
                process.start()

    def ran(self, duty: str) -> list[Ran]:
        """By time."""
        return sorted(one for node, process in self.candidates.items() for one in self._ran(node, process.log(), duty))

    def _ran(self, node: str, log: list[dict[str, Any]], duty: str) -> Iterator[Ran]:
        about = [entry for entry in log if entry.get("duty", duty) == duty and "term" in entry and "until" in entry]
        for begun in (entry for entry in about if entry["event"] == "duty started"):
            of_term = [entry for entry in about if entry["term"] == begun["term"]]
            proved = max(entry["until"] for entry in of_term) + BOUNDS.duty_stop_timeout_s
            stopped = [entry["at"] for entry in of_term if entry["event"] == "duty stopped"]
            ends = [proved, *stopped] if begun["term"] in self.frozen_terms else stopped or [proved]
            yield Ran(begun["at"], min(ends), begun["term"], node)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("leaders")
    records = Records(_records(folder), clock=CLOCK)
    records.migrate()
    records.close()
    with Network(NODES) as made:
        server = ConsulAgent(folder / "consul", address=made.parts_address, netns=made.parts, node_name="parts")
        agents = {node: _agent(folder, made, node, server) for node in NODES}
        store = coordination.connect(Settings(coordination=Coordination(url=server.url)), clock=CLOCK)
        candidates = {node: _candidate(folder, made, node, agents[node]) for node in NODES}
        built = Lab(made, server, agents, candidates, store)
        try:
            server.start()
            with ThreadPoolExecutor(len(NODES)) as pool:
                list(pool.map(ConsulAgent.start, agents.values()))
            built.wait_until_all_stand()
            yield built
        finally:
            store.close()
            for process in candidates.values():
                process.kill()
            for agent in (*agents.values(), server):
                agent.kill()


def _agent(folder: Path, made: Network, node: str, server: ConsulAgent) -> ConsulAgent:
    address = made.address(node, "back")
    return ConsulAgent(
        folder / f"agent-{node}", address=address, netns=made.netns(node), node_name=node, server=False, join=[server.lan]
    )


def _records(folder: Path) -> RecordsSettings:
    return RecordsSettings(url=f"sqlite:///{folder}/records.sqlite")


def _candidate(folder: Path, made: Network, node: str, agent: ConsulAgent) -> Process:
    general = General(node=node, runtime_dir=str(folder), log_level="DEBUG")
    settings = Settings(sanderling=general, coordination=Coordination(url=agent.url), records=_records(folder))
    return Process(node, "sanderling-leader", settings, folder, made.netns(node))


@pytest.fixture(autouse=True)
def _parts_noted(lab: Lab) -> None:
    usage.used("Consul", lab.server.version)
    usage.used("network namespaces", network.version())


def assert_never_two(lab: Lab) -> None:
    """Each duty ran on one node at a time, each time in a higher term, and in each term once."""
    for duty in DUTIES:
        ran = lab.ran(duty)
        assert ran, f"{duty} never ran"
        for before, after in itertools.pairwise(ran):
            assert before.end <= after.begin, f"{duty} twice: {before} and {after}"
            assert before.term < after.term, f"terms do not grow: {before} and {after}"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure where whoever runs the tests sees it."""

    def told(figure: str) -> None:
        with capsys.disabled():
            print(f"\n{figure}")  # noqa: T201

    return told


def lose_the_leader(lab: Lab, rounds: int, fault: Callable[[Leader], None], mend: Callable[[str], None]) -> str:
    """Lose the leader by the fault, round after round; how long it took until another's duties ran, in words."""
    took = []
    for _ in range(rounds):
        lab.wait_until_all_stand()
        lost = lab.wait_for_leader()
        at = CLOCK.monotonic()
        fault(lost)
        heir = lab.wait_for_leader(after_term=lost.term)
        took.append(min(entry["at"] for entry in lab.starts(heir.term)) - at)
        assert heir.node != lost.node
        mend(lost.node)
    assert_never_two(lab)
    return f"a new leader after p50 {statistics.median(took):.2f} s, max {max(took):.2f} s, n = {len(took)}"


def wait_until_stopped(process: Process, term: int) -> None:
    def stopped() -> bool:
        return len([entry for entry in process.log(event="duty stopped") if entry["term"] == term]) == len(DUTIES)

    waited(stopped, within_s=WITHIN_S, what=f"{process.name} stops its duties of term {term}")


@pytest.mark.timeout(600)
@pytest.mark.rows("LE-5")
def test_a_leader_that_is_killed_is_replaced_and_no_duty_runs_twice(lab: Lab, say: Callable[[str], None]) -> None:
    def kill(leader: Leader) -> None:
        lab.candidates[leader.node].kill()

    took = lose_the_leader(lab, 10 if FULL else 2, kill, lambda node: lab.candidates[node].start())
    say(f"killed: {took}")


@pytest.mark.timeout(600)
@pytest.mark.rows("W-LE-1", "W-LE-6")
def test_a_leader_that_is_paused_is_replaced_and_stops_when_it_wakes(lab: Lab, say: Callable[[str], None]) -> None:
    def pause(leader: Leader) -> None:
        lab.frozen_terms.add(leader.term)
        lab.candidates[leader.node].pause()

    def wake(node: str) -> None:
        lab.candidates[node].resume()
        wait_until_stopped(lab.candidates[node], max(lab.frozen_terms))

    took = lose_the_leader(lab, 10 if FULL else 2, pause, wake)
    say(f"paused: {took}")


@pytest.mark.timeout(600)
@pytest.mark.rows("LE-13", "W-LE-3")
def test_a_leader_that_is_cut_off_stops_its_duties_before_another_leads(lab: Lab, say: Callable[[str], None]) -> None:
    def cut(leader: Leader) -> None:
        lab.network.cut(leader.node)
        wait_until_stopped(lab.candidates[leader.node], leader.term)

    took = lose_the_leader(lab, 10 if FULL else 1, cut, lab.network.mend)
    say(f"cut off: {took}")


@pytest.mark.timeout(600)
def test_a_store_that_forgets_a_cut_off_leader_early_does_not_let_another_lead_beside_it(lab: Lab) -> None:
    def cut_and_forget(leader: Leader) -> None:
        entry = lab.store.get(leader_key(SERVICE))
        assert entry is not None
        lab.network.cut(leader.node)
        forget = f"{lab.server.url}/v1/session/destroy/{entry.consul_session}"
        with urllib.request.urlopen(urllib.request.Request(forget, method="PUT"), timeout=10):
            pass
        wait_until_stopped(lab.candidates[leader.node], leader.term)

    lose_the_leader(lab, 10 if FULL else 1, cut_and_forget, lab.network.mend)


@pytest.mark.rows("LE-17", "W-LE-9", "W-LE-11")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1"])
def test_a_leader_that_is_told_to_go_hands_over_without_anybody_waiting(lab: Lab, how: str, say: Callable[[str], None]) -> None:
    lab.wait_until_all_stand()
    last = lab.wait_for_leader()
    process = lab.candidates[last.node]
    at = CLOCK.monotonic()
    if how == "SIGTERM":
        process.terminate()
    else:
        assert process.daemon is not None
        process.daemon.signal(signal.SIGUSR1)
    heir = lab.wait_for_leader(after_term=last.term)
    began = min(entry["at"] for entry in lab.starts(heir.term))
    stopped = max(entry["at"] for entry in process.log(event="duty stopped") if entry["term"] == last.term)
    say(f"{how}: the duties stopped after {stopped - at:.3f} s, the next leader's began {began - stopped:.3f} s later")
    assert heir.node != last.node
    assert process.alive is (how == "SIGUSR1")
    assert_never_two(lab)
