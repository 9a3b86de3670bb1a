"""What targets promise. Runs on every backend; this file is the definition.

What only tgtd can be asked (identity on the wire, a frozen process, Ceph out of reach) is in test_targets_tgt.py.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cli.lab.initiator import SECTOR
from iscsi_worker.targets.base import Credentials, TargetSpec
from sanderling import images
from sanderling.clock import SystemClock
from sanderling.errors import TargetFailed
from sanderling.model.exports import UNKNOWN_CLIENT, ExportId
from sanderling.settings import Coordination, Settings
from sanderling.settings import Images as ImageSettings
from tests.parts.exports import NAME, Bench, FlightBench, MemoryBench, TgtBench, running

LONG_S = 60.0
OLD, NEW = b"o" * SECTOR, b"n" * SECTOR


@pytest.fixture
def memory() -> MemoryBench:
    return MemoryBench()


@pytest.fixture
def flying() -> FlightBench:
    return FlightBench()


@pytest.fixture
def tgt_file(tmp_path: Path, tgt: str, libiscsi: str) -> Iterator[TgtBench]:
    (tmp_path / "images").mkdir()
    settings = Settings(
        coordination=Coordination(backend="embedded"), images=ImageSettings(backend="files", folder=str(tmp_path / "images"))
    )
    bench = TgtBench(tmp_path, settings, images.connect(settings, clock=SystemClock()))
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def tgt_rbd(tmp_path: Path, tgt: str, libiscsi: str, ceph) -> Iterator[TgtBench]:  # type: ignore[no-untyped-def]
    settings = Settings(images=ImageSettings(ceph_conf=ceph.conf, ceph_user="admin", pool=ceph.pool))
    store = images.connect(settings, clock=SystemClock())
    bench = TgtBench(tmp_path, settings, store)
    try:
        yield bench
    finally:
        bench.close()
        store.close()


@pytest.fixture(params=["memory", "flying", "tgt_file", "tgt_rbd"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A node; a real part that is missing fails."""
    found: Bench = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def served(bench: Bench) -> tuple[TargetSpec, str]:
    """An export with a portal, its gate still closed."""
    return _served(bench, bench.spec())


def _served(bench: Bench, spec: TargetSpec, *, lease_s: float = LONG_S) -> tuple[TargetSpec, str]:
    bench.targets.start(spec, epoch=(1, 2), revision=3, lease_s=lease_s)
    address = bench.address()
    bench.targets.open_portal(spec.export, address)
    return spec, address


def _write(bench: Bench, spec: TargetSpec, address: str, lba: int, data: bytes) -> None:
    sent = bench.send(spec, address, lba, data)
    bench.until(lambda: sent.answered or sent.lost, "a write is answered")
    assert sent.answered


def test_a_started_export_says_who_it_is_and_lets_nothing_through(bench: Bench) -> None:
    spec = bench.spec()
    started = bench.targets.start(spec, epoch=(4, 7), revision=9, lease_s=LONG_S)
    assert (started.export, started.epoch, started.revision) == (spec.export, (4, 7), 9)
    assert started.client not in {"", UNKNOWN_CLIENT}
    assert not started.gate_open
    assert started.portals == ()
    assert 0 < started.lease_left_s <= LONG_S
    seen = running(bench, spec.export)
    assert seen is not None
    assert replace(seen, lease_left_s=0) == replace(started, lease_left_s=0)


