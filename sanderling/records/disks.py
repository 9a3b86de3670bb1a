"""The index of disks: what the API lists and allocates against. The description on each image is the one that counts."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import bindparam, or_, select, tuple_
from sqlalchemy import insert as sql_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, contains_eager

from sanderling.errors import Conflict, InUse, InvalidInput, NotFound
from sanderling.model.disks import DISKS, Access, Chap, Disk, DiskEvent, DiskState, Path, Schedule
from sanderling.model.operations import OperationKind
from sanderling.records import events, subnets
from sanderling.records.statements import run
from sanderling.records.tables import DiskRow, OperationRow, PathRow

BEFORE: Final = "before"
"""Among the params of an operation that changes a disk: what it changes, as it was."""
_SNAPSHOT_STATES: Final = [state.value for state in DiskState if DISKS.allows(state, DiskEvent.SNAPSHOT)]
CHANGE: Final = "change"
"""Likewise: what is to be, of what can be changed."""
RESTARTS: Final = "restarts"
"""Likewise: whether the exports are to be started again for it."""
SOURCE: Final = "source"
"""Among the params of an operation that makes a disk as a clone: the other's `disk_id`, and its `snapshot`."""
_CHANGEABLE: Final = ("name", "size_bytes", "initiators", "allow_any", "chap", "schedule")

_INSERT: Final = sql_insert(DiskRow)
_INSERT_PATHS: Final = sql_insert(PathRow)
_ALIKE: Final = select(DiskRow.name, DiskRow.iqn).where(or_(DiskRow.name == bindparam("name"), DiskRow.iqn == bindparam("iqn")))
_CHANGES: Final = select(OperationRow.params).where(
    OperationRow.kind == OperationKind.CHANGE_DISK, OperationRow.ended_at.is_(None)
)
_HELD: Final = (
    select(PathRow.address, DiskRow.name)
    .join(DiskRow, DiskRow.id == PathRow.disk_id)
    .where(PathRow.address.in_(bindparam("addresses", expanding=True)))
    .order_by(PathRow.index)
    .limit(1)
)


def insert(session: Session, disk: Disk, *, now: datetime, state: DiskState, other_iqn: bool = False) -> Disk:
    """Index a disk and its paths, and tell how: `Conflict` when the name, the IQN or an address belongs to another disk.
    The transaction is to be given up then.

    With `other_iqn` it gets another IQN where its own is that of a disk, one that had this name once.
    """
    if _refuse_taken(session, disk, other_iqn=other_iqn):
        disk = disk.model_copy(update={"iqn": f"{disk.iqn}-{disk.id[:8]}"})
    kept = disk.model_dump(exclude={"paths", "rolling_back_to", "cause"}) | {"initiators": list(disk.initiators), "state": state}
    times = {"snapshot_due_at": _first_due(disk.schedule, now), "created_at": now, "changed_at": now}
    try:
        run(session, _INSERT, kept | times)
        if disk.paths:
            run(session, _INSERT_PATHS, [{"disk_id": disk.id, **path.model_dump()} for path in disk.paths])
    except IntegrityError as error:
        raise Conflict(
            f"another request just took the name, the IQN or an address of disk {disk.name}; try again", field="name"
        ) from error
    return disk


def get(session: Session, disk_id: str) -> DiskRow:
    row = session.get(DiskRow, disk_id)
    if row is None:
        raise NotFound(f"there is no disk {disk_id}", disk=disk_id)
    return row


