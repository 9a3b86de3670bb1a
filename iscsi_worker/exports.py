"""Taking, adopting, giving up and dropping one export: every effect in the order that keeps two nodes from writing at once.

Who may write is settled by the image store's fence, never by a clock or a lock alone. The value in coordination therefore
always names whatever could still write: the last client until it is fenced, `unknown` while a new one is being made, then the
new one. A crash between any two steps leaves a value whose next reader fences the right client.
"""

import contextlib
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import structlog

from iscsi_worker.addresses.base import Addresses
from iscsi_worker.reports import Reports
from iscsi_worker.targets.base import Running, Targets, TargetSpec
from iscsi_worker.view import Held, View
from sanderling.clock import Clock
from sanderling.coordination.base import Acquire, Coordination, Release
from sanderling.errors import AddressFailed, ClaimLost, Fenced, MoveFailed, Problem, SessionLost, TargetFailed, Unavailable
from sanderling.images.base import Images
from sanderling.model.disks import Disk, Path
from sanderling.model.exports import UNKNOWN_CLIENT, Connection, Epoch, Export, ExportId, ExportPhase, Prepared
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seams:
    """The outside systems an export touches."""

    coordination: Coordination
    images: Images
    targets: Targets
    addresses: Addresses


class Exports:
    """The effects on the exports of one node. Each call handles one export; calls for different exports may run at once."""

    def __init__(self, node: str, settings: Worker, seams: Seams, reports: Reports, *, clock: Clock) -> None:
        self._node = node
        self._settings = settings
        self._coordination, self._images = seams.coordination, seams.images
        self._targets, self._addresses = seams.targets, seams.addresses
        self._reports = reports
        self._clock = clock
        self._never = threading.Event()

    def take(self, export: ExportId, disk: Disk, held: Held, *, consul_session: str, view: View) -> bool:
        """Own and serve the export; False when another was faster or the dead owner's lock-delay is not over.

        On any other failure the export is unlocked again, nothing of it runs here, and its value names what to fence.
        """
        value = held.export.model_copy(
            update={
                "counter": held.export.counter + 1,
                "node": self._node,
                "phase": ExportPhase.TAKING,
                "revision": disk.revision,
            }
        )
        if not self._coordination.acquire(export.key, _json(value), consul_session=consul_session, expected=held.modify_index):
            return False
        log.info("taking", export=str(export), epoch=str(value.epoch), previous=held.export.client, of=held.export.node)
        holding = _Holding(self._coordination, export, value, consul_session)
        paths = disk.export_paths(export.index)
        addresses = [path.address for path in paths]
        try:
            self._retire(export, addresses)
            self._fence_previous(export, disk, holding, view)
            holding.write(client=UNKNOWN_CLIENT)
            running = self._start(export, disk, holding.value.epoch, lent_s=self._settings.lease_s)
            holding.write(client=running.client)
            self._open(running, paths)
            self._tickle(held.export.connections, addresses)
            holding.write(phase=ExportPhase.SERVING, connections=(), next="")
        except Problem as problem:
            self._back_out(export, addresses, holding, problem)
            raise
        self._reports.say(export, holding.value.epoch, "served", client=holding.value.client)
        self._announce_again(paths)
        return True

    def adopt(
        self, export: ExportId, held: Held, running: Running, disk: Disk | None, *, consul_session: str, view: View
    ) -> bool:
        """Lock an export whose process already runs here; False when another was faster.

        When its client was fenced while the lock was free, the process is ended and `Fenced` raised: it can only be taken.
        """
        value = held.export.model_copy(update={"counter": held.export.counter + 1, "node": self._node})
        if not self._coordination.acquire(export.key, _json(value), consul_session=consul_session, expected=held.modify_index):
            return False
        holding = _Holding(self._coordination, export, value, consul_session)
        if value.client == UNKNOWN_CLIENT:
            assert disk is not None, "decided without a description"
            self._fence_all(export, disk, holding, spared=view.siblings_clients(export) | {running.client})
        if self._images.is_fenced(running.client):
            self._targets.stop(export)
            raise Fenced(f"the client of export {export} was fenced while its lock was free", client=running.client)
        holding.write(client=running.client, phase=ExportPhase.SERVING, revision=running.revision)
        log.info("adopted", export=str(export), epoch=str(value.epoch), client=running.client)
        self._reports.say(export, value.epoch, "adopted", client=running.client)
        return True

    def give_up(
        self, export: ExportId, held: Held, addresses: Iterable[str], running: Running | None, *, consul_session: str
    ) -> None:
        """Stop serving in order and unlock: nothing acknowledged is lost, nothing unacknowledged happens later."""
        holding = _Holding(self._coordination, export, held.export, consul_session)
        holding.write(expected=held.modify_index, phase=ExportPhase.GIVING_UP)
        connections = held.export.connections
        clean = held.export.client in {"", running.client if running else ""}
        if running is not None:
            with contextlib.suppress(TargetFailed):  # a process that hangs is given up all the same
                connections = self._targets.connections(export)
            clean = self._drained(export, running, timeout_s=self._settings.drain_timeout_s) and clean
        fenced = clean or self._fenced(export, held.export.client)
        self._retire(export, addresses)
        client = "" if fenced else held.export.client
        holding.release(client=client, phase=ExportPhase.LEFT, connections=connections)
        log.info("given up", export=str(export), epoch=str(held.export.epoch), drained=clean, client_left=client)
        self._reports.say(export, held.export.epoch, "left", drained=clean)

    def prepare(self, export: ExportId, disk: Disk, held: Held) -> None:
        """Start the process that the export's next owner needs: no address, no portal, and nothing passes its gate."""
        running = self._start(export, disk, held.export.epoch.following, lent_s=self._settings.move_intent_s)
        log.info("prepared", export=str(export), epoch=str(held.export.epoch.following), client=running.client)

    def hand_over(
        self, export: ExportId, held: Held, running: Running, prepared: Prepared, *, to: str, heir: str, consul_session: str
    ) -> None:
        """Stop doing I/O, pass the lock to consul session `heir` of gateway `to`, and end once that one serves.

        `MoveFailed` when the export goes on being served here. Initiators are told last: what reconnects finds the new owner.
        """
        connections = self._targets.connections(export)
        closed_at = self._clock.monotonic()
        if not self._drained(export, running, timeout_s=self._settings.move_drain_s):
            self._serve_on(export, running)
            raise MoveFailed(f"operations in flight did not end in {self._settings.move_drain_s:g} s", export=str(export))
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
        if not self._passed_on(export, held, value, heir=heir, consul_session=consul_session):
            self._serve_on(export, running)
            raise MoveFailed(f"gateway {to} could not be given the lock", export=str(export))
        serves = self._wait_until_served(export, value)
        gap_s = self._clock.monotonic() - closed_at if serves else None
        self._retire(export, [path.address for path in running.paths])
        log.info("handed on", export=str(export), epoch=str(value.epoch), to=to, served=serves, gap_s=gap_s)
        self._reports.say(export, value.epoch, "handed_on", to=to, served=serves, gap_s=gap_s)

    def activate(self, export: ExportId, held: Held, running: Running, *, consul_session: str) -> None:
        """Serve with the process that stood ready. On a failure the export is unlocked again and goes to who had it before."""
        holding = _Holding(self._coordination, export, held.export, consul_session)
        addresses = [path.address for path in running.paths]
        try:
            self._open(running, running.paths)
            self._tickle(held.export.connections, addresses)
            holding.write(phase=ExportPhase.SERVING, connections=(), revision=running.revision, next="")
        except Problem as problem:
            self._back_out(export, addresses, holding, problem)
            raise
        self._reports.say(export, holding.value.epoch, "served", client=holding.value.client)
        self._announce_again(running.paths)

    def publish(self, export: ExportId, held: Held, connections: tuple[Connection, ...], *, consul_session: str) -> bool:
        """Write who is connected into the export's value; False when it changed meanwhile."""
        value = held.export.model_copy(update={"connections": connections})
        return self._coordination.acquire(export.key, _json(value), consul_session=consul_session, expected=held.modify_index)

    def drop(self, export: ExportId, addresses: Iterable[str], running: Running | None) -> None:
        """End what runs here of an export that is somebody else's, or what is left of a process that ended by itself.

        Its client is fenced first: what it had in flight must not land behind the back of whoever owns the export.
        """
        if running is not None:
            log.warning("dropping", export=str(export), client=running.client)
            self._fenced(export, running.client)
        self._retire(export, addresses)

    def _fence_previous(self, export: ExportId, disk: Disk, holding: "_Holding", view: View) -> None:
        client = holding.value.client
        if client == UNKNOWN_CLIENT:
            self._fence_all(export, disk, holding, spared=view.siblings_clients(export))
        elif client:
            self._fence(export, (client,))

    def _fence_all(self, export: ExportId, disk: Disk, holding: "_Holding", *, spared: frozenset[str]) -> None:
        """Fence whoever has the image open. The lock is proved in between: if it went on meanwhile, its new owner is listed."""
        clients = [client for client in self._images.clients(disk.image) if client not in spared]
        holding.write()
        self._fence(export, clients)

    def _fence(self, export: ExportId, clients: Iterable[str]) -> None:
        for client in clients:
            self._images.fence(client)
            log.warning("fenced", export=str(export), client=client, at=self._clock.monotonic())

    def _fenced(self, export: ExportId, client: str) -> bool:
        if client == UNKNOWN_CLIENT:
            return False  # who takes it next, or the conductor, lists the image's clients and fences them
        try:
            self._fence(export, (client,))
        except Problem as problem:
            log.error("cannot fence; the next owner will", export=str(export), client=client, problem=problem.detail)
            return False
        return True

    def _serve_on(self, export: ExportId, running: Running) -> None:
        """Open the gate of what was to be handed on; a process that is dead by now is found by the next turn."""
        with contextlib.suppress(TargetFailed):
            self._targets.ungate(export)
            log.info("gate opened", export=str(export), at=self._clock.monotonic(), client=running.client)

    def _passed_on(self, export: ExportId, held: Held, value: Export, *, heir: str, consul_session: str) -> bool:
        """Whether the lock went over in one step. When the store does not say, the step is made impossible before this is False.

        As long as it may still happen the gate has to stay closed: `Unavailable` is raised then, and the next turn, which can
        begin only once the store answers, takes the export anew or finds that it went over.
        """
        left = held.export.model_copy(update={"phase": ExportPhase.LEFT, "client": ""})
        try:
            return self._coordination.txn(
                [
                    Release(export.key, _json(left), consul_session, held.modify_index),
                    Acquire(export.key, _json(value), heir),
                ]
            )
        except SessionLost:
            return False
        except Unavailable as problem:
            log.warning("not known whether the lock went over", export=str(export), problem=problem.detail)
        kept = held.export.model_copy(update={"counter": held.export.counter + 1})
        return not self._coordination.acquire(export.key, _json(kept), consul_session=consul_session, expected=held.modify_index)

    def _wait_until_served(self, export: ExportId, value: Export) -> bool:
        """Whether the new owner opened its gate within the bound; also over as soon as it has failed."""
        deadline = self._clock.monotonic() + self._settings.move_linger_s
        index = 0
        while (left_s := deadline - self._clock.monotonic()) > 0:
            try:
                listing = self._coordination.watch(export.key, index=index, timeout_s=left_s)
            except Unavailable as problem:
                log.warning("not known whether the new owner serves", export=str(export), problem=problem.detail)
                return False
            entry = next((entry for entry in listing.entries if entry.key == export.key), None)
            if entry is None or entry.consul_session is None:
                return False
            now = Export.model_validate_json(entry.value)
            if now.epoch != value.epoch or now.phase is ExportPhase.SERVING:
                return now.phase is ExportPhase.SERVING
            index = listing.index
        return False

    def _start(self, export: ExportId, disk: Disk, epoch: Epoch, *, lent_s: float) -> Running:
        spec = TargetSpec(
            export=export,
            iqn=disk.iqn,
            tid=disk.tid,
            scsi_serial=disk.scsi_serial,
            backing_store=self._images.backing_store(disk.image),
            initiators=disk.initiators,
            allow_any=disk.allow_any,
            paths=disk.export_paths(export.index),
        )
        lease_s = self._settings.target_start_timeout_s + lent_s
        return self._targets.start(spec, epoch=epoch, revision=disk.revision, lease_s=lease_s)

    def _open(self, running: Running, paths: Iterable[Path]) -> None:
        export = running.export
        for path in paths:
            self._addresses.add(
                path.address,
                prefix_len=path.prefix_len,
                interface=path.interface,
                lifetime_s=self._settings.address_lifetime_s,
            )
            self._targets.open_portal(export, path.address)
            self._addresses.announce(path.address, interface=path.interface)
        self._targets.renew(export, lease_s=self._settings.lease_s)
        log.info("gate opened", export=str(export), at=self._clock.monotonic(), client=running.client)
        self._targets.ungate(export)

    def _drained(self, export: ExportId, running: Running, *, timeout_s: float) -> bool:
        try:
            self._targets.gate(export)
            drained = self._targets.drain(export, timeout_s=timeout_s)
        except TargetFailed:
            drained = False  # it died under us: what it had in flight may still land
        log.info("gate closed", export=str(export), at=self._clock.monotonic(), drained=drained, client=running.client)
        return drained

    def _retire(self, export: ExportId, addresses: Iterable[str]) -> None:
        """End the process first: its connections must be reset while the address is still here to send the reset from."""
        self._targets.stop(export)
        for address in addresses:
            self._addresses.remove(address)

    def _back_out(self, export: ExportId, addresses: Iterable[str], holding: "_Holding", problem: Problem) -> None:
        log.error("cannot take", export=str(export), problem=problem.detail, code=problem.code)
        self._reports.say(export, holding.value.epoch, "refused", problem=problem.to_wire())
        try:
            self._retire(export, addresses)
            holding.release()
        except Problem as later:
            log.error("cannot back out in order", export=str(export), problem=later.detail)

    def _tickle(self, connections: Iterable[Connection], addresses: Collection[str]) -> None:
        """Make the last owner's initiators reconnect now; one that is not told finds out by its own timeout."""
        try:
            self._addresses.tickle([one for one in connections if one.portal_address in addresses])
        except AddressFailed as problem:
            log.warning("initiators not tickled", problem=problem.detail)

    def _announce_again(self, paths: Iterable[Path]) -> None:
        """Neighbours may miss one announcement; a failure to repeat it costs nothing that is not repeated by traffic."""
        for _ in range(self._settings.announcements - 1):
            self._clock.wait(self._never, self._settings.announce_interval_s)
            for path in paths:
                try:
                    self._addresses.announce(path.address, interface=path.interface)
                except AddressFailed as problem:
                    log.warning("announcement failed", address=path.address, problem=problem.detail)


class _Holding:
    """An export's key while this node holds it: every write proves the lock, and says so when it is gone."""

    def __init__(self, coordination: Coordination, export: ExportId, value: Export, consul_session: str) -> None:
        self._coordination = coordination
        self._export = export
        self._consul_session = consul_session
        self.value = value

    def write(self, *, expected: int | None = None, **changes: object) -> None:
        """Write the value with these changes; with `expected` only if nobody has written the key since that index."""
        after = self.value.model_copy(update=changes)
        if not self._coordination.acquire(self._export.key, _json(after), consul_session=self._consul_session, expected=expected):
            raise ClaimLost(f"export {self._export} is held by another, or not what it was", export=str(self._export))
        self.value = after

    def release(self, **changes: object) -> None:
        after = self.value.model_copy(update=changes)
        if not self._coordination.release(self._export.key, _json(after), consul_session=self._consul_session):
            raise ClaimLost(f"the lock of export {self._export} was lost before it was given up", export=str(self._export))


def _json(value: Export) -> bytes:
    return value.model_dump_json().encode()
