"""Bringing up, draining and ending the process of one export on this node, and the export's key while this node holds it.

Taking, giving up and moving are made of these; in which order is theirs to say.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog

from iscsi_worker.addresses.base import Addresses
from iscsi_worker.announcements import Announcements
from iscsi_worker.reports import Reports
from iscsi_worker.targets.base import Credentials, Running, Targets, TargetSpec
from sanderling import tracing
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.errors import AddressFailed, ClaimLost, Problem, TargetFailed
from sanderling.images.base import Images
from sanderling.model.disks import Chap, Disk, Path
from sanderling.model.exports import Connection, Epoch, Export, ExportId
from sanderling.secrets import Keyring
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seams:
    """The outside systems an export touches."""

    coordination: Coordination
    images: Images
    targets: Targets
    addresses: Addresses


class Service:
    """What serving an export takes on this node. Calls for different exports may run at once."""

    def __init__(
        self,
        settings: Worker,
        seams: Seams,
        reports: Reports,
        *,
        keyring: Keyring,
        certain: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`certain` says that the locks were proved a moment ago: what is announced then is this node's to announce.

        `keyring` opens the secrets that disks are described with.
        """
        self._settings = settings
        self._images = seams.images
        self._targets, self._addresses = seams.targets, seams.addresses
        self._reports = reports
        self._keyring = keyring
        self._clock = clock
        self.announcements = Announcements(settings, seams.addresses, certain=certain, clock=clock)

    def serve_on(self, export: ExportId, running: Running) -> None:
        """Open the gate of what was to be handed on; a process that is dead by now, or must be since nobody has extended its
        lease, is found by the next turn.
        """
        at = self._clock.monotonic()
        lives = any(one.client == running.client and one.lease_left_s > 0 for one in self._targets.actual())
        try:
            if lives:
                self._targets.ungate(export)
                log.info("gate opened", export=str(export), at=at, client=running.client)
        except TargetFailed as problem:
            log.warning("it died while it was to be handed on", export=str(export), problem=problem.detail)

    def spec(self, export: ExportId, disk: Disk) -> TargetSpec:
        """How the disk is to be served; `SecretUnreadable` when this node has no key for its secrets."""
        return TargetSpec(
            export=export,
            iqn=disk.iqn,
            tid=disk.tid,
            scsi_serial=disk.scsi_serial,
            backing_store=self._images.backing_store(disk.image),
            initiators=disk.initiators,
            allow_any=disk.allow_any,
            paths=disk.export_paths(export.index),
            chap=self._credentials(disk.chap),
        )

    def start(self, spec: TargetSpec, epoch: Epoch, *, revision: int, lent_s: float) -> Running:
        lease_s = self._settings.target_start_timeout_s + lent_s
        with tracing.span("start"):
            return self._targets.start(spec, epoch=epoch, revision=revision, lease_s=lease_s)

    def _credentials(self, chap: Chap | None) -> Credentials | None:
        if chap is None:
            return None
        unseal = self._keyring.unseal
        return Credentials(
            chap.user, unseal(chap.secret), chap.mutual_user, unseal(chap.mutual_secret) if chap.mutual_user else ""
        )

    def open(self, running: Running, paths: Sequence[Path]) -> None:
        export = running.export
        for path in paths:
            with tracing.span("portal", address=path.address, interface=path.interface):
                self._addresses.add(
                    path.address,
                    prefix_len=path.prefix_len,
                    interface=path.interface,
                    lifetime_s=self._settings.address_lifetime_s,
                )
                self._targets.open_portal(export, path.address)
                self._addresses.announce(path.address, interface=path.interface)
        with tracing.span("gate"):
            self._targets.renew(export, lease_s=self._settings.lease_s)
            log.info("gate opened", export=str(export), at=self._clock.monotonic(), client=running.client)
            self._targets.ungate(export)
        self.announcements.repeat(paths)

    def drained(self, export: ExportId, running: Running, *, timeout_s: float) -> bool:
        self.announcements.forget(path.address for path in running.paths)
        try:
            with tracing.span("drain"):
                self._targets.gate(export)
                drained = self._targets.drain(export, timeout_s=timeout_s)
        except TargetFailed:
            drained = False  # it died under us: what it had in flight may still land
        log.info("gate closed", export=str(export), at=self._clock.monotonic(), drained=drained, client=running.client)
        return drained

    def end(self, export: ExportId, addresses: Collection[str]) -> None:
        """End the process, if there is one, and leave the addresses: who connects to them is refused rather than not answered."""
        self.announcements.forget(addresses)
        self._targets.stop(export)

    def retire(self, export: ExportId, addresses: Collection[str]) -> None:
        """End the process first: its connections must be reset while the address is still here to send the reset from.

        An address that will not go away is nobody's to renew: the kernel takes it off when its lifetime is over.
        """
        self.end(export, addresses)
        for address in addresses:
            try:
                self._addresses.remove(address)
            except AddressFailed as problem:
                lifetime_s = self._settings.address_lifetime_s
                log.error("an address stays until its lifetime is over", problem=problem.detail, lifetime_s=lifetime_s)

    def back_out(self, export: ExportId, addresses: Collection[str], holding: "Holding", problem: Problem) -> None:
        log.error("cannot take", export=str(export), problem=problem.detail, code=problem.code)
        self._reports.say(export, holding.value.epoch, "refused", problem=problem.to_wire())
        try:
            self.retire(export, addresses)
            holding.release()
        except Problem as later:
            log.error("cannot back out in order", export=str(export), problem=later.detail)

    def tickle(self, connections: Iterable[Connection], addresses: Collection[str]) -> None:
        """Make the last owner's initiators reconnect now; one that is not told finds out by its own timeout."""
        try:
            self._addresses.tickle([one for one in connections if one.portal_address in addresses])
        except AddressFailed as problem:
            log.warning("initiators not tickled", problem=problem.detail)


class Holding:
    """An export's key while this node holds it: every write proves the lock, and says so when it is gone."""

    def __init__(self, coordination: Coordination, export: ExportId, value: Export, consul_session: str) -> None:
        self._coordination = coordination
        self._export = export
        self._consul_session = consul_session
        self.value = value

    def write(self, *, expected: int | None = None, **changes: object) -> None:
        """Write the value with these changes; with `expected` only if nobody has written the key since that index."""
        after = self.value.model_copy(update=changes)
        if not self._coordination.acquire(
            self._export.key, to_json(after), consul_session=self._consul_session, expected=expected
        ):
            raise ClaimLost(f"export {self._export} is held by another, or not what it was", export=str(self._export))
        self.value = after

    def release(self, **changes: object) -> None:
        after = self.value.model_copy(update=changes)
        if not self._coordination.release(self._export.key, to_json(after), consul_session=self._consul_session):
            raise ClaimLost(f"the lock of export {self._export} was lost before it was given up", export=str(self._export))


def to_json(value: Export) -> bytes:
    return value.model_dump_json().encode()
