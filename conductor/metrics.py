"""What a conductor measures of itself and of the operations it drives."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from sanderling.model.operations import OPERATIONS, OperationKind

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)

ENDED = Counter("sanderling_operations_ended", "Operations that this conductor brought to an end", ["kind", "state"])
OPERATION_SECONDS = Histogram(
    "sanderling_operation_seconds", "From when an operation was asked for to its end", ["kind"], buckets=_SECONDS
)
QUEUED_SECONDS = Histogram(
    "sanderling_operation_queued_seconds", "From when an operation was asked for until a conductor began it", buckets=_SECONDS
)
STEP_SECONDS = Histogram(
    "sanderling_step_seconds",
    "One attempt at a step, or (way: undo) at undoing it",
    ["step", "way", "result"],
    buckets=_SECONDS,
)
CLAIMS = Counter("sanderling_conductor_claims", "Operations that this conductor tried to claim", ["result"])
SWEPT = Counter("sanderling_conductor_swept", "Operations that sweeps found with nobody at work on them")
DRIVEN = Gauge("sanderling_conductor_driven", "Operations that this conductor has claimed now")
CLAIM_AGE = Gauge("sanderling_conductor_claim_age_seconds", "How long it has had the one among them that it has had longest")
COMPARE_SECONDS = Histogram(
    "sanderling_conductor_compare_seconds", "One comparison of coordination with the records", ["result"], buckets=_SECONDS
)
REPAIRS = Counter("sanderling_conductor_repairs", "Disks whose keys in coordination were not what they should be", ["what"])
FENCE_SECONDS = Histogram("sanderling_conductor_fence_seconds", "Fencing the clients of one export", ["result"])

# There from the start, so that the first one counts as an increase.
for _kind in OperationKind:
    for _state in OPERATIONS.rest:
        ENDED.labels(_kind, _state)
for _what in ("published_again", "cleared_away", "told_to_stop", "fenced"):
    REPAIRS.labels(_what)
for _result in ("done", "unavailable"):
    FENCE_SECONDS.labels(_result)
    COMPARE_SECONDS.labels(_result)
