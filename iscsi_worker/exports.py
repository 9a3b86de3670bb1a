"""Taking, adopting, giving up and dropping one export: every effect in the order that keeps two nodes from writing at once.

Who may write is settled by the image store's fence, never by a clock or a lock alone. The value in coordination therefore
always names whatever could still write: the last client until it is fenced, `unknown` while a new one is being made, then the
new one. A crash between any two steps leaves a value whose next reader fences the right client.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable

import structlog

from iscsi_worker import metrics
from iscsi_worker.reports import Reports
from iscsi_worker.service import Holding, Seams, Service, to_json
from iscsi_worker.targets.base import Running
from iscsi_worker.view import Held
from sanderling import tracing
from sanderling.clock import Clock
from sanderling.errors import Fenced, Problem, TargetFailed
from sanderling.measuring import timed
from sanderling.model.disks import Disk
from sanderling.model.exports import UNKNOWN_CLIENT, Connection, ExportId, ExportPhase
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


class Exports:
    """The effects on the exports of one node. Each call handles one export; calls for different exports may run at once."""

    def __init__(
        self,
        node: str,
        settings: Worker,
        seams: Seams,
        service: Service,
        reports: Reports,
        *,
        store_is_silent: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """What can only be waited for in vain while `store_is_silent` is left to the next owner, who fences first."""
        self._node = node
        self._settings = settings
        self._coordination, self._images, self._targets = seams.coordination, seams.images, seams.targets
        self._service = service
        self._reports = reports
        self._store_is_silent = store_is_silent
        self._clock = clock

    def take(
        self,
        export: ExportId,
        disk: Disk,
        held: Held,
        *,
        unserved_since: float | None,
        consul_session: str,
        siblings: frozenset[str],
    ) -> bool:
        """Own and serve the export; False when another was faster.

        `unserved_since` is when this node first saw that nobody serves what was served before; the report tells the gap.
        `siblings` are the clients that have the image open by right.
        On any other failure the export is unlocked again, nothing of it runs here, and its value names what to fence. What this
        node cannot serve for want of a key fails before anything is touched.
        """
        spec = self._service.spec(export, disk)
        value = held.export.model_copy(
            update={
                "counter": held.export.counter + 1,
                "node": self._node,
                "phase": ExportPhase.TAKING,
                "revision": disk.export_revision,
            }
        )
        with tracing.span("lock"):
            locked = self._coordination.acquire(
                export.key, to_json(value), consul_session=consul_session, expected=held.modify_index
            )
        if not locked:
            return False
        log.info("taking", export=str(export), epoch=str(value.epoch), previous=held.export.client, of=held.export.node)
        holding = Holding(self._coordination, export, value, consul_session)
        paths = disk.export_paths(export.index)
        addresses = [path.address for path in paths]
        try:
            self._service.end(export, addresses)  # an address that is here stays: who is not answered asks again a second later
            self._fence_previous(export, disk, holding, siblings)
            holding.write(client=UNKNOWN_CLIENT)
            epoch, lent_s = holding.value.epoch, self._settings.lease_s
            running = self._service.start(spec, epoch, revision=disk.export_revision, lent_s=lent_s)
            holding.write(client=running.client)
            self._service.open(running, paths)
            self._service.tickle(held.export.connections, addresses)
            with tracing.span("serving"):
                holding.write(phase=ExportPhase.SERVING, connections=(), next="")
        except Problem as problem:
            self._service.back_out(export, addresses, holding, problem)
            raise
        gap: dict[str, object] = {}
        if unserved_since is not None:
            kind = "restart" if held.export.node == self._node else "failover"
            gap = {"kind": kind, "was_on": held.export.node, "gap_s": self._clock.monotonic() - unserved_since}
        self._reports.say(export, holding.value.epoch, "served", client=holding.value.client, **gap)
        return True

    def adopt(
        self,
        export: ExportId,
        held: Held,
        running: Running,
        disk: Disk | None,
        *,
        consul_session: str,
        siblings: frozenset[str],
    ) -> bool:
        """Lock an export whose process already runs here; False when another was faster.

        When its client was fenced while the lock was free, the process is ended and `Fenced` raised: it can only be taken.
        """
        value = held.export.model_copy(update={"counter": held.export.counter + 1, "node": self._node})
        if not self._coordination.acquire(export.key, to_json(value), consul_session=consul_session, expected=held.modify_index):
            return False
        holding = Holding(self._coordination, export, value, consul_session)
        if value.client == UNKNOWN_CLIENT:
            assert disk is not None, "decided without a description"
            self._fence_all(export, disk, holding, spared=siblings | {running.client})
        if self._images.is_fenced(running.client):
            self._targets.stop(export)
            raise Fenced(f"the client of export {export} was fenced while its lock was free", client=running.client)
        holding.write(client=running.client, phase=ExportPhase.SERVING, revision=running.revision)
        log.info("adopted", export=str(export), epoch=str(value.epoch), client=running.client)
        self._reports.say(export, value.epoch, "adopted", client=running.client)
        return True

    def give_up(
        self, export: ExportId, held: Held, addresses: Collection[str], running: Running | None, *, consul_session: str
    ) -> None:
        """Stop serving in order and unlock: nothing acknowledged is lost, nothing unacknowledged happens later.

        Where the store is silent nothing is waited for; unless nothing was in flight the value names the client, so that the heir
        fences it.
        """
        holding = Holding(self._coordination, export, held.export, consul_session)
        holding.write(expected=held.modify_index, phase=ExportPhase.GIVING_UP)
        connections = held.export.connections
        clean = held.export.client in {"", running.client if running else ""}
        if running is not None:
            with contextlib.suppress(TargetFailed):  # a process that hangs is given up all the same
                connections = self._targets.connections(export)
            wait_s = 0.0 if self._store_is_silent() else self._settings.drain_timeout_s
            clean = self._service.drained(export, running, timeout_s=wait_s) and clean
        fenced = clean or self._fenced(export, held.export.client)
        self._service.retire(export, addresses)
        client = "" if fenced else held.export.client
        holding.release(client=client, phase=ExportPhase.LEFT, connections=connections)
        log.info("given up", export=str(export), epoch=str(held.export.epoch), drained=clean, client_left=client)
        self._reports.say(export, held.export.epoch, "left", drained=clean)

    def publish(self, export: ExportId, held: Held, connections: tuple[Connection, ...], *, consul_session: str) -> bool:
        """Write who is connected into the export's value; False when it changed meanwhile."""
        value = held.export.model_copy(update={"connections": connections})
        return self._coordination.acquire(export.key, to_json(value), consul_session=consul_session, expected=held.modify_index)

    def drop(self, export: ExportId, addresses: Collection[str], running: Running | None) -> None:
        """End what runs here of an export that is somebody else's, or what is left of a process that ended by itself.

        Its client is fenced first: what it had in flight must not land behind the back of whoever owns the export.
        """
        if running is not None:
            log.warning("dropping", export=str(export), client=running.client)
            self._fenced(export, running.client)
        self._service.retire(export, addresses)

    def _fence_previous(self, export: ExportId, disk: Disk, holding: Holding, siblings: frozenset[str]) -> None:
        client = holding.value.client
        if client == UNKNOWN_CLIENT:
            self._fence_all(export, disk, holding, spared=siblings)
        elif client:
            self._fence(export, (client,))

    def _fence_all(self, export: ExportId, disk: Disk, holding: Holding, *, spared: frozenset[str]) -> None:
        """Fence whoever has the image open. The lock is proved in between: if it went on meanwhile, its new owner is listed."""
        clients = [client for client in self._images.clients(disk.image) if client not in spared]
        holding.write()
        self._fence(export, clients)

    def _fence(self, export: ExportId, clients: Iterable[str]) -> None:
        for client in clients:
            with tracing.span("fence", client=client), timed(metrics.FENCE_SECONDS, self._clock):
                self._images.fence(client)
            log.warning("fenced", export=str(export), client=client, at=self._clock.monotonic())

    def _fenced(self, export: ExportId, client: str) -> bool:
        if client == UNKNOWN_CLIENT:
            return False  # who takes it next, or the conductor, lists the image's clients and fences them
        if self._store_is_silent():
            log.warning("not fenced: the image store is silent; the next owner will", export=str(export), client=client)
            return False
        try:
            self._fence(export, (client,))
        except Problem as problem:
            log.error("cannot fence; the next owner will", export=str(export), client=client, problem=problem.detail)
            return False
        return True
