"""Which gateway should take which free export: pure, and the same answer on every node that has seen the same prefix."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from sanderling.model.exports import ExportId, Gateway
from sanderling.model.marks import Marks


def place(
    free: Sequence[ExportId],
    gateways: Mapping[str, Gateway],
    owners: Mapping[ExportId, str],
    *,
    load: Mapping[str, int] | None = None,
    passed_over: Mapping[ExportId, Collection[str]] | None = None,
    preferred: Mapping[ExportId, str] | None = None,
    marks: Marks | None = None,
) -> dict[ExportId, str]:
    """A gateway for each free export that any may take: where a move or a mark wants it, where it still runs, siblings apart,
    then evenest, then a stable hash.

    `owners` names the gateway of every export that is held, or, when `load` says how many each gateway has, at least of the free
    ones' siblings. `preferred` is the gateway that a move had in mind for a free one. A gateway that is withdrawing or that
    refused an export gets none of it; one that was passed over for it, or that a mark speaks against, only when nobody else is
    left.
    """
    marks = marks or Marks()
    load = Counter(owners.values() if load is None else load)
    siblings = Counter((export.disk_id, node) for export, node in owners.items())
    placed: dict[ExportId, str] = {}
    for export in sorted(free):
        able = [name for name, gateway in gateways.items() if not gateway.withdrawing and str(export) not in gateway.refused]
        skipped = (passed_over or {}).get(export, ())
        fresh = [name for name in able if name not in skipped]
        candidates = marks.welcome(export.disk_id, fresh) or fresh or marks.welcome(export.disk_id, able) or able
        if not candidates:
            continue
        wanted = ((preferred or {}).get(export), marks.pins.get(export.disk_id))
        chosen = min(candidates, key=lambda name: _rank(export, gateways[name], wanted, siblings, load))
        placed[export] = chosen
        load[chosen] += 1
        siblings[export.disk_id, chosen] += 1
    return placed


def _rank(
    export: ExportId,
    gateway: Gateway,
    wanted: tuple[str | None, str | None],
    siblings: Mapping[tuple[str, str], int],
    load: Mapping[str, int],
) -> tuple[bool, bool, bool, int, int, bytes]:
    by_move, by_pin = wanted
    return (
        gateway.name != by_move,
        str(export) not in gateway.running,
        gateway.name != by_pin,
        siblings[export.disk_id, gateway.name],
        load[gateway.name],
        hashlib.sha256(f"{export}@{gateway.name}".encode()).digest(),
    )
