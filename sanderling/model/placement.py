"""Which gateway should take which free export: pure, and the same answer on every node that has seen the same prefix."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from sanderling.model.exports import ExportId, Gateway


def place(
    free: Sequence[ExportId],
    gateways: Mapping[str, Gateway],
    owners: Mapping[ExportId, str],
    *,
    passed_over: Mapping[ExportId, Collection[str]] | None = None,
) -> dict[ExportId, str]:
    """A gateway for each free export that any may take: where it still runs, siblings apart, then evenest, then a stable hash.

    `owners` names the gateway of every export that is held. A gateway that is withdrawing, that refused an export, or that was
    passed over for it gets none of it, unless nobody else is left for one that was merely passed over.
    """
    load = Counter(owners.values())
    siblings = Counter((export.disk_id, node) for export, node in owners.items())
    placed: dict[ExportId, str] = {}
    for export in sorted(free):
        able = [name for name, gateway in gateways.items() if not gateway.withdrawing and str(export) not in gateway.refused]
        skipped = (passed_over or {}).get(export, ())
        candidates = [name for name in able if name not in skipped] or able
        if not candidates:
            continue
        chosen = min(candidates, key=lambda name: _rank(export, gateways[name], siblings, load))
        placed[export] = chosen
        load[chosen] += 1
        siblings[export.disk_id, chosen] += 1
    return placed


def _rank(
    export: ExportId, gateway: Gateway, siblings: Mapping[tuple[str, str], int], load: Mapping[str, int]
) -> tuple[bool, int, int, bytes]:
    return (
        str(export) not in gateway.running,
        siblings[export.disk_id, gateway.name],
        load[gateway.name],
        hashlib.sha256(f"{export}@{gateway.name}".encode()).digest(),
    )
