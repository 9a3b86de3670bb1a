"""A conductor's surroundings in this process: records, coordination and images, and something that serves as a worker would."""

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from conductor.drives import Drive
from conductor.failpoints import Failpoints
from conductor.steps import descriptions
from conductor.steps.base import Stores
from rpc.bus import Bus
from rpc.signing import Signing
from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination, Entry
from sanderling.coordination.changes import PREFIX, Changes, Journal
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.images.base import Images
from sanderling.images.files import FileImages
from sanderling.model import plans
from sanderling.model.disks import Access, Disk, DiskEvent, DiskState, restarts_exports
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import UNKNOWN_CLIENT, Export, ExportPhase
from sanderling.model.operations import Operation, OperationKind, OperationState
from sanderling.records import disks, operations
from sanderling.records.database import Records
from sanderling.records.tables import DiskRow, SubnetRow
from sanderling.secrets import Keyring
from sanderling.settings import Conductor, Secrets
from sanderling.settings import Images as ImagesSettings
from sanderling.settings import Records as RecordsSettings
from tests.fleet import Fleet

SETTINGS = Conductor(
    claim_ttl_s=0.5,
    retry_first_s=0.01,
    retry_most_s=0.01,
    step_attempts_max=3,
    move_repeat_s=0.05,
    move_deadline_s=1.0,
    move_settle_s=0.1,
)


BEGINS = {
    OperationKind.START_DISK: DiskEvent.START,
    OperationKind.STOP_DISK: DiskEvent.STOP,
    OperationKind.DELETE_DISK: DiskEvent.DELETE,
    OperationKind.ROLL_BACK_DISK: DiskEvent.ROLL_BACK,
}


