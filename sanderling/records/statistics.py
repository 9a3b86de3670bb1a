"""Samples: a rolling window of what the leader has measured, and averages that reach further back."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.orm import Session

from sanderling.model.statistics import EXPORTS, GATEWAYS, Figures, Sample, average, slot
from sanderling.records.tables import SampleRow

FINE: Final = 0  # `span_s` of what was measured; averages have the seconds that they are over


def record(session: Session, samples: Iterable[Sample]) -> set[str]:
    """Store samples of one slot; the resources that were stored. One that another leader has measured in it stays as it is."""
    wanted = {sample.resource: sample for sample in samples}
    slots = {sample.at for sample in wanted.values()}
    assert len(slots) <= 1, "samples of several slots"
    there = select(SampleRow.resource).where(SampleRow.span_s == FINE, SampleRow.at.in_(slots))
    for resource in session.scalars(there):
        wanted.pop(resource, None)
    session.add_all(
        SampleRow(span_s=FINE, at=sample.at, resource=sample.resource, figures=dict(sample.figures)) for sample in wanted.values()
    )
    session.flush()
    return set(wanted)


def page(
    session: Session,
    *,
    since: datetime,
    span_s: int,
    limit: int,
    after: tuple[datetime, str] | None = None,
    resource: str | None = None,
) -> list[Sample]:
    """Oldest first, from `since` on, behind `after`; of one resource, or of all below it when it ends with "/"."""
    query = select(SampleRow).where(SampleRow.span_s == span_s, SampleRow.at >= since)
    if resource is not None and resource.endswith("/"):
        query = query.where(SampleRow.resource.startswith(resource, autoescape=True))
    elif resource is not None:
        query = query.where(SampleRow.resource == resource)
    if after is not None:
        query = query.where(tuple_(SampleRow.at, SampleRow.resource) > tuple_(*after))
    rows = session.scalars(query.order_by(SampleRow.at, SampleRow.resource).limit(limit))
    return [_sample(row) for row in rows]


def gateways(session: Session) -> Mapping[str, Figures]:
    """The newest figures of every gateway that was ever measured and is still in the window, by name."""
    newest = (
        select(SampleRow.resource, func.max(SampleRow.at).label("at"))
        .where(SampleRow.span_s == FINE, SampleRow.resource.startswith(GATEWAYS))
        .group_by(SampleRow.resource)
        .subquery()
    )
    query = select(SampleRow).join(newest, (SampleRow.resource == newest.c.resource) & (SampleRow.at == newest.c.at))
    rows = session.scalars(query.where(SampleRow.span_s == FINE))
    return {row.resource.removeprefix(GATEWAYS): row.figures for row in rows}


def thin(session: Session, *, coarse_s: int, now: datetime) -> bool:
    """Average the oldest slot that is over and has no average yet; whether there was one. Exports have none."""
    done = session.scalar(select(func.max(SampleRow.at)).where(SampleRow.span_s == coarse_s))
    fine = select(func.min(SampleRow.at)).where(SampleRow.span_s == FINE, ~SampleRow.resource.startswith(EXPORTS))
    if done is not None:
        fine = fine.where(SampleRow.at >= done + timedelta(seconds=coarse_s))
    first = session.scalar(fine)
    if first is None:
        return False
    begin = slot(first, coarse_s)
    end = begin + timedelta(seconds=coarse_s)
    if end > now:
        return False
    measured = select(SampleRow).where(SampleRow.span_s == FINE, SampleRow.at >= begin, SampleRow.at < end)
    by_resource: dict[str, list[Figures]] = {}
    for row in session.scalars(measured.where(~SampleRow.resource.startswith(EXPORTS)).order_by(SampleRow.at)):
        by_resource.setdefault(row.resource, []).append(row.figures)
    session.add_all(
        SampleRow(span_s=coarse_s, at=begin, resource=resource, figures=dict(average(figures)))
        for resource, figures in by_resource.items()
    )
    session.flush()
    return True


def prune(session: Session, *, fine_before: datetime, coarse_before: datetime, limit: int) -> int:
    """Drop the oldest of those that are older than their bound, some `limit` of each kind (a slot goes whole); how many."""
    dropped = 0
    for is_kind, before in ((SampleRow.span_s == FINE, fine_before), (SampleRow.span_s > FINE, coarse_before)):
        is_old = is_kind & (SampleRow.at < before)
        last = session.scalar(select(SampleRow.at).where(is_old).order_by(SampleRow.at).offset(limit - 1).limit(1))
        gone = delete(SampleRow).where(is_old if last is None else is_old & (SampleRow.at <= last))
        dropped += session.execute(gone).rowcount  # type: ignore[attr-defined]
    return dropped


def _sample(row: SampleRow) -> Sample:
    return Sample(row.at, row.resource, row.figures)
