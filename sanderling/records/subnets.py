"""The subnets, and which of their addresses a new disk gets."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from ipaddress import ip_address, ip_network
from itertools import chain, islice, repeat
from typing import Any, Final

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sanderling.errors import Conflict, Exhausted, InUse, InvalidInput, NotFound
from sanderling.model.disks import Path
from sanderling.model.subnets import Subnet
from sanderling.records import events
from sanderling.records.statements import run
from sanderling.records.tables import PathRow, SubnetRow

_ALL: Final = select(*SubnetRow.__table__.columns).order_by(SubnetRow.name).with_for_update()
_NAMED: Final = _ALL.where(SubnetRow.name.in_(bindparam("names", expanding=True)))
_COUNTS: Final = (
    select(PathRow.subnet, func.count().label("number"))
    .where(PathRow.subnet.in_(bindparam("names", expanding=True)))
    .group_by(PathRow.subnet)
)
_TAKEN: Final = select(PathRow.address).where(PathRow.address.in_(bindparam("addresses", expanding=True)))
_KEEP: Final = update(SubnetRow).where(SubnetRow.name == bindparam("subnet")).values(free_from=bindparam("address"))
_LOOK_AT: Final = 8, 64, 512


def insert(session: Session, subnet: Subnet, *, now: datetime, actor: str) -> None:
    """Add a subnet; `Conflict` when its name is taken or it overlaps another."""
    for row in session.scalars(select(SubnetRow)):
        if row.name == subnet.name:
            raise Conflict(f"there is a subnet {row.name} already; choose another name", field="name", name=row.name)
        if _overlap(row.cidr, subnet.cidr):
            raise Conflict(
                f"{subnet.cidr} overlaps {row.cidr} of subnet {row.name}; choose another cidr", field="cidr", subnet=row.name
            )
    session.add(SubnetRow(**subnet.model_dump(), created_at=now))
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"the subnet {subnet.name} or its cidr was just added by another request", field="name") from error
    events.append(session, "subnet.created", at=now, actor=actor, resource_id=subnet.name, data=subnet.model_dump())


def get(session: Session, name: str) -> Subnet:
    row = session.get(SubnetRow, name)
    if row is None:
        raise NotFound(f"there is no subnet {name}", name=name)
    return _describe(row)


def page(session: Session, *, marker: str | None = None, limit: int) -> list[Subnet]:
    """By name, after `marker`."""
    query = select(SubnetRow).order_by(SubnetRow.name).limit(limit)
    if marker is not None:
        query = query.where(SubnetRow.name > marker)
    return [_describe(row) for row in session.scalars(query)]


def remove(session: Session, name: str, *, now: datetime, actor: str) -> None:
    """Remove a subnet that no path uses; `InUse` names a disk otherwise."""
    row = session.get(SubnetRow, name, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no subnet {name}", name=name)
    path = session.scalars(select(PathRow).where(PathRow.subnet == name).limit(1)).first()
    if path is not None:
        raise InUse(
            f"subnet {name} carries {path.address} of disk {path.disk.name}; delete the disks that use it first",
            disk=path.disk.name,
            address=path.address,
        )
    session.delete(row)
    session.flush()
    events.append(session, "subnet.deleted", at=now, actor=actor, resource_id=name)


def allocate(session: Session, count: int, *, names: Sequence[str] | None = None) -> tuple[Path, ...]:
    """The lowest addresses that were never used or were given back, for `count` paths: siblings on as many subnets as there are.

    `names` limits the choice. `Exhausted` when the pools hold too few. Call it in the transaction that inserts the disk:
    the subnets stay locked until it ends.
    """
    rows = _chosen(session, names)
    subnets = [_describe(row) for row in rows]
    if not subnets:
        raise Exhausted("there is no subnet to take an address from; add one (POST /v1/subnets) or give addresses")
    taken = _count_taken(session, subnets)
    free = {row.name: _free(session, row) for row in rows}
    siblings: Counter[str] = Counter()
    paths: list[Path] = []
    for index in range(1, count + 1):
        for subnet in sorted(subnets, key=lambda subnet: (siblings[subnet.name], taken[subnet.name], subnet.name)):
            address = next(free[subnet.name], None)
            if address is not None:
                break
        else:
            asked = ", ".join(subnet.name for subnet in subnets)
            raise Exhausted(
                f"no address is free for path {index} of {count} in {asked}; widen a pool or add a subnet",
                subnets=[subnet.name for subnet in subnets],
            )
        taken[subnet.name] += 1
        siblings[subnet.name] += 1
        paths.append(_path(index, address, subnet))
    return tuple(paths)


def give_back(session: Session, paths: Sequence[Path]) -> None:
    """The addresses of these paths, which are being removed, can be taken again."""
    for path in paths:
        row = session.get_one(SubnetRow, path.subnet)
        first, free_from, address = row.pool_first, row.free_from or row.pool_first, path.address
        if int(ip_address(first)) <= int(ip_address(address)) < int(ip_address(free_from)):
            row.free_from = address


def place(session: Session, addresses: Sequence[str], *, names: Sequence[str] | None = None) -> tuple[Path, ...]:
    """Paths on the addresses that were asked for, each of which must be a host's address of one of the subnets."""
    subnets = [_describe(row) for row in _chosen(session, names)]
    where = f"the subnets {', '.join(names)}" if names else "any subnet"
    paths: list[Path] = []
    for index, given in enumerate(addresses, start=1):
        address, field = str(ip_address(given)), f"addresses[{index - 1}]"
        subnet = next((subnet for subnet in subnets if subnet.holds(address)), None)
        if subnet is None:
            raise InvalidInput.of(field, f"{address} is not in {where}", "give an address of a subnet that GET /v1/subnets lists")
        if any(path.address == address for path in paths):
            raise InvalidInput.of(field, f"{address} is given twice", "give each path an address of its own")
        if not is_host(subnet, address):
            raise InvalidInput.of(
                field, f"{address} is the network or broadcast address of {subnet.cidr}", "give a host's address"
            )
        paths.append(_path(index, address, subnet))
    return tuple(paths)


