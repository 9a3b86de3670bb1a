"""How long exports may go on: by proof of the session, by probes, and no longer than either earns."""

import threading
from collections.abc import Collection, Iterator, Mapping

import pytest

from iscsi_worker.addresses.memory import Memory
from iscsi_worker.leases import Lease, Leases
from iscsi_worker.service import Seams
from iscsi_worker.targets.base import TargetSpec
from iscsi_worker.targets.memory import MemoryStore, MemoryTargets
from sanderling.clock import ManualClock
from sanderling.errors import TargetFailed
from sanderling.images.base import BackingStore
from sanderling.model.disks import Path
from sanderling.model.exports import Connection, ExportId
from sanderling.settings import Worker

E = ExportId("d1", 0)
PATH = Path(index=1, address="10.0.0.5", prefix_len=24, interface="eth0", subnet="s")
SETTINGS = Worker()
SPEC = TargetSpec(E, "iqn.2026-11.io.sanderling:one", 2, "0", BackingStore("memory", "i"), (), allow_any=True, paths=(PATH,))


class Asked(MemoryTargets):
    """Counts how often a process is asked for its connections. `strangers` are connected and never log in."""

    strangers: set[tuple[str, int]]
    kernel_is_silent = False
    asked = 0

    def connections(self, export: ExportId) -> tuple[Connection, ...]:
        self.asked += 1
        return super().connections(export)

    def connected(self) -> Mapping[str, Collection[tuple[str, int]]]:
        if self.kernel_is_silent:
            raise TargetFailed("the kernel does not say")
        return {address: {*others, *self.strangers} for address, others in {PATH.address: (), **super().connected()}.items()}


SESSION = "session"


class Bench:
    def __init__(self) -> None:
        self.clock, self.store, self.store_answers = ManualClock(), MemoryStore(), True
        self.targets = Asked(clock=self.clock, store=self.store)
        self.targets.strangers = set()
        self.addresses = Memory(self.clock)
        self.proven_until = 0.0
        seams = Seams(None, None, self.targets, self.addresses)  # type: ignore[arg-type]
        self.changes: list[float] = []
        self.answers: list[float] = []
        self.leases = Leases(
            SETTINGS,
            seams,
            proven_until=lambda session: self.proven_until if session == SESSION else 0.0,
            on_change=lambda: self.changes.append(self.clock.monotonic()),
            on_answer=lambda: self.answers.append(self.clock.monotonic()),
            store_answers=lambda: self.store_answers,
            clock=self.clock,
        )

    def serve(self) -> None:
        running = self.targets.start(SPEC, epoch=(1, 1), revision=1, lease_s=SETTINGS.lease_s)
        self.targets.ungate(E)
        self.leases.cover([Lease(E, running.client, (PATH,), SESSION, gate_open=True)])

    def turn(self, *, proven: bool, seconds: float = SETTINGS.renew_interval_s) -> None:
        """One interval: a proof if the store answers, a renewal, and the probes it began."""
        if proven:
            self.proven_until = self.clock.monotonic() + SETTINGS.lease_s
        self.leases.extend()
        for probe in list(self.leases._probes.values()):
            probe.result(10)
        barrier = threading.Barrier(SETTINGS.lanes + 1)
        for _ in range(SETTINGS.lanes):  # whatever else was begun has ended when every thread has come here
            self.leases._pool.submit(barrier.wait, 10)
        barrier.wait(10)
        self.clock.advance(seconds)

    @property
    def alive(self) -> bool:
        return bool(self.targets.actual())


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.leases.stop()


@pytest.mark.parametrize("turns_before", range(12))
def test_an_outage_of_coordination_costs_no_export_whenever_it_begins(bench: Bench, turns_before: int) -> None:
    bench.serve()
    for _ in range(turns_before):
        bench.turn(proven=True)
    for _ in range(60):
        bench.turn(proven=False)
        assert bench.alive
    assert PATH.address in bench.addresses.present()