def test_an_export_that_runs_is_not_started_again(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    before = running(bench, spec.export)
    assert before is not None
    with pytest.raises(TargetFailed):
        bench.targets.start(spec, epoch=(9, 9), revision=9, lease_s=LONG_S)
    after = running(bench, spec.export)
    assert after is not None
    assert (after.client, after.epoch) == (before.client, before.epoch)


def test_a_new_process_is_a_new_client(bench: Bench) -> None:
    spec = bench.spec()
    first = bench.targets.start(spec, epoch=(1, 1), revision=1, lease_s=LONG_S).client
    bench.targets.stop(spec.export)
    assert bench.targets.start(spec, epoch=(1, 2), revision=1, lease_s=LONG_S).client != first


def test_without_a_portal_nobody_gets_in_and_opening_one_twice_is_no_error(bench: Bench) -> None:
    spec, address = bench.spec(), bench.address()
    bench.targets.start(spec, epoch=(1, 1), revision=1, lease_s=LONG_S)
    assert not bench.lets_in(spec, address, NAME)
    bench.targets.open_portal(spec.export, address)
    bench.targets.open_portal(spec.export, address)
    assert bench.lets_in(spec, address, NAME)
    seen = running(bench, spec.export)
    assert seen is not None
    assert seen.portals == (address,)


def test_a_portal_on_an_address_of_another_node_is_refused(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    with pytest.raises(TargetFailed):
        bench.targets.open_portal(spec.export, "198.51.100.9")
    seen = running(bench, spec.export)
    assert seen is not None
    assert seen.portals == (address,)


def test_a_closed_gate_holds_a_write_until_it_is_opened(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    held = bench.send(spec, address, 5, NEW)
    assert not bench.targets.probe(spec.export, timeout_s=0.3)
    assert (held.answered, held.lost) == (False, False)
    assert bench.on_image(spec, 5) == bytes(SECTOR)
    bench.targets.ungate(spec.export)
    bench.until(lambda: held.answered, "the held write runs")
    assert bench.on_image(spec, 5) == NEW


def test_a_gate_can_be_closed_again(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    bench.targets.ungate(spec.export)
    _write(bench, spec, address, 5, OLD)
    bench.targets.gate(spec.export)
    held = bench.send(spec, address, 5, NEW)
    assert bench.targets.drain(spec.export, timeout_s=1.0)
    assert not bench.targets.probe(spec.export, timeout_s=0.3)
    assert not held.answered
    assert bench.on_image(spec, 5) == OLD
    bench.targets.ungate(spec.export)
    bench.until(lambda: held.answered, "the held write runs")


@pytest.mark.parametrize("bench", ["memory", "tgt_rbd"], indirect=True)  # a file's operations cannot be made to wait
def test_draining_waits_for_operations_that_the_image_has_not_answered(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    bench.targets.ungate(spec.export)
    with bench.stuck_image(spec, address) as under_way:
        bench.targets.gate(spec.export)
        assert not bench.targets.drain(spec.export, timeout_s=0.2)
        assert not under_way.answered
    assert bench.targets.drain(spec.export, timeout_s=20.0)
    bench.until(lambda: under_way.answered, "what was under way is answered")
    assert not bench.targets.probe(spec.export, timeout_s=0.2)


def test_a_probe_tells_whether_reads_are_answered(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    assert not bench.targets.probe(spec.export, timeout_s=0.2)
    bench.targets.ungate(spec.export)
    assert bench.targets.probe(spec.export, timeout_s=5.0)
    assert not bench.targets.probe(ExportId("nobody", 0), timeout_s=5.0)


@pytest.mark.rows("IS-14", "W-IS-2")
def test_an_export_whose_lease_lapses_is_gone_though_it_was_idle(bench: Bench) -> None:
    spec, address = _served(bench, bench.spec(), lease_s=1.5)
    bench.targets.ungate(spec.export)
    bench.until(lambda: running(bench, spec.export) is None, "the export is gone")
    assert not bench.lets_in(spec, address, NAME)
    with pytest.raises(TargetFailed):
        bench.targets.renew(spec.export, lease_s=LONG_S)


def test_a_write_that_waits_when_the_lease_lapses_is_never_answered_and_never_made(bench: Bench) -> None:
    spec, address = _served(bench, bench.spec(), lease_s=1.5)
    held = bench.send(spec, address, 5, NEW)
    bench.until(lambda: held.lost or held.answered, "the connection goes with the process")
    assert held.lost
    assert running(bench, spec.export) is None
    assert bench.on_image(spec, 5) == bytes(SECTOR)


def test_a_lease_that_is_renewed_outlives_its_first_deadline(bench: Bench) -> None:
    spec, address = _served(bench, bench.spec(), lease_s=1.5)
    bench.targets.ungate(spec.export)
    first = bench.clock.monotonic() + 1.5
    bench.targets.renew(spec.export, lease_s=LONG_S)
    bench.until(lambda: bench.clock.monotonic() > first + 0.3, "the first deadline passes")
    _write(bench, spec, address, 5, NEW)
    seen = running(bench, spec.export)
    assert seen is not None
    assert seen.lease_left_s > 30


def test_a_lease_can_be_cut_short(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    bench.targets.renew(spec.export, lease_s=0.2)
    bench.until(lambda: running(bench, spec.export) is None, "the export is gone")


def test_what_is_fenced_answers_nothing_more_and_exits(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    bench.targets.ungate(spec.export)
    _write(bench, spec, address, 5, OLD)
    bench.targets.gate(spec.export)
    held = bench.send(spec, address, 5, NEW)
    assert not bench.targets.probe(spec.export, timeout_s=0.2)
    seen = running(bench, spec.export)
    assert seen is not None
    bench.fence(seen.client)
    with contextlib.suppress(TargetFailed):  # a fence that kills leaves nothing to open
        bench.targets.ungate(spec.export)
    bench.until(lambda: held.lost or held.answered, "the write is not answered but lost")
    assert held.lost
    bench.until(lambda: running(bench, spec.export) is None, "the export is gone")
    assert bench.on_image(spec, 5) == OLD


def test_a_probe_of_what_is_fenced_fails_and_ends_it(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    bench.targets.ungate(spec.export)
    seen = running(bench, spec.export)
    assert seen is not None
    bench.fence(seen.client)
    assert not bench.targets.probe(spec.export, timeout_s=5.0)
    bench.until(lambda: running(bench, spec.export) is None, "the export is gone")


@pytest.mark.rows("IS-3", "W-IS-1")
def test_an_export_outlives_its_worker_and_the_next_one_adopts_it(bench: Bench) -> None:
    spec, address = bench.spec(), bench.address()
    bench.start_in_a_worker_that_dies(spec, epoch=(2, 5), revision=8, lease_s=LONG_S)
    adopted = running(bench, spec.export)
    assert adopted is not None
    assert (adopted.epoch, adopted.revision, adopted.gate_open) == ((2, 5), 8, False)
    bench.targets.open_portal(spec.export, address)
    bench.targets.ungate(spec.export)
    bench.targets.renew(spec.export, lease_s=LONG_S)
    _write(bench, spec, address, 5, NEW)
    bench.targets.gate(spec.export)
    assert bench.targets.drain(spec.export, timeout_s=1.0)
    bench.targets.stop(spec.export)
    assert bench.targets.actual() == ()


def test_only_initiators_that_are_named_get_in(bench: Bench) -> None:
    spec, address = _served(bench, bench.spec(initiators=("iqn.2026-11.x:one", "iqn.2026-11.x:two"), allow_any=False))
    assert bench.lets_in(spec, address, "iqn.2026-11.x:one")
    assert bench.lets_in(spec, address, "iqn.2026-11.x:two")
    assert not bench.lets_in(spec, address, "iqn.2026-11.x:three")


def test_where_chap_is_asked_for_only_who_proves_the_secret_gets_in_and_the_worker_still_does(bench: Bench) -> None:
    spec = replace(bench.spec(initiators=(NAME,), allow_any=False), chap=Credentials("use=r", "s3cret!,=secret"))
    _, address = _served(bench, spec)
    bench.targets.ungate(spec.export)
    assert bench.lets_in(spec, address, NAME, login=("use=r", "s3cret!,=secret"))
    for wrong in (None, ("use=r", "s3cret!,=secreT"), ("other", "s3cret!,=secret")):
        assert not bench.lets_in(spec, address, NAME, login=wrong), wrong
    assert not bench.lets_in(spec, address, f"{NAME}-2", login=("use=r", "s3cret!,=secret"))
    assert bench.targets.probe(spec.export, timeout_s=5)


def test_with_mutual_chap_the_target_proves_its_own_secret(bench: Bench) -> None:
    chap = Credentials("one", "secret-of-one", "target", "secret-of-target")
    spec, address = _served(bench, replace(bench.spec(), chap=chap))
    login = ("one", "secret-of-one")
    assert bench.lets_in(spec, address, NAME, login=login, target_login=("target", "secret-of-target"))
    assert not bench.lets_in(spec, address, NAME, login=login, target_login=("target", "another-secret"))
    bench.targets.ungate(spec.export)
    assert bench.targets.probe(spec.export, timeout_s=5.0)


def test_a_disk_that_names_nobody_lets_nobody_in_but_the_probe(bench: Bench) -> None:
    spec, address = _served(bench, bench.spec(allow_any=False))
    assert not bench.lets_in(spec, address, NAME)
    bench.targets.ungate(spec.export)
    assert bench.targets.probe(spec.export, timeout_s=5.0)


def test_connections_name_initiator_and_portal(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    assert bench.targets.connections(spec.export) == ()
    bench.send(spec, address, 5, NEW)
    (seen,) = bench.targets.connections(spec.export)
    assert (seen.initiator_iqn, seen.portal_address) == (NAME, address)
    assert seen.initiator_port > 0


def test_who_is_connected_to_any_portal_is_known_without_asking_a_process(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    other, elsewhere = _served(bench, bench.spec())
    assert {address, elsewhere}.isdisjoint(bench.targets.connected())
    bench.send(spec, address, 5, NEW)
    bench.send(other, elsewhere, 5, NEW)
    bench.send(other, elsewhere, 6, NEW)
    connected = bench.targets.connected()
    for each, at, count in ((spec, address, 1), (other, elsewhere, 2)):
        told = {(one.initiator_address, one.initiator_port) for one in bench.targets.connections(each.export)}
        assert set(connected[at]) == told
        assert len(told) == count
    bench.targets.stop(other.export)
    bench.until(lambda: elsewhere not in bench.targets.connected(), "the connections are gone")
    assert len(bench.targets.connected()[address]) == 1


def test_stopping_drops_what_is_under_way_and_what_is_not_there_is_no_error(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    held = bench.send(spec, address, 5, NEW)
    bench.targets.stop(spec.export)
    assert bench.targets.actual() == ()
    bench.until(lambda: held.lost, "the connection is gone")
    assert not bench.lets_in(spec, address, NAME)
    assert bench.on_image(spec, 5) == bytes(SECTOR)
    bench.targets.stop(spec.export)
    bench.targets.stop(ExportId("nobody", 0))


def test_a_process_that_was_killed_is_seen_as_gone(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    bench.kill(spec.export)
    bench.until(lambda: running(bench, spec.export) is None, "it is seen as gone")
    for command in (bench.targets.gate, bench.targets.ungate, bench.targets.connections):
        with pytest.raises(TargetFailed):
            command(spec.export)
    with pytest.raises(TargetFailed):
        bench.targets.drain(spec.export, timeout_s=1.0)
    bench.targets.stop(spec.export)
    bench.targets.start(spec, epoch=(1, 3), revision=3, lease_s=LONG_S)


def test_exports_of_one_node_do_not_share_their_fate(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    other, address = _served(bench, bench.spec())
    bench.targets.ungate(other.export)
    bench.kill(spec.export)
    bench.until(lambda: running(bench, spec.export) is None, "one is gone")
    _write(bench, other, address, 5, NEW)
    assert [one.export for one in bench.targets.actual()] == [other.export]


def test_the_end_of_a_process_is_waited_for_however_it_comes(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    assert not bench.targets.wait_for_end(timeout_s=0.05)
    with ThreadPoolExecutor(1) as waiter:
        end = waiter.submit(bench.targets.wait_for_end, timeout_s=30.0)
        bench.kill(spec.export)
        assert end.result(10)
    assert not bench.targets.wait_for_end(timeout_s=0.05), "each end counts once"


def test_a_process_that_ended_between_two_waits_is_not_missed(bench: Bench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    assert not bench.targets.wait_for_end(timeout_s=0.05)
    bench.kill(spec.export)
    bench.until(lambda: running(bench, spec.export) is None, "it is gone")
    assert bench.targets.wait_for_end(timeout_s=0.05)