def is_host(subnet: Subnet, address: str) -> bool:
    """Whether a machine may have this address of the subnet."""
    network, asked = subnet.network, ip_address(address)
    if network.num_addresses <= 2:
        return asked in network
    first = asked == network.network_address
    last = network.version == 4 and asked == network.broadcast_address
    return asked in network and not first and not last


def _chosen(session: Session, names: Sequence[str] | None) -> Sequence[Row[*tuple[Any, ...]]]:
    """Their rows, which stay locked until the transaction ends."""
    if names is None:
        return run(session, _ALL, {}).all()
    rows = run(session, _NAMED, {"names": names}).all()
    for position, name in enumerate(names):
        if all(row.name != name for row in rows):
            raise InvalidInput.of(f"subnets[{position}]", f"there is no subnet {name}", "name one that GET /v1/subnets lists")
    return rows


def _count_taken(session: Session, subnets: Sequence[Subnet]) -> Counter[str]:
    """How many addresses of each are taken, where that makes a difference."""
    if len(subnets) == 1:
        return Counter()
    counts = run(session, _COUNTS, {"names": [subnet.name for subnet in subnets]})
    return Counter({row.subnet: row.number for row in counts})


def _free(session: Session, row: Row[*tuple[Any, ...]]) -> Iterator[str]:
    """The pool's free addresses, from where the last search ended, looked for among a few at first and then among ever more.

    Where none of the few is free, the next search begins at the one that was found.
    """
    pool, known = _describe(row).pool(first=row.free_from), False
    for number in chain(_LOOK_AT, repeat(_LOOK_AT[-1])):
        some = list(islice(pool, number))
        if not some:
            return
        taken = set(run(session, _TAKEN, {"addresses": some}).scalars().all())
        found = [address for address in some if address not in taken]
        if found and not known and number != _LOOK_AT[0]:
            run(session, _KEEP, {"subnet": row.name, "address": found[0]})
        known = known or bool(found)
        yield from found


def _path(index: int, address: str, subnet: Subnet) -> Path:
    return Path(
        index=index,
        address=address,
        prefix_len=subnet.network.prefixlen,
        interface=subnet.interface,
        subnet=subnet.name,
    )


def _overlap(one: str, other: str) -> bool:
    a, b = ip_network(one), ip_network(other)
    if a.version == 4:
        return b.version == 4 and a.overlaps(b)
    return b.version == 6 and a.overlaps(b)


def _describe(row: SubnetRow | Row[*tuple[Any, ...]]) -> Subnet:
    return Subnet(name=row.name, cidr=row.cidr, interface=row.interface, pool_first=row.pool_first, pool_last=row.pool_last)
