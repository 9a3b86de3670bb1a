"""/v1/statistics: what the leader has measured, oldest first."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from api import rules
from api.auth import Allowed, Caller
from api.context import ContextOf
from api.pages import PageOf
from sanderling.errors import InvalidInput
from sanderling.model.statistics import CLUSTER, EXPORTS, GATEWAYS, Sample
from sanderling.records import disks, statistics
from sanderling.records.tables import DiskRow

router = APIRouter(tags=["statistics"])

_DISKS = "disk/"
_SINCE_DEFAULT = timedelta(hours=1)


@router.get("/v1/statistics")
def index(
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("statistics:read"))],
    page: PageOf,
    since: Annotated[rules.Moment | None, Query(description="With its zone; an hour ago when it is not given")] = None,
    resource: Annotated[
        str | None,
        Query(max_length=300, description="cluster, gateway/, gateway/NAME, disk/NAME, export/ or export/DISK_ID/INDEX"),
    ] = None,
    resolution: Annotated[
        Literal["fine", "coarse"], Query(description="as measured, or averages over [statistics] coarse_s, without exports")
    ] = "fine",
) -> dict[str, Any]:
    """Samples by time and resource. A slot of time without one was not measured: nobody led then."""
    after = None if page.marker is None else _position(page.marker)
    options = context.settings.statistics
    with context.records.read() as session:
        found = statistics.page(
            session,
            since=since or context.clock.wall() - _SINCE_DEFAULT,
            span_s=statistics.FINE if resolution == "fine" else options.coarse_s,
            limit=page.limit,
            after=after,
            resource=_resource(session, resource),
        )
        names = _names(session, found)
    rows = [_show(sample, names) for sample in found]
    return page.of("statistics", rows, marker=f"{rows[-1]['at']} {found[-1].resource}" if rows else None)


def _resource(session: Session, asked: str | None) -> str | None:
    if asked is None or asked == CLUSTER or asked.startswith((GATEWAYS, EXPORTS)):
        return asked
    if asked.startswith(_DISKS):
        return f"{EXPORTS}{disks.find(session, asked.removeprefix(_DISKS)).id}/"
    raise InvalidInput.of(
        "resource", "is nothing that is measured", "give cluster, gateway/NAME, disk/NAME or export/DISK_ID/INDEX"
    )


def _position(marker: str) -> tuple[datetime, str]:
    at, _, resource = marker.partition(" ")
    try:
        moment = rules.moment(datetime.fromisoformat(at))
    except ValueError:
        moment = None
    if moment is None or not resource:
        raise InvalidInput.of("marker", "is not from the next link of a page", "follow the link as it is")
    return moment, resource


def _disk_id(sample: Sample) -> str | None:
    return sample.resource.removeprefix(EXPORTS).partition("/")[0] if sample.resource.startswith(EXPORTS) else None


def _names(session: Session, found: Sequence[Sample]) -> dict[str, str]:
    """Of the disks that are still there."""
    wanted = {disk_id for sample in found if (disk_id := _disk_id(sample))}
    rows = session.execute(select(DiskRow.id, DiskRow.name).where(DiskRow.id.in_(wanted))) if wanted else ()
    return {row.id: row.name for row in rows}


def _show(sample: Sample, names: dict[str, str]) -> dict[str, Any]:
    at = sample.at.isoformat().replace("+00:00", "Z")
    return {"at": at, "resource": sample.resource, "disk": names.get(_disk_id(sample) or ""), "figures": dict(sample.figures)}
