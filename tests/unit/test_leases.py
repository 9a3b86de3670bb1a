"""How long exports may go on: by proof of the session, by probes, and no longer than either earns."""

from collections.abc import Iterator

import pytest

from iscsi_worker.addresses.memory import Memory
from iscsi_worker.leases import Lease, Leases
from iscsi_worker.service import Seams
from iscsi_worker.targets.base import TargetSpec
from iscsi_worker.targets.memory import MemoryStore, MemoryTargets
from sanderling.clock import ManualClock
from sanderling.errors import Fenced, Unavailable
from sanderling.images.base import BackingStore
from sanderling.model.disks import Path
from sanderling.model.exports import ExportId
from sanderling.settings import Worker

E = ExportId("d1", 0)
PATH = Path(index=1, address="10.0.0.5", prefix_len=24, interface="eth0", subnet="s")
SETTINGS = Worker()
SPEC = TargetSpec(E, "iqn.2026-11.io.sanderling:one", 2, "0", BackingStore("memory", "i"), (), allow_any=True, paths=(PATH,))


class Images:
    """A store that answers or does not."""

    def __init__(self) -> None:
        self.problem: Exception | None = None

    def ping(self) -> None:
        if self.problem is not None:
            raise self.problem


class Bench:
    def __init__(self) -> None:
        self.clock, self.store, self.images = ManualClock(), MemoryStore(), Images()
        self.targets = MemoryTargets(clock=self.clock, store=self.store)
        self.addresses = Memory(self.clock)
        self.proven_until = 0.0
        seams = Seams(None, self.images, self.targets, self.addresses)  # type: ignore[arg-type]
        self.leases = Leases(SETTINGS, seams, proven_until=lambda: self.proven_until, clock=self.clock)

    def serve(self) -> None:
        running = self.targets.start(SPEC, epoch=(1, 1), revision=1, lease_s=SETTINGS.lease_s)
        self.targets.ungate(E)
        self.leases.cover([Lease(E, running.client, (PATH,), owned=True, gate_open=True)])

    def turn(self, *, proven: bool, seconds: float = SETTINGS.renew_interval_s) -> None:
        """One interval: a proof if the store answers, a renewal, and the probes it began."""
        if proven:
            self.proven_until = self.clock.monotonic() + SETTINGS.lease_s
        self.leases.extend()
        for probe in list(self.leases._probes.values()):
            probe.result(10)
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
    bench.images.problem = Unavailable("away", dependency="ceph")
    for _ in range(60):
        bench.turn(proven=True, seconds=0.1)
    assert bench.alive
    assert bench.leases.sick == frozenset()


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
    bench.leases.cover([Lease(E, bench.targets.actual()[0].client, (PATH,), owned=False, gate_open=True)])
    bench.store.stuck = True
    for _ in range(6):
        bench.turn(proven=True)
    assert not bench.alive


@pytest.mark.parametrize("problem", [None, Fenced("this very client")])
def test_an_export_that_does_not_answer_is_sick_only_when_the_store_does(bench: Bench, problem: Exception | None) -> None:
    bench.serve()
    bench.store.stuck = True
    bench.images.problem = problem
    for _ in range(SETTINGS.probe_failures_max):
        bench.turn(proven=True, seconds=SETTINGS.probe_interval_s - SETTINGS.probe_timeout_s - 1)
        bench.turn(proven=True, seconds=1)
    assert (bench.leases.sick == {E}) == (problem is None)


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