class Crash(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def crash() -> None:
    raise Crash


class LaterClock(SystemClock):
    """The wall clock of somebody who looks when every claim has run out."""

    def wall(self) -> datetime:
        return super().wall() + timedelta(seconds=60)


def migrated(file: Path) -> Path:
    """A file with the present schema and a subnet, to copy from."""
    records = Records(RecordsSettings(url=f"sqlite:///{file}"), clock=SystemClock())
    records.migrate()
    with records.begin() as session:
        pool = {"pool_first": "10.0.0.1", "pool_last": "10.0.250.250"}
        session.add(SubnetRow(name="front", cidr="10.0.0.0/16", interface="eth0", created_at=records.now(), **pool))
    records.close()
    return file


class House:
    """Stores of one test, with the API's part of a request (`ask`) and the conductor's (`drive`)."""

    def __init__(self, folder: Path, template: Path, *, images: Images | None = None) -> None:
        clock = SystemClock()
        shutil.copy(template, folder / "records.sqlite")
        self.records = Records(RecordsSettings(url=f"sqlite:///{folder}/records.sqlite"), clock=clock)
        self.coordination: Coordination = EmbeddedCoordination(clock=clock)
        self.images: Images = images or FileImages(ImagesSettings(backend="files", folder=str(folder / "images")), clock=clock)
        bus, journal = cast(Bus, Fleet(self.coordination)), Journal("conductor", "test")
        signing = Signing(Secrets(), Keyring(Secrets()), clock=clock)
        self.stores = Stores(self.records, self.coordination, self.images, bus, clock, journal, signing)
        self._disks = 0
        self._later = Records(RecordsSettings(url=f"sqlite:///{folder}/records.sqlite"), clock=LaterClock())

    def fleet(self, *names: str) -> Fleet:
        """Gateways that hear what is cast from now on."""
        fleet = Fleet(self.coordination, names)
        self.stores = replace(self.stores, bus=cast(Bus, fleet))
        return fleet

    def close(self) -> None:
        self.records.close()
        self._later.close()

    def disk(self, *, name: str = "vol", access: Access = Access.EXCLUSIVE, state: DiskState = DiskState.CREATING) -> Disk:
        self._disks += 1
        paths = tuple(
            DiskPath(index=n, address=f"10.0.{self._disks}.{n}", prefix_len=16, interface="eth0", subnet="front") for n in (1, 2)
        )
        iqn = f"iqn.2026-11.io.sanderling:{name}"
        started = state is DiskState.STARTED
        disk = Disk(id=str(uuid4()), name=name, iqn=iqn, size_bytes=1 << 20, paths=paths, access=access, started=started)
        with self.records.begin() as session:
            disks.insert(session, disk, now=self.records.now(), state=state)
        return disk

    def ask(
        self,
        kind: OperationKind,
        disk: Disk,
        *,
        start: bool = True,
        deadline_s: float = 20.0,
        wanted: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Operation:
        """What the API does with an accepted request; `wanted` is what a change of the disk is to change."""
        with self.records.begin() as session:
            row = disks.get(session, disk.id)
            was, started, now = DiskState(row.state), row.started, self.records.now()
            if kind is OperationKind.DELETE_DISK:
                started = was is not DiskState.STOPPED
            if kind in BEGINS:
                disks.apply(session, disk.id, BEGINS[kind], now=now, actor="alice", operation_id=None)
            planned = plans.steps_of(kind, SETTINGS, start=start, started=started, grows="size_bytes" in (wanted or {}))
            if wanted is not None:
                before = {field: value for field, value in disks.changeable(row).items() if field in wanted}
                params |= {"change": dict(wanted), disks.BEFORE: before, "restarts": restarts_exports(wanted)}
            operation = operations.submit(
                session,
                kind=kind,
                resource_id=disk.id,
                resource_name=disk.name,
                params={**params, "was": was},
                steps=[step.model_copy(update={"deadline_s": deadline_s}) for step in planned],
                requested_by="alice",
                now=now,
            )
            if wanted is not None:
                disks.change(session, disk.id, wanted, now=now, actor="alice", operation_id=operation.id)
            return operation

    def drive(
        self,
        operation: Operation,
        *,
        failpoint: str = "",
        strike: Callable[[], None] = crash,
        conductor: str = "c1",
        later: bool = False,
    ) -> Operation:
        """One conductor's turn at it; with `later`, of one that comes when every claim has run out."""
        stores = replace(self.stores, records=self._later) if later else self.stores
        drive = Drive(conductor, SETTINGS, stores, tell=lambda: None, failpoints=Failpoints(failpoint, strike))
        drive.run(operation.id)
        return self.operation(operation)

    def done(self, kind: OperationKind, disk: Disk, *, start: bool = True, **asked: Any) -> Operation:
        """An operation of that kind, asked for and driven to its success."""
        ended = self.drive(self.ask(kind, disk, start=start, **asked))
        assert ended.state is OperationState.SUCCEEDED, ended
        return ended

    def use(self, coordination: Coordination) -> None:
        """Go on with another store: the one before is lost with all it held."""
        self.coordination = coordination
        self.stores = replace(self.stores, coordination=coordination)

    def forget(self, disk: Disk) -> None:
        """Lose the index's row of the disk."""
        with self.records.begin() as session:
            session.delete(disks.get(session, disk.id))

    def operation(self, operation: Operation) -> Operation:
        with self.records.read() as session:
            return operations.get(session, operation.id)

    def state(self, disk: Disk) -> str | None:
        """The disk's state in the index; None when it is not there."""
        with self.records.read() as session:
            row = session.get(DiskRow, disk.id)
            return None if row is None else row.state

    def indexed(self, disk: Disk) -> Disk:
        """What the index says of the disk."""
        with self.records.read() as session:
            return disks.describe(disks.get(session, disk.id))

    def described(self, disk: Disk) -> Disk | None:
        """What the image says of itself."""
        found = descriptions.read(self.images, disk.image)
        return None if found is None else found[1]

    def keys(self, disk: Disk) -> list[str]:
        """The disk's keys in coordination."""
        return [entry.key for prefix in ("disks/", "exports/") for entry in self.coordination.list(f"{prefix}{disk.id}").entries]

    def another_conductor(self, name: str = "") -> None:
        """Go on as one that has told workers of nothing yet; as the same one, begun again, if that is its name."""
        self.stores = replace(self.stores, journal=Journal("conductor", name or str(uuid4())))

    @property
    def noted(self) -> frozenset[str]:
        """The keys that workers have been told to look at."""
        entry = self.coordination.get(self.stores.journal.key)
        return frozenset(Changes.model_validate_json(entry.value).keys if entry else ())


class Gateways(threading.Thread):
    """Stands in for the workers: takes every export of a started disk, serves nothing, gives it up when the disk stops.

    It finds nobody to fence: of an unknown client it takes over at once, and a known one is not expected.
    """

    def __init__(self, coordination: Coordination, *, name: str = "g1") -> None:
        super().__init__(name=name, daemon=True)
        self._coordination = coordination
        self._session = coordination.open_session(name, check_ttl_s=3600.0)
        self._stopping = threading.Event()
        self.taken = 0

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)
        assert not self.is_alive()

    def die(self) -> None:
        """End as a killed worker does: its keys are unlocked and still name its client."""
        self.stop()
        self._coordination.close_session(self._session)

    def run(self) -> None:
        """As a worker does it: all there is at first, then what the journals name."""
        index, known = 0, dict[str, Changes]()
        self._look("exports/")
        while not self._stopping.is_set():
            listing = self._coordination.watch(PREFIX, index=index, timeout_s=0.05)
            index = listing.index
            for entry in listing.entries:
                changes = Changes.model_validate_json(entry.value)
                keys = changes.after(known.get(entry.key))
                known[entry.key] = changes
                for disk_id in {key.split("/")[1] for key in keys or ()}:
                    self._look(f"exports/{disk_id}/")

    def _look(self, prefix: str) -> None:
        for entry in self._coordination.list(prefix).entries:
            self._look_after(entry, self._coordination.get(f"disks/{entry.key.split('/')[1]}"))

    def _look_after(self, entry: Entry, published: Entry | None) -> None:
        export = Export.model_validate_json(entry.value)
        disk = Disk.model_validate_json(published.value) if published else None
        if entry.consul_session is None and disk is not None and disk.started:
            assert export.client in {"", UNKNOWN_CLIENT}, "nothing was to be fenced here"
            served = {"counter": export.counter + 1, "node": self.name, "client": f"client-of-{self.name}"}
            value = export.model_copy(update={**served, "phase": ExportPhase.SERVING, "revision": disk.export_revision})
            self.taken += self._coordination.acquire(
                entry.key, value.model_dump_json().encode(), consul_session=self._session, expected=entry.modify_index
            )
        elif entry.consul_session == self._session and disk is not None and not disk.started:
            value = export.model_copy(update={"client": "", "phase": ExportPhase.LEFT})
            self._coordination.release(entry.key, value.model_dump_json().encode(), consul_session=self._session)
        elif entry.consul_session == self._session and disk is not None and export.revision < disk.export_revision:
            value = export.model_copy(update={"revision": disk.export_revision})
            self._coordination.acquire(entry.key, value.model_dump_json().encode(), consul_session=self._session)
