"""Takes the snapshots that disks' schedules ask for, as operations like anybody else's.

A disk that is busy when one is due is looked at again at the next turn. Two conductors may do this at once: who asks moves the
time at which the next is due, in the same transaction.
"""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.orm import Session

from conductor.steps.base import Stores
from conductor.steps.descriptions import SNAPSHOT
from conductor.steps.snapshots import KEEP
from sanderling.errors import Busy, Problem
from sanderling.model import plans
from sanderling.model.disks import SCHEDULED, Access
from sanderling.model.operations import Operation, OperationKind
from sanderling.records import disks, operations
from sanderling.records.tables import DiskRow
from sanderling.settings import Conductor

log = structlog.get_logger(__name__)

SCHEDULER: Final = "schedule"  # who asked for its operations
_BATCH: Final = 100


class Scheduler:
    """Looks once in each interval. `wake` drives the operations that it asks for."""

    def __init__(self, own: Conductor, stores: Stores, *, tell: Callable[[], None], wake: Callable[[str], None]) -> None:
        self._own, self._stores, self._tell, self._wake = own, stores, tell, wake
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self._own.schedule_interval_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.turn()
            except Problem as problem:
                log.warning("cannot look at what is due", code=problem.code, reason=problem.detail)
            except Exception:
                log.exception("taking snapshots by schedule failed")
            self._stores.clock.wait(self._stopping, self._own.schedule_interval_s)

    def turn(self) -> list[str]:
        """Ask for what is due now; the ids of the operations."""
        records = self._stores.records
        asked: list[str] = []
        with records.begin() as session:
            now = records.now()
            for row in disks.due(session, now=now, limit=_BATCH):
                operation = self._asked(session, row, now)
                if operation is not None:
                    asked.append(operation.id)
        if asked:
            self._tell()
        for operation_id in asked:
            self._wake(operation_id)
        return asked

    def _asked(self, session: Session, row: DiskRow, now: datetime) -> Operation | None:
        schedule = disks.describe(row).schedule
        assert schedule is not None, "nothing is due without one"
        if row.started and row.access == Access.SHARED:
            log.warning("no snapshot of a shared disk that is started", disk=row.id)
            disks.next_due(row, now=now)
            return None
        name = f"{SCHEDULED}{now:%Y%m%dT%H%M%SZ}"
        try:
            operation = operations.submit(
                session,
                kind=OperationKind.CREATE_SNAPSHOT,
                resource_id=row.id,
                resource_name=row.name,
                params={"was": row.state, SNAPSHOT: name, KEEP: schedule.keep},
                steps=plans.steps_of(OperationKind.CREATE_SNAPSHOT, self._own, prunes=True),
                requested_by=SCHEDULER,
                now=now,
            )
        except Busy:
            return None
        disks.next_due(row, now=now)
        return operation
