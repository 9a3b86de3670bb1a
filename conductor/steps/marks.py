"""The marks of operators: set in the records, then copied into coordination, where workers watch."""

from typing import Final

from conductor.steps.base import Action, Context, Stores
from sanderling.coordination.base import ABSENT
from sanderling.coordination.values import value_of
from sanderling.errors import Unavailable
from sanderling.model.marks import MARKS_KEY, Marks
from sanderling.records import marks, operations

_TRIES_MAX: Final = 8  # each is lost only to another conductor that publishes them


def publish_marks(stores: Stores) -> bool:
    """Make coordination say what the records say; False when it does already. No key is as good as no marks.

    The key is read before the records: of two that publish at once, the one with the older records fails to write.
    """
    for _ in range(_TRIES_MAX):
        entry = stores.coordination.get(MARKS_KEY)
        with stores.records.read() as session:
            wanted = marks.read(session)
        if wanted == (value_of(entry, Marks) if entry else Marks()):
            return False
        stores.journal.note([MARKS_KEY])  # before it: a change whose answer is lost may have been made
        if stores.coordination.put(
            MARKS_KEY, wanted.model_dump_json().encode(), expected=entry.modify_index if entry else ABSENT
        ):
            stores.journal.note([MARKS_KEY])  # and after it: whoever looked in between saw the old ones
            return True
    raise Unavailable(f"{MARKS_KEY} was changed by others {_TRIES_MAX} times in a row", dependency="coordination")


def mark(context: Context) -> None:
    _drain(context, is_drained=True)


def unmark(context: Context) -> None:
    _drain(context, is_drained=False)


def mark_disk(context: Context) -> None:
    operation, records = context.operation, context.stores.records
    with context.effect("record"), records.begin() as session:
        operations.hold(session, operation.id, claim_epoch=operation.claim_epoch)
        marks.mark_disk(
            session,
            operation.resource_id,
            pin=operation.params["pin"],
            avoid=frozenset(operation.params["avoid"]),
            now=records.now(),
            actor=operation.requested_by,
            operation_id=operation.id,
        )
    _publish(context)


def _drain(context: Context, *, is_drained: bool) -> None:
    operation, records = context.operation, context.stores.records
    with context.effect("record"), records.begin() as session:
        operations.hold(session, operation.id, claim_epoch=operation.claim_epoch)
        marks.drain(
            session,
            operation.params["gateway"],
            is_drained=is_drained,
            now=records.now(),
            actor=operation.requested_by,
            operation_id=operation.id,
        )
    _publish(context)


def _publish(context: Context) -> None:
    with context.effect("publish"), context.stores.telling_workers():
        publish_marks(context.stores)


MARK = Action(mark, effects=("record", "publish"))
UNMARK = Action(unmark, effects=("record", "publish"))
MARK_DISK = Action(mark_disk, effects=("record", "publish"))
