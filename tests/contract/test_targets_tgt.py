"""What only tgtd and its guard can be asked: the wire, frozen processes, the store out of reach, and what refuses to run."""

import ctypes
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.lab.initiator import SECTOR, BlockHistory, Initiator, Writer
from cli.lab.parts.daemons import run, start_time, waited
from iscsi_worker.targets import tgt_process
from iscsi_worker.targets.base import TargetSpec
from iscsi_worker.targets.guard import STATE_ENV, GuardLibrary
from iscsi_worker.targets.record import Record, is_running
from iscsi_worker.targets.tgt import TgtTargets
from sanderling.clock import SystemClock
from sanderling.errors import SettingsRefused, TargetFailed
from sanderling.images.base import BackingStore
from sanderling.settings import Worker
from tests.contract.test_targets import LONG_S, NEW, OLD
from tests.contract.test_targets import tgt_file as tgt_file  # noqa: PLC0414  fixtures
from tests.contract.test_targets import tgt_rbd as tgt_rbd  # noqa: PLC0414
from tests.parts.exports import NAME, SentByIscsi, TgtBench, running

CLOCK = SystemClock()

PTRACE_ATTACH, PTRACE_DETACH, WALL = 16, 17, 0x40000000
FUTEX_CALL, GATE_AT = "202", 12  # x86-64; where the gate is in the guard's shared state
FIRST = b"first".ljust(SECTOR, b".")


@pytest.fixture(params=["tgt_file", "tgt_rbd"])
def bench(request: pytest.FixtureRequest) -> TgtBench:
    found: TgtBench = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def served(bench: TgtBench) -> tuple[TargetSpec, str]:
    return _served(bench, bench.spec())


@pytest.fixture
def other_node(bench: TgtBench, tmp_path: Path) -> Iterator[TgtBench]:
    other = bench.other_node(tmp_path / "other")
    yield other
    other.close()


def _served(bench: TgtBench, spec: TargetSpec, *, lease_s: float = LONG_S) -> tuple[TargetSpec, str]:
    address = bench.address()
    bench.targets.start(spec, epoch=(1, 1), revision=1, lease_s=lease_s)
    bench.targets.open_portal(spec.export, address)
    bench.targets.ungate(spec.export)
    return spec, address


def _initiator(spec: TargetSpec, address: str, *, name: str = NAME) -> Initiator:
    return Initiator(spec.iqn, f"{address}:3260", initiator_name=name)


def test_a_disk_has_one_identity_on_every_node_and_another_disk_has_another(bench: TgtBench, other_node: TgtBench) -> None:
    spec, address = _served(bench, bench.spec())
    _, sibling = _served(other_node, spec)
    other, elsewhere = _served(bench, bench.spec())
    with _initiator(spec, address) as here, _initiator(spec, sibling) as there, _initiator(other, elsewhere) as another:
        for page in (0x80, 0x83):
            assert here.inquiry(page) == there.inquiry(page)
            assert here.inquiry(page) != another.inquiry(page)
        assert spec.scsi_serial.encode() in here.inquiry(0x80)


