"""What a worker measures of itself and of the exports of its node. Nothing is labelled by export: there may be a thousand."""

import math
from collections import Counter as Tally
from collections.abc import Collection
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

from iscsi_worker.view import View
from sanderling.model.exports import Epoch, ExportId, ExportPhase

_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_LEFT_S: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 10.0, 30.0)

EXPORTS = Gauge("sanderling_worker_exports", "Exports that this node has locked, by what it says of them", ["phase"])
LOCK_AGE = Gauge(
    "sanderling_worker_lock_age_seconds", "How long the one among them that is longest in that phase has been in it", ["phase"]
)
PROCESSES = Gauge("sanderling_worker_processes", "Target processes that run on this node")
REFUSED = Gauge("sanderling_worker_refused", "Exports that this worker stands back from after it failed to take them")
CUT_OFF = Gauge(
    "sanderling_worker_cut_off", "1 for each network interface, and for image-store, that this node is cut off on", ["at"]
)
CLAIMED = Gauge("sanderling_worker_addresses_claimed", "Addresses served here that another machine answers for as well")
LEASE_LEFT = Gauge(
    "sanderling_worker_lease_left_seconds", "What is left of the shortest lease after all were extended; NaN for none"
)
LEASE_MARGIN = Histogram(
    "sanderling_worker_lease_margin_seconds", "What was left of a lease at the moment it was extended", buckets=_LEFT_S
)
TURN_SECONDS = Histogram("sanderling_worker_turn_seconds", "One turn of the reconcile loop", buckets=_SECONDS)
ACTION_SECONDS = Histogram(
    "sanderling_worker_action_seconds", "One action on one export, such as taking it", ["action", "result"], buckets=_SECONDS
)
FENCE_SECONDS = Histogram("sanderling_worker_fence_seconds", "Fencing one client", ["result"], buckets=_SECONDS)
GAP_SECONDS = Histogram(
    "sanderling_worker_gap_seconds",
    "How long operations of an export waited, as this node saw it: failover and restart from when it saw that nobody serves, "
    "move from the closing of its own gate, move_heir from getting the lock, kept for a move that came to nothing",
    ["kind"],
    buckets=_SECONDS,
)
SEEN = Counter("sanderling_worker_reports", "What this worker reported of exports", ["seen"])
REPORTS_WAITING = Gauge("sanderling_worker_reports_waiting", "Reports that the broker has yet to take")
REPORTS_DROPPED = Counter("sanderling_worker_reports_dropped", "Reports dropped because the broker was away for too long")

_KINDS: Final = {
    ("served", "failover"): "failover",
    ("served", "restart"): "restart",
    ("served", "move"): "move_heir",
    ("handed_on", None): "move",
}
# There from the start, so that the first one counts as an increase.
for _kind in (*_KINDS.values(), "kept"):
    GAP_SECONDS.labels(_kind)
for _result in ("done", "unavailable"):
    FENCE_SECONDS.labels(_result)


class Locks:
    """Since when each export is locked here and in its present phase; tells the two gauges by phase."""

    def __init__(self) -> None:
        self._since: dict[ExportId, tuple[Epoch, ExportPhase, float]] = {}

    def look(self, view: View, exports: Collection[ExportId], *, now: float) -> None:
        since = {}
        for export in exports:
            value = view.exports[export].export
            before = self._since.get(export)
            same = before is not None and before[:2] == (value.epoch, value.phase)
            since[export] = before if before is not None and same else (value.epoch, value.phase, now)
        self._since = since
        counts = Tally(phase for _, phase, _ in since.values())
        for phase in ExportPhase:
            EXPORTS.labels(phase).set(counts[phase])
            LOCK_AGE.labels(phase).set(max((now - at for _, which, at in since.values() if which is phase), default=0.0))


class CutOff:
    """What this node is cut off on. What goes on is never out of sight in between, or an alert would end and begin again."""

    def __init__(self) -> None:
        self._interfaces: frozenset[str] = frozenset()

    def look(self, interfaces: Collection[str], *, image_store: bool) -> None:
        CUT_OFF.labels("image-store").set(image_store)
        for name in interfaces:
            CUT_OFF.labels(name).set(1)
        for name in self._interfaces - set(interfaces):
            CUT_OFF.remove(name)
        self._interfaces = frozenset(interfaces)


def show_leases(left_s: Collection[float]) -> None:
    LEASE_LEFT.set(min(left_s, default=math.nan))


def count_report(seen: str, detail: dict[str, Any]) -> None:
    """A report as it is made, and the gap in service that it tells of."""
    SEEN.labels(seen).inc()
    gap_s = detail.get("gap_s")
    if isinstance(gap_s, float):
        GAP_SECONDS.labels(_KINDS.get((seen, detail.get("kind")), seen)).observe(gap_s)
