"""Exports as tgtd processes, one each: preloaded with the guard, in a session of their own so that they outlive the worker.

Everything that is known of a process is in its folder under the runtime directory, and nothing in this object but the processes
it has yet to reap: a worker that was restarted finds what the one before it started.
"""

import contextlib
import os
import re
import secrets
import select
import shutil
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from iscsi_worker.targets import tcp, tgt_process
from iscsi_worker.targets.base import Running, TargetSpec
from iscsi_worker.targets.guard import Ended, Guard, GuardLibrary
from iscsi_worker.targets.probe import IscsiSession
from iscsi_worker.targets.record import GUARD_STATE, Record, is_running, last_words
from iscsi_worker.targets.tgt_admin import TgtAdmin
from sanderling.clock import Clock
from sanderling.errors import TargetFailed
from sanderling.model.disks import LUN, PORTAL_PORT
from sanderling.model.exports import UNKNOWN_CLIENT, Connection, ExportId
from sanderling.settings import Settings

log = structlog.get_logger(__name__)

_START_ATTEMPTS: Final = 3  # another process may take the free port between our finding it and tgtd's binding it
_POLL_S: Final = 0.001


class TgtTargets:
    """The tgtd processes of this node. Methods may be called from several threads, for one export from one at a time."""

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        """`SettingsRefused` when the guard library cannot be loaded."""
        self._settings, self._clock = settings.iscsi_worker, clock
        self._root = Path(settings.sanderling.runtime_dir).resolve() / "targets"
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._library = GuardLibrary(self._settings.guard)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._never = threading.Event()
        self._ran: frozenset[int] = frozenset()

    def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
        """As promised; the lease begins with this call."""
        began = self._clock.monotonic()
        folder = self._folder(spec.export)
        if self._is_alive(spec.export):
            raise TargetFailed(f"export {spec.export} has a process already", export=str(spec.export))
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._clear(folder)
            record = Record(
                disk_id=spec.export.disk_id,
                index=spec.export.index,
                epoch=epoch,
                revision=revision,
                iqn=spec.iqn,
                tid=spec.tid,
                kind=spec.backing_store.kind,
                base_port=tgt_process.free_port(),
                paths=spec.paths,
                probe_iqn=f"iqn.2026-11.io.sanderling:probe-{secrets.token_hex(16)}",
                probe_secret=secrets.token_hex(8) if spec.chap else "",
            )
            try:
                return self._started(folder, record, spec, began=began, lease_s=lease_s)
            except tgt_process.NeverListened:
                if attempt == _START_ATTEMPTS:
                    raise
            finally:
                if not self._is_alive(spec.export):
                    self._clear(folder)
        raise AssertionError("the last attempt returns or raises")

    def _started(self, folder: Path, record: Record, spec: TargetSpec, *, began: float, lease_s: float) -> Running:
        try:
            folder.mkdir(mode=0o700)
            self._library.create(folder / GUARD_STATE, lease_until_s=began + lease_s)
            record.write(folder)
            process = tgt_process.start(
                folder,
                record,
                spec,
                settings=self._settings,
                library=self._library,
                clock=self._clock,
                deadline=began + self._settings.target_start_timeout_s,
            )
        except OSError as error:
            raise TargetFailed(f"export {spec.export} cannot be started: {error}", export=str(spec.export)) from error
        except TargetFailed as failed:
            failed.context |= {"export": str(spec.export), "log": last_words(folder)}
            raise
        self._children[process.pid] = process
        with self._guard(spec.export) as guard:
            return self._running(record, guard)

    def open_portal(self, export: ExportId, address: str) -> None:
        folder, record = self._living(export)
        if address in record.portals:
            return
        admin = TgtAdmin(folder, timeout_s=self._settings.target_command_timeout_s)
        try:
            admin.open_portal(address, PORTAL_PORT)
        except TargetFailed as refused:
            if (address, PORTAL_PORT) not in admin.portals():
                raise TargetFailed(
                    f"no portal on {address}: {refused.detail}; is it on this node, and port {PORTAL_PORT} free?",
                    export=str(export),
                    address=address,
                    log=last_words(folder),
                ) from refused
        record.model_copy(update={"portals": (*record.portals, address)}).write(folder)

    def ungate(self, export: ExportId) -> None:
        with self._guard(export) as guard:
            guard.set_gate(is_open=True)

    def gate(self, export: ExportId) -> None:
        with self._guard(export) as guard:
            guard.set_gate(is_open=False)

    def drain(self, export: ExportId, *, timeout_s: float) -> bool:
        deadline = self._clock.monotonic() + timeout_s
        with self._guard(export) as guard:
            assert not guard.gate_open, "draining behind an open gate never ends"
            while guard.in_flight:
                if not self._runs(guard):
                    raise TargetFailed(f"export {export} died with operations in flight", export=str(export))
                if self._clock.monotonic() >= deadline:
                    return False
                self._clock.wait(self._never, _POLL_S)
        return True

    def renew(self, export: ExportId, *, lease_s: float) -> None:
        with self._guard(export) as guard:
            if not guard.renew(until_s=self._clock.monotonic() + lease_s):
                raise TargetFailed(f"the lease of export {export} has lapsed", export=str(export))

    def connections(self, export: ExportId) -> tuple[Connection, ...]:
        """Every connection once. tgtd tells names and addresses, the kernel addresses and ports, so two initiators that come
        from one address may have each other's name here."""
        folder, record = self._living(export)
        shown = TgtAdmin(folder, timeout_s=self._settings.target_command_timeout_s).sessions(record.tid)
        newest = sorted((one for one in shown if one.initiator_iqn != record.probe_iqn), key=lambda one: one.sid, reverse=True)
        found = []
        for one in tcp.connected_to(record.portals, PORTAL_PORT):
            session = next((session for session in newest if session.initiator_address == one.remote_address), None)
            if session is not None:  # else it has not logged in yet
                newest.remove(session)  # what is left over is sessions whose connection is gone
                found.append(Connection(session.initiator_iqn, one.remote_address, one.remote_port, one.local_address))
        return tuple(found)

    def connected(self) -> Mapping[str, Collection[tuple[str, int]]]:
        return tcp.others(PORTAL_PORT)

    def probe(self, export: ExportId, *, timeout_s: float) -> bool:
        """As promised; False also while the gate is closed, where a read waits like any other operation."""
        deadline = self._clock.monotonic() + timeout_s
        try:
            _, record = self._living(export)
            with IscsiSession(
                record.base_portal,
                record.iqn,
                lun=LUN,
                initiator=record.probe_iqn,
                login=record.probe_login,
                timeout_s=timeout_s,
                clock=self._clock,
            ) as session:
                session.read_first_sector(timeout_s=deadline - self._clock.monotonic())
        except TargetFailed as failed:
            log.warning("probe failed", export=str(export), problem=failed.detail)
            return False
        return True

    def stop(self, export: ExportId) -> None:
        folder = self._folder(export)
        with contextlib.suppress(TargetFailed):  # nothing there, or nothing known of its connections: the kill closes them too
            tcp.reset(tcp.connected_to(Record.read(folder).portals, PORTAL_PORT))
        self._clear(folder)

    def actual(self) -> tuple[Running, ...]:
        found = []
        for folder in sorted(self._root.iterdir()):
            try:
                record = Record.read(folder)
                with self._library.open(folder / GUARD_STATE) as guard:
                    if self._runs(guard):
                        found.append(self._running(record, guard))
            except TargetFailed as unknown:
                log.debug("not an export's folder", folder=str(folder), problem=unknown.detail)
        return tuple(found)

    def wait_for_end(self, *, timeout_s: float) -> bool:
        ends = select.poll()  # select() knows no descriptor beyond 1023
        before, self._ran = self._ran, frozenset(self._pids())
        if before - self._ran:
            return True
        processes: dict[int, int] = {}
        with contextlib.ExitStack() as opened:
            for pid in self._ran:
                try:
                    process = os.pidfd_open(pid)
                except ProcessLookupError:
                    return True
                opened.callback(os.close, process)
                ends.register(process, select.POLLIN)
                processes[process] = pid
            ended = {processes[process] for process, _ in ends.poll(timeout_s * 1000)}
        self._ran -= ended
        return bool(ended)

    def _pids(self) -> Iterator[int]:
        for folder in self._root.iterdir():
            with contextlib.suppress(TargetFailed), self._library.open(folder / GUARD_STATE) as guard:
                if self._runs(guard):
                    yield guard.pid

    def _running(self, record: Record, guard: Guard) -> Running:
        return Running(
            export=record.export,
            epoch=record.epoch,
            revision=record.revision,
            client=f"pid:{guard.pid}:{guard.start_time}" if record.kind == "file" else _fenceable(guard.client),
            portals=record.portals,
            gate_open=guard.gate_open,
            lease_left_s=max(0.0, guard.lease_until_s - self._clock.monotonic()),
            paths=record.paths,
        )

    def _folder(self, export: ExportId) -> Path:
        return self._root / f"{export.disk_id}.{export.index}"

    def _living(self, export: ExportId) -> tuple[Path, Record]:
        with self._guard(export):
            folder = self._folder(export)
            return folder, Record.read(folder)

    @contextlib.contextmanager
    def _guard(self, export: ExportId) -> Iterator[Guard]:
        """Of its living process; that it lives was seen after the state was opened, so it is that process's state."""
        with contextlib.ExitStack() as opened:
            try:
                guard = opened.enter_context(self._library.open(self._folder(export) / GUARD_STATE))
                lives = self._runs(guard)
            except TargetFailed:
                lives = False
            if not lives:
                raise TargetFailed(f"export {export} has no living process", export=str(export))
            yield guard

    def _is_alive(self, export: ExportId) -> bool:
        try:
            with self._guard(export):
                return True
        except TargetFailed:
            return False

    def _runs(self, guard: Guard) -> bool:
        return guard.pid != 0 and guard.ended[0] is Ended.RUNNING and is_running(guard.pid, guard.start_time)

    def _clear(self, folder: Path) -> None:
        """Kill what runs there, wait until it is dead, say how it ended, and remove the folder."""
        if not folder.exists():
            return
        try:
            guard = self._library.open(folder / GUARD_STATE)
        except TargetFailed:
            guard = None  # a start that did not come as far as a process
        if guard is not None:
            with guard:
                self._end(folder, guard)
        shutil.rmtree(folder)

    def _end(self, folder: Path, guard: Guard) -> None:
        if guard.pid == 0:
            return  # without the state that is about to be removed, it will refuse to run
        tgt_process.kill(guard.pid, guard.start_time, within_s=self._settings.target_start_timeout_s)
        child = self._children.pop(guard.pid, None)
        if child is not None:
            child.poll()  # it is dead: this reaps it
        reason, at = guard.ended
        killed = reason is Ended.RUNNING
        log.info(
            "export ended",
            export=str(Record.read(folder).export),
            reason="killed" if killed else reason.name.lower(),
            at=self._clock.monotonic() if killed else at,
        )


def _fenceable(addresses: str) -> str:
    """ADDRESS:0/NONCE out of what librados tells of a client, which may name several protocol versions."""
    found = re.search(r"(\[[0-9a-fA-F:.]+\]|[0-9.]+):\d+/(\d+)", addresses)
    return f"{found[1]}:0/{found[2]}" if found else UNKNOWN_CLIENT
