"""Extending what exports are lent, and finding those that run but do not answer.

An export's lease is extended while this node can prove that it may serve: its consul session was confirmed by a consistent
read, or a read through the export itself still succeeds, since nobody takes over without fencing first. So a coordination
store that is away costs nothing, and an owner that was cut off stops as soon as it has been fenced.
"""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from iscsi_worker import metrics
from iscsi_worker.addresses.base import Addresses
from iscsi_worker.service import Seams
from iscsi_worker.targets.base import Targets
from sanderling.clock import Clock
from sanderling.errors import AddressFailed, TargetFailed
from sanderling.model.disks import Path
from sanderling.model.exports import Connection, ExportId
from sanderling.settings import Worker

log = structlog.get_logger(__name__)

LOOKS_MOST: Final = 3  # at a connection that has yet to log in


@dataclass(frozen=True, slots=True)
class Lease:
    """An export whose process runs here, and the session that locks it if it is this node's: proof of that is proof of both."""

    export: ExportId
    client: str
    paths: tuple[Path, ...]
    consul_session: str | None
    gate_open: bool


class Ends(NamedTuple):
    """The two ends of a connection, as the kernel has them."""

    portal_address: str
    initiator_address: str
    initiator_port: int


@dataclass(frozen=True, slots=True)
class Strangers:
    """Connections to an export of which it has not told who they are, and how often it was asked for these.

    One that never logs in would be asked for every second, for as long as it is there.
    """

    ends: frozenset[Ends] = frozenset()
    looks: int = 0

    def seen_again(self, ends: frozenset[Ends]) -> "Strangers":
        """Asked for once more, when none of them is new; for the first time, when one is."""
        return Strangers(ends, self.looks + 1 if ends <= self.ends else 1)


def _ends(one: Connection) -> Ends:
    return Ends(one.portal_address, one.initiator_address, one.initiator_port)