def test_a_proof_that_ages_does_not_take_back_what_a_probe_has_earned(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    for stuck in (False, False, False, True, False):
        bench.store.stuck = stuck
        bench.turn(proven=False)
    assert bench.alive


def test_an_outage_of_the_image_store_costs_no_export_while_the_session_is_proven(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    bench.store.stuck = True
    bench.store_answers = False
    for _ in range(60):
        bench.turn(proven=True, seconds=0.1)
    assert bench.alive
    assert bench.leases.sick == frozenset()


def test_a_probe_that_succeeds_tells_that_the_image_store_answers_here(bench: Bench) -> None:
    bench.serve()
    bench.store.stuck = True
    bench.turn(proven=False)
    assert not bench.answers
    bench.store.stuck = False
    bench.turn(proven=False)
    assert len(bench.answers) == 1


def test_what_has_just_proved_that_it_answers_is_probed_an_interval_later(bench: Bench) -> None:
    bench.serve()
    for _ in range(int(SETTINGS.probe_interval_s / SETTINGS.renew_interval_s)):
        bench.turn(proven=True)
        assert not bench.answers
    bench.turn(proven=True)
    assert len(bench.answers) == 1


def test_an_address_is_not_kept_for_longer_than_the_export_may_serve(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    bench.store.stuck = True
    for _ in range(3):
        bench.turn(proven=False)
    bench.clock.advance(SETTINGS.lease_s - 4 * SETTINGS.renew_interval_s + 1.0)
    assert PATH.address not in bench.addresses.present()


@pytest.mark.rows("IS-14", "W-IS-2")
def test_with_neither_proof_nor_probe_the_export_ends_within_a_lease(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    bench.store.stuck = True
    for _ in range(6):
        bench.turn(proven=False)
    assert not bench.alive


def test_a_fenced_export_ends_at_its_next_probe(bench: Bench) -> None:
    bench.serve()
    bench.store.fenced.add(bench.targets.actual()[0].client)
    bench.turn(proven=False)
    assert not bench.alive


def test_proof_of_a_session_that_does_not_hold_the_lock_lends_nothing(bench: Bench) -> None:
    bench.serve()
    bench.leases.cover([Lease(E, bench.targets.actual()[0].client, (PATH,), None, gate_open=True)])
    bench.store.stuck = True
    for _ in range(6):
        bench.turn(proven=True)
    assert not bench.alive


@pytest.mark.parametrize("answers", [True, False])
def test_an_export_that_does_not_answer_is_sick_only_when_the_store_does(bench: Bench, answers: bool) -> None:
    bench.serve()
    bench.store.stuck = True
    bench.store_answers = answers
    for _ in range(SETTINGS.probe_failures_max):
        bench.turn(proven=True, seconds=SETTINGS.probe_interval_s - SETTINGS.probe_timeout_s - 1)
        bench.turn(proven=True, seconds=1)
    assert (bench.leases.sick == {E}) == answers


def test_a_probe_that_failed_is_made_again_soon(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True, seconds=SETTINGS.probe_interval_s)
    bench.store.stuck = True
    bench.turn(proven=True, seconds=SETTINGS.probe_interval_s)
    for _ in range(SETTINGS.probe_failures_max - 1):
        assert bench.leases.sick == frozenset()
        bench.turn(proven=True, seconds=SETTINGS.renew_interval_s)
    assert bench.leases.sick == {E}


def test_an_address_that_was_taken_off_meanwhile_does_not_come_back(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    add = bench.addresses.add

    def given_up_meanwhile(address: str, *, prefix_len: int, interface: str, lifetime_s: int) -> None:
        bench.targets.stop(E)
        bench.addresses.remove(address)
        add(address, prefix_len=prefix_len, interface=interface, lifetime_s=lifetime_s)

    bench.addresses.add = given_up_meanwhile  # type: ignore[method-assign]
    bench.turn(proven=True)
    assert PATH.address not in bench.addresses.lent()


def initiators(bench: Bench) -> set[str]:
    return {one.initiator_iqn for one in bench.leases.connections.get(E, ())}


def portal(bench: Bench) -> str:
    bench.targets.open_portal(E, PATH.address)
    return PATH.address


def test_who_has_just_logged_in_is_known_at_the_next_renewal_although_no_probe_is_due(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    assert initiators(bench) == set()
    bench.targets.login(portal(bench), "iqn.x:young")
    bench.turn(proven=True)
    assert initiators(bench) == {"iqn.x:young"}
    assert len(bench.changes) == 1, "the loop is told, so that it is published"
    bench.targets.login(PATH.address, "iqn.x:younger")
    bench.turn(proven=True)
    assert initiators(bench) == {"iqn.x:young", "iqn.x:younger"}


def test_while_nobody_new_connects_no_process_is_asked_between_probes(bench: Bench) -> None:
    bench.serve()
    bench.targets.login(portal(bench), "iqn.x:old")
    bench.turn(proven=True)
    asked, changes = bench.targets.asked, len(bench.changes)
    for _ in range(int(SETTINGS.probe_interval_s / SETTINGS.renew_interval_s) - 1):
        bench.turn(proven=True)
    assert (bench.targets.asked, len(bench.changes)) == (asked, changes)
    bench.turn(proven=True)
    assert bench.targets.asked == asked + 1, "the probe asks"
    assert len(bench.changes) == changes


def test_a_connection_that_never_logs_in_is_asked_for_a_few_times_and_a_new_one_beside_it_at_once(bench: Bench) -> None:
    bench.serve()
    portal(bench)
    bench.turn(proven=True, seconds=0.1)
    asked = bench.targets.asked
    bench.targets.strangers = {("192.0.2.9", 40000)}
    for _ in range(20):
        bench.turn(proven=True, seconds=0.1)
    assert bench.targets.asked == asked + 3
    bench.targets.login(PATH.address, "iqn.x:young")
    bench.turn(proven=True, seconds=0.1)
    assert initiators(bench) == {"iqn.x:young"}


def test_who_connects_to_what_stands_behind_a_closed_gate_is_not_asked_for(bench: Bench) -> None:
    bench.serve()
    bench.turn(proven=True)
    asked = bench.targets.asked
    running = bench.targets.actual()[0]
    bench.leases.cover([Lease(E, running.client, (PATH,), SESSION, gate_open=False)])
    bench.targets.login(portal(bench), "iqn.x:early")
    bench.turn(proven=True)
    assert bench.targets.asked == asked


def test_a_kernel_that_does_not_list_connections_leaves_it_to_the_probes(bench: Bench) -> None:
    bench.serve()
    bench.targets.kernel_is_silent = True
    bench.turn(proven=True)
    bench.targets.login(portal(bench), "iqn.x:young")
    for _ in range(int(SETTINGS.probe_interval_s / SETTINGS.renew_interval_s)):
        bench.turn(proven=True)
        assert bench.alive
    assert initiators(bench) == {"iqn.x:young"}
