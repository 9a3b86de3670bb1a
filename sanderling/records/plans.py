"""Plans of moves that were shown and can still be applied, each with the layout that it was made from."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import delete
from sqlalchemy.orm import Session

from sanderling.errors import NotFound, PlanOutdated
from sanderling.model.balance import Layout
from sanderling.model.exports import ExportId
from sanderling.model.moves import Move
from sanderling.records.tables import PlanRow


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """`request` is what was asked for, as it was sent; `moves` are what an operation that applies the plan begins with."""

    id: str
    request: Mapping[str, Any]
    layout: Layout
    moves: tuple[Move, ...]


def insert(
    session: Session,
    *,
    request: Mapping[str, Any],
    layout: Layout,
    moves: Sequence[Move],
    now: datetime,
    keep_s: float,
) -> str:
    """Keep a plan and drop those older than `keep_s`; the new one's id."""
    session.execute(delete(PlanRow).where(PlanRow.created_at < now - timedelta(seconds=keep_s)))
    plan_id = str(uuid4())
    session.add(
        PlanRow(
            id=plan_id,
            request=dict(request),
            layout=_layout_out(layout),
            moves={"moves": [move.model_dump(mode="json") for move in moves]},
            created_at=now,
        )
    )
    return plan_id


def get(session: Session, plan_id: str, *, now: datetime, keep_s: float) -> StoredPlan:
    """`PlanOutdated` for one older than `keep_s`; `NotFound` for one that was never made, or has been dropped since."""
    row = session.get(PlanRow, plan_id)
    if row is None:
        raise NotFound(f"there is no plan {plan_id[:64]}, or it is too old; plan again", plan_id=plan_id[:64])
    if row.created_at < now - timedelta(seconds=keep_s):
        raise PlanOutdated(
            f"plan {plan_id} is older than the {keep_s:g} s for which a plan can be applied; plan again",
            plan_id=plan_id,
            changes=[],
        )
    return StoredPlan(
        id=row.id,
        request=row.request,
        layout=_layout_in(row.layout),
        moves=tuple(Move.model_validate(move) for move in row.moves["moves"]),
    )


def _layout_out(layout: Layout) -> dict[str, Any]:
    """Exports are grouped by their owner ("" for nobody), so that a gateway's name is not written for each of them."""
    owners: dict[str, list[str]] = defaultdict(list)
    for export, owner in sorted(layout.owners.items()):
        owners[owner or ""].append(str(export))
    return {
        "owners": owners,
        "gateways": sorted(layout.gateways),
        "drained": sorted(layout.drained),
        "pins": dict(layout.pins),
        "avoid": {disk_id: sorted(names) for disk_id, names in layout.avoid.items()},
    }


def _layout_in(stored: Mapping[str, Any]) -> Layout:
    return Layout(
        owners={_export(text): owner or None for owner, exports in stored["owners"].items() for text in exports},
        gateways=frozenset(stored["gateways"]),
        drained=frozenset(stored["drained"]),
        pins=dict(stored["pins"]),
        avoid={disk_id: frozenset(names) for disk_id, names in stored["avoid"].items()},
    )


def _export(text: str) -> ExportId:
    disk_id, _, index = text.rpartition("/")
    return ExportId(disk_id, int(index))
