"""One tgtd process: started with the guard preloaded and told what to present, and killed as that very process.

Each tgtd has a base portal on a free port of 127.0.0.1, because one that is given none listens on every address. The worker's
probe goes through it, under a random name that the access list allows beside the disk's initiators; the folder that holds the
name is readable by its owner alone, and the name never leaves the loopback interface.
"""

import os
import select
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Final

from iscsi_worker.targets.base import TargetSpec
from iscsi_worker.targets.guard import FILE_ENV, STATE_ENV, Guard, GuardLibrary
from iscsi_worker.targets.probe import IscsiSession
from iscsi_worker.targets.record import GUARD_STATE, LOG, Record, is_running, last_words
from iscsi_worker.targets.tgt_admin import SOCKET_NAME, TgtAdmin
from sanderling.clock import Clock
from sanderling.errors import TargetFailed
from sanderling.model.disks import LUN, PROBE_USER
from sanderling.settings import Worker

_BACKING_STORE_TYPES: Final = {"file": "rdwr", "rbd": "rbd"}
_POLL_S: Final = 0.002
_HELD_S: Final = 0.005  # a read that nobody holds is answered in a tenth of this


class NeverListened(TargetFailed):
    """It ended before it could be told anything, so trying again with another base port is safe."""


def start(
    folder: Path, record: Record, spec: TargetSpec, *, settings: Worker, library: GuardLibrary, clock: Clock, deadline: float
) -> "subprocess.Popen[bytes]":
    """A tgtd that presents `spec` behind the guard state and record already in `folder`. On failure it is dead."""
    process = _spawn(folder, record, spec, settings=settings, library=library)
    try:
        _wait_until_it_listens(folder, process, settings=settings, clock=clock, deadline=deadline)
        _present(TgtAdmin(folder, timeout_s=max(0.01, deadline - clock.monotonic())), record, spec)
        with library.open(folder / GUARD_STATE) as guard:
            if guard.pid != process.pid or (record.kind == "rbd" and not guard.connected):
                raise TargetFailed("tgtd runs without its guard")
            _prove_that_it_is_held(record, guard, clock=clock, deadline=deadline)
    except BaseException:
        process.kill()
        process.wait(settings.target_start_timeout_s)
        raise
    return process


def kill(pid: int, start_time: int, *, within_s: float) -> None:
    """SIGKILL that process and no other, and wait until it is dead; `TargetFailed` when it is not in time."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not is_running(pid, start_time):
            return
        signal.pidfd_send_signal(process, signal.SIGKILL)
        dead = select.poll()  # select() knows no descriptor beyond 1023
        dead.register(process, select.POLLIN)
        if not dead.poll(within_s * 1000):
            raise TargetFailed(f"process {pid} does not die: it is stuck in the kernel", pid=pid)
    finally:
        os.close(process)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _prove_that_it_is_held(record: Record, guard: Guard, *, clock: Clock, deadline: float) -> None:
    """Read through the closed gate: an answer means that the guard is not between tgtd and the image, so nothing may be served.

    The read stays at the gate, in a session that nobody listens to any more, and runs when the gate is opened first.
    """
    while not guard.held:
        if clock.monotonic() >= deadline:
            raise TargetFailed("tgtd reads nothing")
        with IscsiSession(
            record.base_portal,
            record.iqn,
            lun=LUN,
            initiator=record.probe_iqn,
            login=record.probe_login,
            timeout_s=deadline - clock.monotonic(),
            clock=clock,
        ) as session:
            try:
                session.read_first_sector(timeout_s=_HELD_S)
            except TargetFailed:
                continue
        raise TargetFailed("tgtd runs without its guard: a read passed the closed gate")


def _spawn(
    folder: Path, record: Record, spec: TargetSpec, *, settings: Worker, library: GuardLibrary
) -> "subprocess.Popen[bytes]":
    environment = {
        "PATH": os.defpath,
        "LD_PRELOAD": str(library.path),
        "TGT_IPC_SOCKET": SOCKET_NAME,
        STATE_ENV: str(folder / GUARD_STATE),
    }
    if spec.backing_store.kind == "file":
        environment[FILE_ENV] = spec.backing_store.location
    with (folder / LOG).open("ab") as out:
        return subprocess.Popen(
            [settings.tgtd, "-f", "-t", str(settings.iothreads), "--iscsi", f"portal={record.base_portal}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_it_listens(
    folder: Path, process: "subprocess.Popen[bytes]", *, settings: Worker, clock: Clock, deadline: float
) -> None:
    admin, never = TgtAdmin(folder, timeout_s=settings.target_command_timeout_s), threading.Event()
    while not admin.answers():
        if process.poll() is not None:
            raise NeverListened(f"tgtd ended at once with status {process.returncode}: {last_words(folder)}")
        if clock.monotonic() >= deadline:
            raise TargetFailed(f"tgtd did not listen in time: {last_words(folder)}")
        clock.wait(never, _POLL_S)


def _present(admin: TgtAdmin, record: Record, spec: TargetSpec) -> None:
    """Initiators tell disks apart by what is set here, so nothing of it may depend on the node."""
    store = spec.backing_store
    admin.new_target(spec.tid, spec.iqn)
    admin.new_unit(spec.tid, LUN, kind=_BACKING_STORE_TYPES[store.kind], location=store.location, options=store.options)
    admin.set_unit(
        spec.tid,
        LUN,
        vendor_id="SANDRLNG",
        product_id="DISK",
        product_rev="0001",
        scsi_id=spec.scsi_serial,
        scsi_sn=spec.scsi_serial,
    )
    if spec.chap:
        admin.require_chap(spec.tid, spec.chap.user, spec.chap.secret)
        admin.require_chap(spec.tid, PROBE_USER, record.probe_secret)
        if spec.chap.mutual_user:
            admin.prove_by_chap(spec.tid, spec.chap.mutual_user, spec.chap.mutual_secret)
    if spec.allow_any:
        admin.allow_address(spec.tid, "ALL")
        return
    for name in (record.probe_iqn, *spec.initiators):
        admin.allow_initiator(spec.tid, name)