class Leases:
    """`extend` is called at every renewal interval; probes run beside it, one at a time for each export."""

    def __init__(
        self,
        settings: Worker,
        seams: Seams,
        *,
        proven_until: Callable[[str | None], float],
        on_change: Callable[[], None],
        on_answer: Callable[[], None],
        store_answers: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`on_change` is called when `connections` is not what it was, `on_answer` when the image store answered an export.

        `store_answers` tells whether it has lately answered whoever asked, and soon: only then does a probe that fails say
        something about the process.
        """
        self._settings = settings
        self._on_change, self._on_answer, self._store_answers = on_change, on_answer, store_answers
        self._targets: Targets = seams.targets
        self._addresses: Addresses = seams.addresses
        self._proven_until = proven_until
        self._clock = clock
        self._leases: Sequence[Lease] = ()
        self._probes: dict[ExportId, Future[None]] = {}
        self._probed_at: dict[ExportId, float] = {}
        self._connections: dict[ExportId, tuple[Connection, ...]] = {}
        self._strangers: dict[ExportId, Strangers] = {}
        self._extended: set[tuple[ExportId, str]] = set()
        self._until: dict[tuple[ExportId, str], float] = {}
        self._lock = threading.Lock()  # one renewal at a time: the longest promise counts, whoever made it
        self._failures: dict[tuple[ExportId, str], int] = {}
        self._pool = ThreadPoolExecutor(settings.lanes, thread_name_prefix="probe")

    def cover(self, leases: Sequence[Lease]) -> None:
        """What to extend from now on."""
        self._leases = tuple(leases)

    @property
    def sick(self) -> frozenset[ExportId]:
        """Exports whose process has failed too many probes in a row although the image store answers."""
        return frozenset(
            export for (export, _), failures in dict(self._failures).items() if failures >= self._settings.probe_failures_max
        )

    @property
    def connections(self) -> dict[ExportId, tuple[Connection, ...]]:
        """Who is connected to each covered export, as of the last renewal; who has gone since is seen at the next probe."""
        return dict(self._connections)

    def extend(self) -> None:
        """Move every deadline that this node can account for; the rest lapse by themselves."""
        self._forget_what_is_gone()
        for lease in self._leases:
            now, proven = self._clock.monotonic(), self._proven_until(lease.consul_session)
            if proven > now:
                self._extend(lease, until=proven)
            due = now - self._probed_at.setdefault(lease.export, now) >= self._pause_s(lease)
            ageing = proven - now < self._settings.lease_s - 2 * self._settings.renew_interval_s
            if lease.gate_open and (due or ageing):  # before the proof has run out: a probe takes its time
                self._probe_soon(lease)
        now = self._clock.monotonic()
        with self._lock:
            metrics.show_leases([until - now for until in self._until.values()])
        self._look_for_strangers()

    def _look_for_strangers(self) -> None:
        """Ask those exports alone that somebody has connected to since they were last asked."""
        try:
            connected = self._targets.connected()
        except TargetFailed as problem:
            log.warning("new connections not known", problem=problem.detail)
            return
        for lease in self._leases:
            there = {Ends(path.address, *other) for path in lease.paths for other in connected.get(path.address, ())}
            known = {_ends(one) for one in self._connections.get(lease.export, ())}
            before = self._strangers.pop(lease.export, Strangers())
            if not lease.gate_open or there <= known:
                continue
            now = before.seen_again(frozenset(there - known))
            self._strangers[lease.export] = now
            if now.looks <= LOOKS_MOST:
                self._pool.submit(self._note_connections, lease.export)

    def _pause_s(self, lease: Lease) -> float:
        """Between two probes: one that failed is made again soon, so that a process that hangs is replaced soon."""
        failed = self._failures.get((lease.export, lease.client), 0) > 0
        return self._settings.renew_interval_s if failed else self._settings.probe_interval_s

    def _forget_what_is_gone(self) -> None:
        present = {(lease.export, lease.client) for lease in self._leases}
        exports = {export for export, _ in present}
        with self._lock:
            self._extended &= present
            self._until = {key: until for key, until in self._until.items() if key in present}
        for known in (self._connections, self._strangers, self._probed_at, self._probes):
            for export in known.keys() - exports:
                known.pop(export, None)
        for key in self._failures.keys() - present:
            self._failures.pop(key, None)

    def stop(self) -> None:
        self._leases = ()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _extend(self, lease: Lease, *, until: float) -> None:
        """Lend until then, or for as long as was lent already: a proof that ages must not take back what a probe has earned."""
        key = (lease.export, lease.client)
        with self._lock:
            before = self._until.get(key)
            until = self._until[key] = max(until, before or 0.0)
            if before is not None:
                metrics.LEASE_MARGIN.observe(before - self._clock.monotonic())
            try:
                self._targets.renew(lease.export, lease_s=until - self._clock.monotonic())
            except TargetFailed as problem:
                log.error("export process is dead", export=str(lease.export), problem=problem.detail)
                return
            if key not in self._extended:
                self._extended.add(key)
                log.info("lease extended", export=str(lease.export), client=lease.client)
        for path in lease.paths if lease.gate_open else ():
            try:
                self._addresses.add(
                    path.address,
                    prefix_len=path.prefix_len,
                    interface=path.interface,
                    lifetime_s=min(self._settings.address_lifetime_s, max(1, math.ceil(until - self._clock.monotonic()))),
                )
            except AddressFailed as problem:
                log.error("address cannot be renewed", export=str(lease.export), address=path.address, problem=problem.detail)
        self._take_back(lease, until=until)

    def _take_back(self, lease: Lease, *, until: float) -> None:
        """An export that was given up while its addresses were renewed has taken them off already: so again."""
        try:
            with self._lock:
                until = max(until, self._until.get((lease.export, lease.client), until))
                self._targets.renew(lease.export, lease_s=until - self._clock.monotonic())
        except TargetFailed:
            for path in lease.paths:
                self._addresses.remove(path.address)

    def _probe_soon(self, lease: Lease) -> None:
        under_way = self._probes.get(lease.export)
        if under_way is None or under_way.done():
            self._probed_at[lease.export] = self._clock.monotonic()
            self._probes[lease.export] = self._pool.submit(self._probe, lease)

    def _probe(self, lease: Lease) -> None:
        began = self._clock.monotonic()
        if self._targets.probe(lease.export, timeout_s=self._settings.probe_timeout_s):
            self._on_answer()
            self._failures.pop((lease.export, lease.client), None)
            self._extend(lease, until=began + self._settings.lease_s)
            self._note_connections(lease.export)
            return
        failures = self._failures.get((lease.export, lease.client), 0) if self._store_answers() else -1
        self._failures[lease.export, lease.client] = failures + 1
        log.warning("probe failed", export=str(lease.export), in_a_row=failures + 1)

    def _note_connections(self, export: ExportId) -> None:
        try:
            found = tuple(sorted(self._targets.connections(export)))
        except TargetFailed as problem:
            log.warning("connections not known", export=str(export), problem=problem.detail)
            return
        before, self._connections[export] = self._connections.get(export), found
        if found != before:
            self._on_change()


def every(interval_s: float, act: Callable[[], None], stopping: threading.Event, clock: Clock) -> None:
    """Call it at each interval until told to stop; a failure is logged and the next turn comes all the same."""
    while not stopping.is_set():
        try:
            act()
        except Exception:
            log.exception("a turn failed", act=act.__qualname__)
        clock.wait(stopping, interval_s)
