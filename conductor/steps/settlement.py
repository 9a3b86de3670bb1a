"""The last step of each operation: the index of disks catches up with what is now true."""

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import described
from sanderling.errors import NotFound
from sanderling.model import plans
from sanderling.model.disks import DISKS, DiskState
from sanderling.records import disks, marks


def settle(context: Context) -> None:
    """Index the disk as its image describes it, and move it to its new rest; done already is fine."""
    operation, disk, records = context.operation, described(context), context.stores.records
    event = plans.when_done(operation.kind, operation.steps)
    with context.effect("index"), records.begin() as session:
        if event is None:
            by = {"actor": str(operation.claimed_by), "operation_id": operation.id}
            disks.changed(session, disk, list(operation.params[disks.CHANGE]), now=records.now(), **by)
        elif DISKS.allows(DiskState(disks.get(session, disk.id).state), event):
            disks.apply(
                session,
                disk.id,
                event,
                now=records.now(),
                actor=str(operation.claimed_by),
                operation_id=operation.id,
                described=disk,
            )


def forget(context: Context) -> None:
    operation, records = context.operation, context.stores.records
    with context.effect("index"), records.begin() as session:
        marks.forget_disk(session, operation.resource_id)
        try:
            disks.forget(
                session, operation.resource_id, now=records.now(), actor=str(operation.claimed_by), operation_id=operation.id
            )
        except NotFound:
            return  # forgotten by the attempt before


SETTLE = Action(settle, effects=("index",))
FORGET = Action(forget, effects=("index",))
