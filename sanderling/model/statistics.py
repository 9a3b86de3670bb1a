"""What the leader measures: figures of one resource in one slot of time, and how many of them become one average."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

CLUSTER: Final = "cluster"
GATEWAYS: Final = "gateway/"
EXPORTS: Final = "export/"

Figure = int | float | bool | str | None
Figures = Mapping[str, Figure]


class Sample(NamedTuple):
    """`resource` is "cluster", "gateway/NAME" or "export/DISK_ID/INDEX"."""

    at: datetime
    resource: str
    figures: Figures


def slot(at: datetime, span_s: float) -> datetime:
    """The beginning of the slot of time that holds this moment; the same for every process."""
    return datetime.fromtimestamp(math.floor(at.timestamp() / span_s) * span_s, UTC)


def average(figures: Sequence[Figures]) -> Figures:
    """Numbers are averaged over those that are known; of everything else the last counts."""
    assert figures, "an average of nothing"
    made: dict[str, Figure] = {}
    for name, last in figures[-1].items():
        numbers = [value for one in figures if isinstance(value := one.get(name), int | float) and not isinstance(value, bool)]
        made[name] = round(math.fsum(numbers) / len(numbers), 3) if numbers and not isinstance(last, bool | str) else last
    return made
