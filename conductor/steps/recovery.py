"""Rebuilding the index of disks from what their images say of themselves: what is left when the records are lost.

An image that is indexed already is left alone; one that cannot be, since its name, its IQN or an address is another disk's, is
named with the reason. Nothing is changed on any image.
"""

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_interface
from typing import Any

import structlog
from sqlalchemy.orm import Session

from conductor.steps.base import Action, Context
from conductor.steps.descriptions import read
from sanderling.errors import ClaimLost, Conflict, NotFound, Problem, Unavailable
from sanderling.model.disks import Disk, DiskState, Path, image_of
from sanderling.model.subnets import Subnet
from sanderling.records import disks, events, operations, subnets
from sanderling.records.tables import DiskRow

log = structlog.get_logger(__name__)

_PREFIX = image_of("")


def recover(context: Context) -> None:
    """Index every described image that is not indexed; `Conflict`, naming each with its reason, when some cannot be."""
    refused: dict[str, str] = {}
    for image in context.stores.images.list():
        if not image.startswith(_PREFIX):
            continue
        context.check("the images to be read")
        try:
            _recover_one(context, image)
        except (Unavailable, ClaimLost):
            raise
        except Problem as problem:
            refused[image] = problem.detail
            log.error("not recovered", image=image, reason=problem.detail)
            _tell(context, image, "disk.not_recovered", {"image": image, "reason": problem.detail})
    if refused:
        said = "; ".join(f"{image}: {reason}" for image, reason in sorted(refused.items()))
        raise Conflict(f"{len(refused)} images were not recovered: {said}", images=sorted(refused))


def _recover_one(context: Context, image: str) -> None:
    found = read(context.stores.images, image)
    if found is None:
        return  # a disk that was being created, or an image of somebody else's
    disk = found[1]
    if disk.image != image:
        raise Conflict(f"its description is that of disk {disk.name}, whose image is {disk.image}")
    records = context.stores.records
    with records.begin() as session:
        if session.get(DiskRow, disk.id) is not None:
            return
    with context.effect("index"), records.begin() as session:
        if operations.is_deleted(session, disk.id):
            return  # while this read what its image said
        now, actor = records.now(), str(context.operation.claimed_by)
        for path in disk.paths:
            _recover_subnet(session, path, now=now, actor=actor)
        disks.insert(session, disk, now=now, state=_state(disk))
        events.append(
            session,
            "disk.recovered",
            at=now,
            actor=actor,
            resource_id=disk.id,
            operation_id=context.operation.id,
            data={"name": disk.name, "state": _state(disk).value},
        )
    context.tell()


def _state(disk: Disk) -> DiskState:
    if disk.rolling_back_to:
        return DiskState.FAILED
    return DiskState.STARTED if disk.started else DiskState.STOPPED


def _recover_subnet(session: Session, path: Path, *, now: datetime, actor: str) -> None:
    """Only the network of a path is known: the pool of its subnet becomes all of it, for a person to narrow down."""
    network = ip_interface(f"{path.address}/{path.prefix_len}").network
    try:
        known = subnets.get(session, path.subnet)
    except NotFound:
        hosts = network if network.num_addresses <= 2 else None
        first = network[0] if hosts else network[1]
        last = network[-1] if hosts or network.version == 6 else network[-2]
        subnet = Subnet(name=path.subnet, cidr=str(network), interface=path.interface, pool_first=str(first), pool_last=str(last))
        subnets.insert(session, subnet, now=now, actor=actor)
        return
    if known.network != network:
        raise Conflict(f"path {path.address} is in {network}, but subnet {path.subnet} is {known.cidr} now")


def _tell(context: Context, image: str, kind: str, data: Mapping[str, Any]) -> None:
    records, operation = context.stores.records, context.operation
    source_id = f"{operation.id} {image[-24:]}"
    with records.begin() as session:
        if not events.is_recorded(session, source_id):
            events.append(
                session,
                kind,
                at=records.now(),
                actor=str(operation.claimed_by),
                operation_id=operation.id,
                data=data,
                source_id=source_id,
            )


RECOVER = Action(recover, effects=("index",))