def test_a_read_of_nothing_is_answered_and_the_export_lives_on(bench: TgtBench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    with _initiator(spec, address) as initiator:
        assert initiator.read(0, 0) == b""
        initiator.write(5, NEW)
        initiator.flush()
        assert initiator.read(5) == NEW
        assert initiator.logins == 1


def test_no_write_changes_the_image_after_the_gate_was_closed_and_drained(
    bench: TgtBench, served: tuple[TargetSpec, str]
) -> None:
    spec, address = served
    writers = [Writer(_initiator(spec, address, name=f"{NAME}-{at}"), writer=at, first_lba=at * 8, sectors=8) for at in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.wrote(50)
    for _ in range(5):
        bench.targets.gate(spec.export)
        assert bench.targets.drain(spec.export, timeout_s=5.0)
        drained = [bench.on_image(spec, lba) for lba in range(32)]
        assert not bench.targets.probe(spec.export, timeout_s=0.2)
        assert [bench.on_image(spec, lba) for lba in range(32)] == drained
        bench.targets.ungate(spec.export)
        for writer in writers:
            writer.wrote(10)
    for writer in writers:
        writer.stop()
        assert writer.history.check(lambda lba: bench.on_image(spec, lba)) == []


def test_a_process_that_is_frozen_past_its_lease_does_nothing_when_it_resumes(bench: TgtBench) -> None:
    spec, address = _served(bench, bench.spec(), lease_s=LONG_S)
    with _initiator(spec, address) as initiator:
        initiator.write(5, OLD)
    sent = _into_the_socket_of_a_frozen_process(bench, spec, address)
    bench.targets.renew(spec.export, lease_s=0.3)
    lapsed = CLOCK.monotonic() + 0.4
    bench.until(lambda: CLOCK.monotonic() > lapsed, "the lease lapses")
    with pytest.raises(TargetFailed, match="lapsed"):
        bench.targets.renew(spec.export, lease_s=LONG_S)
    bench.thaw(spec.export)
    bench.until(lambda: sent.lost or sent.answered, "the write is not answered but lost")
    assert sent.lost
    assert bench.on_image(spec, 5) == OLD


def test_an_owner_that_was_frozen_during_a_takeover_changes_nothing_when_it_resumes(
    bench: TgtBench, other_node: TgtBench
) -> None:
    """H1, H8 and H10 of the goals: the lease is long, so the fence alone must hold."""
    spec, address = _served(bench, bench.spec())
    sent = _into_the_socket_of_a_frozen_process(bench, spec, address)
    owner = running(bench, spec.export)
    assert owner is not None
    other_node.fence(owner.client)
    _, taken = _served(other_node, spec)
    with _initiator(spec, taken) as initiator:
        initiator.write(5, OLD)
        if owner.client.startswith("pid:"):
            assert running(bench, spec.export) is None, "the fence of a file has killed it"
        else:
            bench.thaw(spec.export)
        bench.until(lambda: sent.lost or sent.answered, "the write is not answered but lost")
        assert sent.lost
        assert initiator.read(5) == OLD
    assert bench.on_image(spec, 5) == OLD
    bench.until(lambda: running(bench, spec.export) is None, "the old owner is gone")


def _into_the_socket_of_a_frozen_process(bench: TgtBench, spec: TargetSpec, address: str) -> SentByIscsi:
    """A write of NEW to sector 5 that the process has received but not read."""
    sent = bench.prepare(spec, address, 5, NEW)
    bench.freeze(spec.export)
    sent.start()
    bench.until(lambda: any(unread for _, unread in _connected(address)), "the write is in its socket")
    assert (sent.answered, sent.lost) == (False, False)
    return sent


def test_a_frozen_process_fails_its_probe(bench: TgtBench, served: tuple[TargetSpec, str]) -> None:
    spec, _ = served
    assert bench.targets.probe(spec.export, timeout_s=5.0)
    bench.freeze(spec.export)
    assert not bench.targets.probe(spec.export, timeout_s=0.2)
    bench.thaw(spec.export)
    assert bench.targets.probe(spec.export, timeout_s=5.0)


def test_connections_tell_every_initiator_and_every_port(bench: TgtBench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    with _initiator(spec, address, name=f"{NAME}-a") as first, _initiator(spec, address, name=f"{NAME}-b") as second:
        first.login()
        second.login()
        seen = bench.targets.connections(spec.export)
        assert {one.initiator_iqn for one in seen} == {f"{NAME}-a", f"{NAME}-b"}
        assert {one.initiator_port for one in seen} == {port for port, _ in _connected(address)}
        assert {(one.initiator_address, one.portal_address) for one in seen} == {("127.0.0.1", address)}


def _connected(address: str) -> list[tuple[int, int]]:
    """Of every connection to the portal at this address: the initiator's port, and the bytes the target has not read yet."""
    local = f"{struct.unpack('<I', socket.inet_aton(address))[0]:08X}:{3260:04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if row[1] == local and row[3] == "01"]
    return [(int(row[2].split(":")[1], 16), int(row[4].split(":")[1], 16)) for row in mine]


def test_a_connection_of_a_stopped_export_is_reset(bench: TgtBench, served: tuple[TargetSpec, str]) -> None:
    spec, address = served
    with socket.create_connection((address, 3260), timeout=5) as idle:
        bench.targets.stop(spec.export)
        with pytest.raises(ConnectionResetError):
            idle.recv(1)


def test_what_cannot_be_opened_leaves_nothing_behind(tgt_file: TgtBench) -> None:
    spec = tgt_file.spec()
    missing = replace(spec, backing_store=BackingStore("file", spec.backing_store.location + "-missing"))
    with pytest.raises(TargetFailed) as refused:
        tgt_file.targets.start(missing, epoch=(1, 1), revision=1, lease_s=LONG_S)
    assert refused.value.context["export"] == str(spec.export)
    assert tgt_file.targets.actual() == ()
    assert list(tgt_file.run_folder.iterdir()) == []
    tgt_file.targets.start(spec, epoch=(1, 1), revision=1, lease_s=LONG_S)


def test_a_store_out_of_reach_fails_the_start_in_time(tgt_file: TgtBench, tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        conf = tmp_path / "ceph.conf"
        conf.write_text(
            f"[global]\nmon host = 127.0.0.1:{deaf.getsockname()[1]}\nauth client required = none\nkeyring = /dev/null\n"
        )
        settings = replace(tgt_file.settings, iscsi_worker=Worker(target_start_timeout_s=1.0))
        targets = TgtTargets(settings, clock=CLOCK)
        spec = replace(tgt_file.spec(), backing_store=BackingStore("rbd", "rbd/any", f"conf={conf};id=admin"))
        with pytest.raises(TargetFailed):
            targets.start(spec, epoch=(1, 1), revision=1, lease_s=LONG_S)
    assert list(tgt_file.run_folder.iterdir()) == []


def test_a_cache_in_the_sites_configuration_is_not_used(tgt_rbd: TgtBench, tmp_path: Path) -> None:
    """What a fence cannot reach must not exist: an acknowledged write is in the store, not in a cache."""
    spec = tgt_rbd.spec()
    conf = Path(tgt_rbd.settings.images.ceph_conf).read_text().replace("rbd cache = false", "")
    caching = tmp_path / "caching.conf"
    caching.write_text(
        conf + "\n[client]\nrbd cache = true\nrbd cache writethrough until flush = false\nrbd cache policy = writeback\n"
    )
    store = replace(spec.backing_store, options=f"conf={caching};id=admin")
    spec, address = _served(tgt_rbd, replace(spec, backing_store=store))
    with _initiator(spec, address) as initiator:
        initiator.flush()
        initiator.write(5, NEW)
    assert tgt_rbd.on_image(spec, 5) == NEW


def test_a_tgtd_that_the_guard_does_not_hold_is_not_served(tgt_file: TgtBench, tmp_path: Path) -> None:
    unguarded = tmp_path / "tgtd"
    unguarded.write_text('#!/bin/sh\nunset LD_PRELOAD\nexec /usr/sbin/tgtd "$@"\n')
    unguarded.chmod(0o755)
    targets = TgtTargets(replace(tgt_file.settings, iscsi_worker=Worker(tgtd=str(unguarded))), clock=CLOCK)
    with pytest.raises(TargetFailed, match="without its guard"):
        targets.start(tgt_file.spec(), epoch=(1, 1), revision=1, lease_s=LONG_S)
    assert targets.actual() == ()


def test_without_the_guard_library_the_worker_does_not_start(tgt_file: TgtBench, tmp_path: Path) -> None:
    settings = replace(tgt_file.settings, iscsi_worker=Worker(guard=str(tmp_path / "nowhere.so")))
    with pytest.raises(SettingsRefused, match=r"gcc .*tgt_guard\.c.*set \[iscsi_worker\] guard"):
        TgtTargets(settings, clock=CLOCK)


def test_another_process_that_was_given_the_pid_is_not_the_export(tgt_file: TgtBench) -> None:
    spec, _ = _served(tgt_file, tgt_file.spec())
    pid = tgt_file.pid(spec.export)
    with (tgt_file.run_folder / f"{spec.export.disk_id}.0" / "guard").open("r+b") as state:
        state.seek(56)
        before = state.read(8)
        state.seek(56)
        state.write(struct.pack("<Q", struct.unpack("<Q", before)[0] + 1))
        state.flush()
        assert tgt_file.targets.actual() == ()
        tgt_file.targets.stop(spec.export)
    assert start_time(pid) == str(struct.unpack("<Q", before)[0]), "a stranger was killed"
    tgt_file.images.fence(f"pid:{pid}:{struct.unpack('<Q', before)[0]}")


def test_a_process_counts_as_running_until_its_last_thread_is_gone() -> None:
    end_but_for_a_thread = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone\n"
    )
    with subprocess.Popen([sys.executable, "-c", end_but_for_a_thread]) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        waited(lambda: ") Z " in stat.read_text(), within_s=10, what="the process is a zombie with a thread")
        started = int(stat.read_text().rpartition(")")[2].split()[19])
        assert is_running(process.pid, started)
        tgt_process.kill(process.pid, started, within_s=10)
        assert not is_running(process.pid, started)


@pytest.mark.parametrize("wrong", ["missing", "another version", "claimed", "lapsed"])
def test_a_process_whose_guard_cannot_do_its_duty_ends_before_it_begins(wrong: str, tmp_path: Path) -> None:
    library, state = GuardLibrary(""), tmp_path / "guard"
    if wrong != "missing":
        library.create(state, lease_until_s=CLOCK.monotonic() + (0 if wrong == "lapsed" else LONG_S))
    if wrong == "another version":
        state.write_bytes(state.read_bytes()[:8] + b"\x02" + state.read_bytes()[9:])
    environment = {"LD_PRELOAD": str(library.path), STATE_ENV: str(state)}
    done = [subprocess.run(["/bin/true"], env=environment, check=False, timeout=10).returncode for _ in range(2)]
    assert done == {"claimed": [0, 70], "lapsed": [71, 70]}.get(wrong, [70, 70])


def test_the_probes_name_is_secret_and_lets_nobody_else_in(tgt_file: TgtBench) -> None:
    spec, address = _served(tgt_file, tgt_file.spec(allow_any=False))
    (folder,) = tgt_file.run_folder.iterdir()
    record = Record.read(folder)
    assert re.fullmatch(r"\S+:probe-[0-9a-f]{32}", record.probe_iqn)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "record.json").stat().st_mode) == 0o600
    assert record.probe_iqn not in (folder / "log").read_text()
    assert not tgt_file.lets_in(spec, address, record.probe_iqn[:-1])


def test_discovery_shows_a_disk_to_those_who_may_use_it_at_the_portal_they_asked(tgt_file: TgtBench) -> None:
    spec, address = _served(tgt_file, tgt_file.spec(initiators=(NAME,), allow_any=False))
    shown = run(["iscsi-ls", "-i", NAME, f"iscsi://{address}:3260"])
    assert re.findall(r"Portal:(\S+?),", shown) == [f"{address}:3260"]
    assert spec.iqn not in run(["iscsi-ls", "-i", "iqn.2026-11.x:stranger", f"iscsi://{address}:3260"])


def test_the_block_checker_finds_what_is_lost_and_what_is_back_from_the_dead() -> None:
    history = BlockHistory(writer=3)
    sectors = {}
    for number, lba in enumerate((1, 2, 1, 2), start=1):
        sectors[lba] = history.sending(lba, number)
        history.acknowledge(lba, number)
    assert history.check(sectors.__getitem__) == []
    unanswered = history.sending(1, 5)
    assert history.check(sectors.__getitem__) == []
    assert history.check({**sectors, 1: unanswered}.__getitem__) == []
    for lba, found, complaint in (
        (1, bytes(SECTOR), "lost"),
        (1, history.block(1, 1), "is back"),
        (1, sectors[2], "never written"),
        (2, history.block(2, 9), "is back"),
        (2, sectors[2][:-1] + b"\0", "never written"),
    ):
        (wrong,) = history.check({**sectors, lba: found}.__getitem__)
        assert complaint in wrong


def test_the_writer_runs_as_a_process_of_its_own(tgt_file: TgtBench, tmp_path: Path) -> None:
    spec, address = _served(tgt_file, tgt_file.spec())
    history = tmp_path / "history.json"
    command = [
        sys.executable,
        "-m",
        "cli.lab.initiator",
        "--target",
        spec.iqn,
        "--portal",
        f"{address}:3260",
        "--history",
        str(history),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        tgt_file.until(lambda: tgt_file.on_image(spec, 63) != bytes(SECTOR), "it has written the whole region")
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert BlockHistory.load(history).check(lambda lba: tgt_file.on_image(spec, lba)) == []


def ptrace(request: int, tid: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    assert library.ptrace(request, tid, None, None) == 0, os.strerror(ctypes.get_errno())


def threads_at_the_gate(pid: int) -> list[int]:
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith("/guard")]
    gates = {int(words[0].partition("-")[0], 16) + GATE_AT for words in maps}
    calls = {int(tid): Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split() for tid in os.listdir(f"/proc/{pid}/task")}
    return [tid for tid, call in calls.items() if call[0] == FUTEX_CALL and int(call[1], 16) in gates]


def test_a_write_that_waited_at_the_gate_does_not_land_behind_a_later_one(bench: TgtBench) -> None:
    """Its initiator lost patience, sent it again in another session, and then wrote something newer; a thread may be late."""
    spec, address = bench.spec(), bench.address()
    bench.targets.start(spec, epoch=(1, 1), revision=1, lease_s=LONG_S)
    pid = bench.pid(spec.export)
    bench.targets.open_portal(spec.export, address)
    bench.targets.ungate(spec.export)
    with Initiator(spec.iqn, f"{address}:3260", initiator_name=NAME, timeout_s=1.0) as initiator:
        initiator.write(5, FIRST)
        bench.targets.gate(spec.export)
        with pytest.raises(TargetFailed):
            initiator.write(5, OLD)
    (tid,) = threads_at_the_gate(pid)
    ptrace(PTRACE_ATTACH, tid)  # this thread alone: one for which the scheduler has no time yet
    os.waitpid(tid, WALL)
    bench.targets.ungate(spec.export)
    acknowledged = threading.Event()

    def again() -> None:
        with Initiator(spec.iqn, f"{address}:3260", initiator_name=NAME, timeout_s=30.0, attempt_s=30.0) as patient:
            patient.write(5, OLD)
            patient.write(5, NEW)
        acknowledged.set()

    thread = threading.Thread(target=again)
    thread.start()
    acknowledged.wait(2.0)  # as long as it takes where nothing orders them
    ptrace(PTRACE_DETACH, tid)
    thread.join(30)
    assert acknowledged.is_set()
    bench.targets.gate(spec.export)
    assert bench.targets.drain(spec.export, timeout_s=10)
    assert bench.on_image(spec, 5) == NEW