def by_name(session: Session, name: str) -> DiskRow:
    row = session.scalars(select(DiskRow).where(DiskRow.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no disk {name}", disk=name)
    return row


def names(session: Session, ids: Sequence[str]) -> dict[str, str]:
    """The names of the disks that have these ids; an id that no disk has is left out."""
    return {row.id: row.name for row in session.execute(select(DiskRow.id, DiskRow.name).where(DiskRow.id.in_(ids)))}


def find(session: Session, disk: str) -> DiskRow:
    """By name or id. A name may look like an id, and then the name counts."""
    try:
        return by_name(session, disk)
    except NotFound:
        return get(session, disk)


def page(
    session: Session,
    *,
    marker: str | None = None,
    limit: int,
    name_contains: str | None = None,
    state: DiskState | None = None,
    access: Access | None = None,
) -> Sequence[DiskRow]:
    """By name, after the name `marker`, which need not exist any more."""
    query = select(DiskRow).order_by(DiskRow.name).limit(limit)
    if marker is not None:
        query = query.where(DiskRow.name > marker)
    if name_contains is not None:
        query = query.where(DiskRow.name.icontains(name_contains, autoescape=True))
    if state is not None:
        query = query.where(DiskRow.state == state.value)
    if access is not None:
        query = query.where(DiskRow.access == access.value)
    return session.scalars(query).all()


def started(session: Session) -> list[Disk]:
    """Every disk that should be served, by name."""
    query = select(DiskRow).where(DiskRow.started.is_(True), DiskRow.state == DiskState.STARTED.value)
    return [describe(row) for row in session.scalars(query.order_by(DiskRow.name))]


def paths(
    session: Session,
    *,
    after: tuple[str, int] | None = None,
    limit: int,
    disk: str | None = None,
    disk_contains: str | None = None,
    address: str | None = None,
) -> Sequence[PathRow]:
    """By the disk's name and the path's index, after the pair `after`; `disk` is a name or an id, and case counts for nothing in
    `disk_contains`."""
    query = select(PathRow).join(PathRow.disk).options(contains_eager(PathRow.disk))
    query = query.order_by(DiskRow.name, PathRow.index).limit(limit)
    if after is not None:
        query = query.where(tuple_(DiskRow.name, PathRow.index) > after)
    if disk is not None:
        query = query.where(or_(DiskRow.name == disk, DiskRow.id == disk))
    if disk_contains is not None:
        query = query.where(DiskRow.name.icontains(disk_contains, autoescape=True))
    if address is not None:
        query = query.where(PathRow.address == address)
    return session.scalars(query).all()


def describe(row: DiskRow) -> Disk:
    """The row as the model."""
    return Disk(
        id=row.id,
        name=row.name,
        iqn=row.iqn,
        size_bytes=row.size_bytes,
        access=Access(row.access),
        paths=tuple(
            Path(index=p.index, address=p.address, prefix_len=p.prefix_len, interface=p.interface, subnet=p.subnet)
            for p in row.paths
        ),
        initiators=tuple(row.initiators),
        allow_any=row.allow_any,
        chap=Chap.model_validate(row.chap) if row.chap else None,
        schedule=Schedule.model_validate(row.schedule) if row.schedule else None,
        started=row.started,
        revision=row.revision,
        presented_at=row.presented_at,
        generation=row.generation,
    )


def apply(
    session: Session,
    disk_id: str,
    event: DiskEvent,
    *,
    now: datetime,
    actor: str,
    operation_id: str | None,
    described: Disk | None = None,
    started: bool | None = None,
    revision: int | None = None,
) -> DiskRow:
    """Move the disk's state as its table says, and record that as the event "disk.<new state>".

    With what its image describes, or whether it is started and at which revision, where that has changed.
    `TransitionRefused` when the table has no such move; then nothing is changed.
    """
    row = session.get(DiskRow, disk_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no disk {disk_id}", disk=disk_id)
    before = row.state
    row.state = DISKS.next(DiskState(before), event).value
    row.changed_at = now
    if described is not None:
        row.started, row.generation = described.started, described.generation
        row.revision, row.presented_at = described.revision, described.presented_at
    if started is not None:
        row.started = started
    if revision is not None:
        row.revision = revision
    session.flush()
    events.append(
        session,
        f"disk.{row.state}",
        at=now,
        actor=actor,
        resource_id=disk_id,
        operation_id=operation_id,
        data={"name": row.name, "from": before, "to": row.state},
    )
    return row


def refuse_snapshot(row: DiskRow) -> None:
    """`TransitionRefused` where the disk does not rest, `InUse` where no snapshot parts its writes at one moment."""
    DISKS.next(DiskState(row.state), DiskEvent.SNAPSHOT)
    if row.started and row.access == Access.SHARED:
        raise InUse(
            f"disk {row.name} is served by several gateways at once, whose writes no snapshot parts at one moment; stop it first",
            disk=row.name,
        )


def changeable(row: DiskRow) -> dict[str, Any]:
    """What of the disk can be changed, as the row has it."""
    return {field: getattr(row, field) for field in _CHANGEABLE}


def change(session: Session, disk_id: str, wanted: Mapping[str, Any], *, now: datetime, actor: str, operation_id: str) -> DiskRow:
    """Index the disk as it is to be, in the transaction that submits the operation which makes it so, and record the event
    "disk.changing" with the names of what changes.

    `TransitionRefused` where it does not rest, `InvalidInput` when it would be smaller, `Conflict` when the name is taken.
    """
    row = get(session, disk_id)
    DISKS.next(DiskState(row.state), DiskEvent.CHANGE)
    if wanted.get("size_bytes", row.size_bytes) < row.size_bytes:
        raise InvalidInput.of(
            "size_bytes",
            f"is less than the {row.size_bytes} bytes that disk {row.name} has, and what is cut off is lost",
            "give a larger size; to make a disk smaller, create another and copy",
        )
    if wanted.get("name", row.name) != row.name:
        _refuse_name(session, wanted["name"])
    _put(session, row, wanted, now=now)
    events.append(
        session,
        "disk.changing",
        at=now,
        actor=actor,
        resource_id=disk_id,
        operation_id=operation_id,
        data={"name": row.name, "changes": sorted(wanted)},
    )
    return row


def changed(session: Session, disk: Disk, fields: Sequence[str], *, now: datetime, actor: str, operation_id: str | None) -> None:
    """Index the disk as its image describes it after a change of these fields, if they are known: "disk.changed"."""
    row = get(session, disk.id)
    described = disk.model_dump(include=set(_CHANGEABLE), mode="json")
    _put(session, row, described | {"revision": disk.revision, "presented_at": disk.presented_at}, now=now)
    data = {"name": row.name, "changes": sorted(fields)}
    events.append(session, "disk.changed", at=now, actor=actor, resource_id=disk.id, operation_id=operation_id, data=data)


def unchange(
    session: Session, disk_id: str, before: Mapping[str, Any], *, now: datetime, revision: int | None, restarts: bool = False
) -> None:
    """Index the disk as it was, at the revision that undoing has written on its image, if it came as far as that."""
    row = get(session, disk_id)
    written = {} if revision is None else {"revision": revision}
    if restarts:
        written |= {"presented_at": written.get("revision", row.presented_at)}
    _put(session, row, {**before, **written}, now=now)


def _put(session: Session, row: DiskRow, values: Mapping[str, Any], *, now: datetime) -> None:
    for field, value in values.items():
        setattr(row, field, value)
    if "schedule" in values:
        due, schedule = row.snapshot_due_at, describe(row).schedule
        first = _first_due(schedule, now)
        row.snapshot_due_at = min(due, first) if due and first else first
    row.changed_at = now
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"another request just took the name {row.name}; try again", field="name") from error


def due(session: Session, *, now: datetime, limit: int) -> Sequence[DiskRow]:
    """Disks that rest and of which a snapshot is due, longest overdue first; the rows stay locked until the transaction ends."""
    query = select(DiskRow).where(DiskRow.snapshot_due_at <= now, DiskRow.state.in_(_SNAPSHOT_STATES))
    return session.scalars(query.order_by(DiskRow.snapshot_due_at).limit(limit).with_for_update(skip_locked=True)).all()


def next_due(row: DiskRow, *, now: datetime) -> None:
    """The snapshot that was due is taken care of. The next is due on the same beat; what was missed is not made up for."""
    schedule, at = describe(row).schedule, row.snapshot_due_at
    assert schedule is not None, "nothing was due"
    assert at is not None, "nothing was due"
    missed = math.floor((now - at).total_seconds() / schedule.every_s)
    row.snapshot_due_at = at + timedelta(seconds=schedule.every_s * (missed + 1))


def _first_due(schedule: Schedule | None, now: datetime) -> datetime | None:
    return now + timedelta(seconds=schedule.every_s) if schedule else None


def forget(session: Session, disk_id: str, *, now: datetime, actor: str, operation_id: str | None) -> None:
    """The disk is gone: recorded as "disk.deleted"; its name, IQN and addresses are free again."""
    row = apply(session, disk_id, DiskEvent.DELETED, now=now, actor=actor, operation_id=operation_id)
    subnets.give_back(session, describe(row).paths)
    session.delete(row)
    session.flush()


def _refuse_name(session: Session, name: str) -> None:
    """`Conflict` when a disk has the name, or would have it again if its renaming were undone."""
    if session.scalars(select(DiskRow.id).where(DiskRow.name == name)).first() is not None:
        raise _named_so(name)
    _refuse_being_renamed(session, name)


def _named_so(name: str) -> Conflict:
    return Conflict(f"there is a disk {name} already; choose another name", field="name", name=name)


def _refuse_being_renamed(session: Session, name: str) -> None:
    for params in run(session, _CHANGES, {}).scalars():
        if params.get(BEFORE, {}).get("name") == name:
            raise Conflict(
                f"a disk {name} is being renamed, and keeps the name until that has ended; wait for it", field="name", name=name
            )


def _refuse_taken(session: Session, disk: Disk, *, other_iqn: bool) -> bool:
    """Whether the IQN is taken, which is no more than told with `other_iqn`."""
    holder = None
    for name, iqn in run(session, _ALIKE, {"name": disk.name, "iqn": disk.iqn}):
        if name == disk.name:
            raise _named_so(name)
        holder = name if iqn == disk.iqn else holder
    _refuse_being_renamed(session, disk.name)
    if holder is not None and not other_iqn:
        raise Conflict(f"{disk.iqn} is the IQN of disk {holder}; choose another", field="iqn", disk=holder)
    wanted = [path.address for path in disk.paths]
    taken = run(session, _HELD, {"addresses": wanted}).first()
    if taken is not None:
        address, name = taken
        raise Conflict(
            f"{address} is a path of disk {name}; give another address",
            field=f"addresses[{wanted.index(address)}]",
            disk=name,
            address=address,
        )
    return holder is not None
