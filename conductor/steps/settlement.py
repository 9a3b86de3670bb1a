"""The last step of each operation: the index of disks catches up with what is now true."""

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import described
from sanderling.errors import NotFound
from sanderling.model import plans
from sanderling.model.disks import DISKS, DiskState
from sanderling.records import disks, marks


def settle(context: Context) -> None:
    """Move the disk to its new rest, with the revision and generation that its image has; done already is fine."""
    operation, disk, records = context.operation, described(context), context.stores.records
    event = plans.when_done(operation.kind, operation.steps)
    with context.effect("index"), records.begin() as session:
        if DISKS.allows(DiskState(disks.get(session, disk.id).state), event):
            disks.apply(
                session,
                disk.id,
                event,
                now=records.now(),
                actor=str(operation.claimed_by),
                operation_id=operation.id,
                started=disk.started,
                revision=disk.revision,
                generation=disk.generation,
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
