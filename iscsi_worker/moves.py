"""Moving an export between two workers: one stands ready, the other drains and passes the lock on, and the first serves.

Two open gates never exist: the source's is closed and nothing is in flight before the lock goes over, and only who has the lock
opens its own. A failure before that leaves the export where it was; after it, whoever is healthy takes it.
"""

from collections.abc import Callable

import structlog

from iscsi_worker.decisions import Handing
from iscsi_worker.reports import Reports
from iscsi_worker.service import Holding, Seams, Service, to_json
from iscsi_worker.targets.base import Running
from iscsi_worker.view import Held
from sanderling import tracing
from sanderling.clock import Clock
from sanderling.coordination.base import Acquire, Listing, Release
from sanderling.errors import MoveFailed, Problem, SessionLost, TargetFailed, Unavailable
from sanderling.model.disks import Disk
from sanderling.model.exports import Export, ExportId, ExportPhase, Prepared
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


class Moves:
    """Each side's part in a move. Calls for different exports may run at once."""

    def __init__(
        self,
        node: str,
        settings: Worker,
        seams: Seams,
        service: Service,
        reports: Reports,
        *,
        saw: Callable[[str, Listing], None],
        clock: Clock,
    ) -> None:
        """`saw` is told what became of a key that was handed on, so that this node knows at once that it is another's."""
        self._node = node
        self._settings = settings
        self._coordination, self._targets = seams.coordination, seams.targets
        self._service = service
        self._reports = reports
        self._saw = saw
        self._clock = clock

    def prepare(self, export: ExportId, disk: Disk, held: Held) -> None:
        """Start the process that the export's next owner needs: no address, no portal, and nothing passes its gate."""
        spec, epoch = self._service.spec(export, disk), held.export.epoch.following
        running = self._service.start(spec, epoch, revision=disk.export_revision, lent_s=self._settings.move_intent_s)
        log.info("prepared", export=str(export), epoch=str(held.export.epoch.following), client=running.client)

    def hand_over(
        self,
        export: ExportId,
        held: Held,
        running: Running,
        prepared: Prepared,
        *,
        handing: Handing,
        heir: str,
        consul_session: str,
    ) -> bool:
        """Stop doing I/O, pass the lock to the consul session `heir` of the gateway that was named, and end; whether that one was
        seen to serve.

        `MoveFailed` when the export goes on being served here. Initiators are told last: what reconnects finds the new owner.
        """
        to = handing.destination
        connections = self._targets.connections(export)
        closed_at = self._clock.monotonic()
        if not self._service.drained(export, running, timeout_s=self._settings.move_drain_s):
            why = f"operations in flight did not end in {self._settings.move_drain_s:g} s"
            raise self._kept(export, held, running, why, handing=handing, closed_at=closed_at, consul_session=consul_session)
        value = held.export.model_copy(
            update={
                "counter": held.export.counter + 1,
                "node": to,
                "client": prepared.client,
                "phase": ExportPhase.TAKING,
                "connections": connections,
                "next": self._node,
            }
        )
        with tracing.span("pass_on", to=to):
            passed_on = self._passed_on(export, held, value, heir=heir, consul_session=consul_session)
        if not passed_on:
            why = f"gateway {to} could not be given the lock"
            raise self._kept(export, held, running, why, handing=handing, closed_at=closed_at, consul_session=consul_session)
        serves = self._wait_until_served(export, value)
        gap_s = self._clock.monotonic() - closed_at if serves else None
        log.info("handed on", export=str(export), epoch=str(value.epoch), to=to, served=serves, gap_s=gap_s)
        self._reports.say(
            export,
            value.epoch,
            "handed_on",
            to=to,
            served=serves,
            gap_s=gap_s,
            client=running.client,
            operation_id=handing.operation_id,
        )
        try:
            self._service.retire(export, [path.address for path in running.paths])
        except TargetFailed as problem:  # it was handed on all the same; what is left is dropped
            log.error("the process that was followed does not end", export=str(export), problem=problem.detail)
        return serves

    def _kept(
        self,
        export: ExportId,
        held: Held,
        running: Running,
        why: str,
        *,
        handing: Handing,
        closed_at: float,
        consul_session: str,
    ) -> MoveFailed:
        """Serve on, and say for how long operations were held for nothing; unless somebody else took it over meanwhile."""
        if not self._is_still_ours(export, consul_session):
            log.warning("not served on: it was taken over meanwhile", export=str(export), client=running.client)
            return MoveFailed(f"{why}, and it was taken over meanwhile", export=str(export))
        self._service.serve_on(export, running)
        gap_s = self._clock.monotonic() - closed_at
        told = {"to": handing.destination, "operation_id": handing.operation_id}
        self._reports.say(export, held.export.epoch, "kept", why=why, gap_s=gap_s, **told)
        return MoveFailed(why, export=str(export))

    def _is_still_ours(self, export: ExportId, consul_session: str) -> bool:
        """Asked after a wait, in which this node may have been frozen. While the store does not answer the lease decides."""
        try:
            entry = self._coordination.get(export.key)
        except Unavailable as problem:
            log.warning("not known whether it was taken over", export=str(export), problem=problem.detail)
            return True
        return entry is not None and entry.consul_session == consul_session

    def activate(
        self, export: ExportId, held: Held, running: Running, *, unserved_since: float | None, consul_session: str
    ) -> bool:
        """Serve with the process that stood ready, and say so; False when the store does not answer, and to be done again.

        The report tells the gap since `unserved_since`, when this node first saw that nobody serves: a source that died in the
        middle, or saw no heir for too long, tells of none. On any other failure the export is unlocked again and goes to who had
        it before.
        """
        began = self._clock.monotonic() if unserved_since is None else unserved_since
        holding = Holding(self._coordination, export, held.export, consul_session)
        addresses = [path.address for path in running.paths]
        try:
            self._service.open(running, running.paths)
            self._service.tickle(held.export.connections, addresses)
            with tracing.span("serving"):
                holding.write(phase=ExportPhase.SERVING, connections=(), revision=running.revision, next="")
        except Unavailable as problem:
            log.warning("serving, and cannot say so yet", export=str(export), problem=problem.detail)
            return False
        except Problem as problem:
            self._service.back_out(export, addresses, holding, problem)
            raise
        gap = {"kind": "move", "was_on": held.export.next, "gap_s": self._clock.monotonic() - began}
        self._reports.say(export, holding.value.epoch, "served", client=holding.value.client, **gap)
        return True

    def _passed_on(self, export: ExportId, held: Held, value: Export, *, heir: str, consul_session: str) -> bool:
        """Whether the lock went over in one step. When the store does not say, the step is made impossible before this is False.

        As long as it may still happen the gate has to stay closed: `Unavailable` is raised then, and the next turn, which can
        begin only once the store answers, takes the export anew or finds that it went over.
        """
        left = held.export.model_copy(update={"phase": ExportPhase.LEFT, "client": ""})
        try:
            return self._coordination.txn(
                [
                    Release(export.key, to_json(left), consul_session, held.modify_index),
                    Acquire(export.key, to_json(value), heir),
                ]
            )
        except SessionLost:
            return False
        except Unavailable as problem:
            log.warning("not known whether the lock went over", export=str(export), problem=problem.detail)
        kept = held.export.model_copy(update={"counter": held.export.counter + 1})
        return not self._coordination.acquire(
            export.key, to_json(kept), consul_session=consul_session, expected=held.modify_index
        )

    def _wait_until_served(self, export: ExportId, value: Export) -> bool:
        """Whether the new owner opened its gate within the bound; also over as soon as it has failed."""
        deadline = self._clock.monotonic() + self._settings.move_linger_s
        index = 0
        while (left_s := deadline - self._clock.monotonic()) > 0:
            try:
                listing = self._coordination.watch(export.key, index=index, timeout_s=left_s)
                self._saw(export.key, listing)
            except Unavailable as problem:
                log.warning("not known whether the new owner serves", export=str(export), problem=problem.detail)
                return False
            entry = next((entry for entry in listing.entries if entry.key == export.key), None)
            if entry is None or entry.consul_session is None:
                return False
            now = Export.model_validate_json(entry.value)
            if now.epoch != value.epoch or now.phase is ExportPhase.SERVING:
                return now.epoch == value.epoch
            index = listing.index
        return False
