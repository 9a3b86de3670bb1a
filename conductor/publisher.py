"""Keeps coordination equal to what the images say, and the marks to what the records say: publishes again what it lost, clears
away what nobody needs any more.

A disk with an open operation is left to that operation. Two conductors that repair one disk at once do no harm: every write
compares, and what a late one leaves behind is cleared away at the next turn.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from conductor import metrics
from conductor.steps.base import Stores
from conductor.steps.descriptions import METADATA_KEY, read
from conductor.steps.keys import age, delete_keys, disk_key, exports_prefix, keys_for, keys_of, publish_disk, publish_exports
from conductor.steps.marks import publish_marks
from conductor.steps.reading import disk_of, export_of, exports_in, is_usable, live_gateways
from conductor.steps.serving import fence_left, mark_left
from sanderling.errors import Problem
from sanderling.measuring import timed
from sanderling.model.disks import Disk, DiskState, image_of
from sanderling.model.exports import UNKNOWN_CLIENT, ExportId, Gateway
from sanderling.records import disks, events, operations
from sanderling.records.tables import DiskRow
from sanderling.settings import Settings

log = structlog.get_logger(__name__)

_PAGE = 500


@dataclass(frozen=True, slots=True)
class _View:
    """One look at coordination: the published disks, the export keys that are there and can be used, and the live gateways."""

    published: Mapping[str, Disk]
    exports: Mapping[str, frozenset[ExportId]]
    gateways: tuple[Gateway, ...]

    @property
    def keyless(self) -> frozenset[tuple[ExportId, str]]:
        """The exports that live gateways say they serve though there is no key for them, with their clients."""
        said = {pair for gateway in self.gateways for pair in gateway.running.items()}
        pairs = {(export, client) for name, client in said if (export := ExportId.named(name))}
        return frozenset(pair for pair in pairs if pair[0] not in self.exports.get(pair[0].disk_id, ()))

    def claimants(self, exports: Collection[ExportId]) -> set[str]:
        """The keys of the gateways that say they serve one of these: who places them has to know."""
        return {gateway.key for gateway in self.gateways if any(str(export) in gateway.running for export in exports)}

    def claims(self, export: ExportId) -> set[str]:
        """The clients that live gateways say they serve it with."""
        return {gateway.running[str(export)] for gateway in self.gateways if str(export) in gateway.running}


class Publisher:
    """Compares at its start and then once in each interval."""

    def __init__(self, settings: Settings, stores: Stores, *, tell: Callable[[], None]) -> None:
        self._interval_s = settings.conductor.republish_interval_s
        self._node = settings.sanderling.node
        self._stores = stores
        self._records, self._coordination, self._images = stores.records, stores.coordination, stores.images
        self._clock, self._tell = stores.clock, tell
        self._lost_before: set[str] = set()  # disks whose exports were gone at the last turn too
        self._keyless_before: frozenset[tuple[ExportId, str]] = frozenset()  # a gateway says a little late that it stopped
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self._interval_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with timed(metrics.COMPARE_SECONDS, self._clock):
                    self.turn()
            except Problem as problem:
                log.warning("coordination could not be compared", code=problem.code, reason=problem.detail)
            except Exception:
                log.exception("comparing coordination failed")
            self._clock.wait(self._stopping, self._interval_s)

    def turn(self) -> None:
        """Compare once, and mend what differs. Coordination is read first: what the records do not know then is old."""
        view = self._seen()
        with self._stores.telling_workers():
            if publish_marks(self._stores):
                log.warning("published the marks again")
        with self._records.read() as session:
            rows = {row.id: row for row in _all(session)}
            busy = operations.open_resources(session)
        lost = {row.id for row in rows.values() if row.started and _missing(view, row)}
        started = {row.id for row in rows.values() if row.started}
        ghosts = view.keyless & self._keyless_before
        haunted = {export.disk_id for export, _ in ghosts}
        for disk_id in sorted(started | view.published.keys() | view.exports.keys() | haunted):
            if disk_id in busy or self._stopping.is_set():
                continue
            try:
                self._mend(disk_id, rows.get(disk_id), view, ghosts)
            except Problem as problem:
                log.warning("cannot mend", disk=disk_id, code=problem.code, reason=problem.detail)
        self._lost_before, self._keyless_before = lost, view.keyless

    def _seen(self) -> _View:
        published = {entry.key.partition("/")[2]: disk_of(entry) for entry in self._coordination.list("disks/").entries}
        exports: defaultdict[str, set[ExportId]] = defaultdict(set)
        for export, entry in exports_in(self._coordination.list("exports/").entries).items():
            exports[export.disk_id] |= {export} if is_usable(entry) else set()
        gateways = live_gateways(self._coordination.list("nodes/").entries)
        disks = {disk_id: disk for disk_id, disk in published.items() if disk}
        return _View(disks, {disk_id: frozenset(ids) for disk_id, ids in exports.items()}, tuple(gateways))

    def _mend(self, disk_id: str, row: DiskRow | None, view: _View, ghosts: Collection[tuple[ExportId, str]]) -> None:
        if row is not None and row.started:
            if _missing(view, row) or _is_older(view.published.get(disk_id), row):
                self._publish(disks.describe(row), view)
        elif row is None or DiskState(row.state) is DiskState.STOPPED:
            self._clear(disk_id, known=row is not None)
            self._end(disk_id, {client for export, client in ghosts if export.disk_id == disk_id})

    def _publish(self, indexed: Disk, view: _View) -> None:
        found = read(self._images, indexed.image)
        if found is None:
            log.error("a started disk has no image or no description", disk=indexed.id, image=indexed.image)
            return
        stored, disk = found
        if disk.rolling_back_to:
            log.error("a disk that is half rolled back is not served", disk=disk.id, snapshot=disk.rolling_back_to)
            return
        if not disk.started:
            with self._stores.telling_workers([disk_key(disk.id)]):
                publish_disk(self._coordination, disk)
            return
        entries = exports_in(self._coordination.list(exports_prefix(disk.id)).entries)
        missing = _exports(disk) - {export for export, entry in entries.items() if is_usable(entry)}
        clients = {export: self._client(export, view) for export in missing}
        if missing:
            if UNKNOWN_CLIENT in clients.values() and disk.id not in self._lost_before:
                return  # the gateways may not have said yet what they serve
            disk = disk.model_copy(update={"generation": disk.generation + 1})
            if not self._images.set_metadata(disk.image, METADATA_KEY, disk.model_dump_json(), expected=stored):
                return
            self._note(disk)
        with self._stores.telling_workers([*view.claimants(missing), *keys_for(disk)]):
            publish_disk(self._coordination, disk)
            publish_exports(self._coordination, disk, client_of=lambda export: clients.get(export, UNKNOWN_CLIENT))
        self._index(indexed, disk)
        metrics.REPAIRS.labels("published_again").inc()
        log.warning("published again", disk=disk.id, generation=disk.generation, clients={str(e): c for e, c in clients.items()})

    def _index(self, indexed: Disk, disk: Disk) -> None:
        """Index what the image says where a change that failed left that in doubt."""
        if (disk.revision, disk.presented_at) == (indexed.revision, indexed.presented_at):
            return
        with self._records.begin() as session:
            if operations.open_on(session, disk.id) is None:
                disks.changed(session, disk, [], now=self._records.now(), actor=self._node, operation_id=None)
        self._tell()

    def _client(self, export: ExportId, view: _View) -> str:
        """Whom the next owner must fence, or adopt: the one client that serves it, or `unknown` when that is not certain."""
        claims = view.claims(export)
        client = claims.pop() if len(claims) == 1 else UNKNOWN_CLIENT
        return UNKNOWN_CLIENT if client != UNKNOWN_CLIENT and self._images.is_fenced(client) else client

    def _note(self, disk: Disk) -> None:
        with self._records.begin() as session:
            disks.get(session, disk.id).generation = disk.generation
            data = {"name": disk.name, "generation": disk.generation}
            now = self._records.now()
            events.append(session, "disk.published_again", at=now, actor=self._node, resource_id=disk.id, data=data)
        self._tell()

    def _clear(self, disk_id: str, *, known: bool) -> None:
        """Remove the keys of a disk that is stopped or gone. A worker that holds one is told to give it up, and waited for.

        The keys are read before it is made sure that they are not needed: one made later is not removed by the compare.
        """
        entries, image = keys_of(self._coordination, disk_id), image_of(disk_id)
        if not entries or self._has_operation(disk_id):
            return
        found = read(self._images, image)
        if (found is not None and found[1].started) or (not known and image in self._images.list()):
            log.error("keys of a disk that the records do not know as started, but its image exists", disk=disk_id, image=image)
            return
        exports = exports_in(entry for entry in entries if entry.key.startswith("exports/")).values()
        published = next((disk for entry in entries if entry.key == disk_key(disk_id) and (disk := disk_of(entry))), None)
        held = any(entry.consul_session is not None for entry in exports)
        if (published is None and held) or (published is not None and published.started):
            self._tell_to_stop(disk_id, published, found[1] if found else None)
        for entry in exports:
            client = export_of(entry).client
            if client and entry.consul_session is None:
                fence_left(self._stores, image, client)
                mark_left(self._coordination, entry)  # changes the key: the next turn removes it
        with self._stores.telling_workers([entry.key for entry in entries]):
            is_cleared = delete_keys(self._coordination, entries)
        if is_cleared:
            metrics.REPAIRS.labels("cleared_away").inc()
            log.warning("cleared away", disk=disk_id)

    def _tell_to_stop(self, disk_id: str, published: Disk | None, described: Disk | None) -> None:
        """Publish what the image says, or, when it is gone or older, a newer revision of what is published."""
        if published is not None and (described is None or age(described) <= age(published)):
            described = published.model_copy(update={"started": False, "revision": published.revision + 1})
        if described is None:
            log.error("a gateway holds an export of which nothing is known", disk=disk_id)
            return
        with self._stores.telling_workers([disk_key(disk_id)]):
            publish_disk(self._coordination, described)
        metrics.REPAIRS.labels("told_to_stop").inc()
        log.warning("told to stop once more", disk=disk_id, revision=described.revision)

    def _end(self, disk_id: str, clients: Collection[str]) -> None:
        """Fence who serves a disk that is stopped or gone and has no key by which it could be told to stop."""
        if not clients or self._has_operation(disk_id):
            return
        image = image_of(disk_id)
        found = read(self._images, image)
        if found is not None and found[1].started:
            log.error("served, not known to the records as started, but its image says so", disk=disk_id, image=image)
            return
        for client in clients:
            if client == UNKNOWN_CLIENT or not self._images.is_fenced(client):
                log.warning("served though it is stopped or gone", disk=disk_id, client=client)
                metrics.REPAIRS.labels("fenced").inc()
                fence_left(self._stores, image, client)

    def _has_operation(self, disk_id: str) -> bool:
        with self._records.read() as session:
            return operations.open_on(session, disk_id) is not None


def _all(session: Session) -> list[DiskRow]:
    rows: list[DiskRow] = []
    while page := disks.page(session, marker=rows[-1].name if rows else None, limit=_PAGE):
        rows += page
    return rows


def _exports(disk: Disk) -> frozenset[ExportId]:
    return frozenset(ExportId(disk.id, index) for index in disk.export_indexes)


def _missing(view: _View, row: DiskRow) -> frozenset[ExportId]:
    return _exports(disks.describe(row)) - view.exports.get(row.id, frozenset())


def _is_older(published: Disk | None, row: DiskRow) -> bool:
    return published is None or (published.generation, published.revision) < (row.generation, row.revision)
