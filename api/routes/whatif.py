"""/v1/whatif and /v1/score: what the loss of gateways would do, before it happens."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api import situations
from api.auth import Allowed, Caller
from api.context import ContextOf
from api.situations import NAMED_MAX, Seen
from sanderling.errors import InvalidInput
from sanderling.model import balance

router = APIRouter(tags=["assignments"])
Reading = Annotated[Caller, Depends(Allowed("assignment:read"))]


@router.get("/v1/whatif")
def whatif(
    context: ContextOf,
    _caller: Reading,
    lose: Annotated[list[str], Query(min_length=1, max_length=1000, description="A gateway to lose; repeatable")],
) -> dict[str, Any]:
    """Who would take over what if these gateways died now, and what would be left badly served or not at all."""
    seen = situations.look(context)
    errors = [
        {
            "field": f"lose[{number}]",
            "rule": f"no live gateway is called {name[:64]}",
            "fix": f"choose among: {', '.join(sorted(seen.layout.gateways)) or 'none lives'}",
        }
        for number, name in enumerate(lose)
        if name not in seen.layout.gateways
    ]
    if errors:
        raise InvalidInput.of_all(errors)
    found = balance.lose(seen.layout, frozenset(lose))
    return {
        "lose": sorted(set(lose)),
        "moves": {"count": len(found.moves), "first": [_move(seen, move) for move in found.moves[:NAMED_MAX]]},
        "before": situations.show_distribution(balance.distribution(seen.layout)),
        "after": situations.show_distribution(found.distribution),
        "unserved": situations.show_unserved(seen, found.unserved),
        "one_path": _disks(seen, found.one_path),
        "sharing": _disks(seen, found.sharing),
    }


@router.get("/v1/score")
def score(context: ContextOf, _caller: Reading) -> dict[str, Any]:
    """The standing N-1 score: whether any one gateway may be lost without a path staying down."""
    seen = situations.look(context)
    return situations.show_score(seen, balance.score(seen.layout))


def _move(seen: Seen, move: balance.PlannedMove) -> dict[str, Any]:
    return situations.show_export(seen, move.export) | {"from": move.source, "to": move.destination}


def _disks(seen: Seen, disk_ids: tuple[str, ...]) -> dict[str, Any]:
    return {"count": len(disk_ids), "disks": [seen.disk_name(disk_id) for disk_id in disk_ids[:NAMED_MAX]]}
