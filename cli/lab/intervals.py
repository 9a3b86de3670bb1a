"""C2: when which Ceph client could write to an export, from the workers' own logs, and whether two ever could at once.

The times are CLOCK_MONOTONIC, one clock for all namespaces of a host. A gate is open from the moment before it is opened until it
was closed and drained, its client was fenced, or its process ended: whichever was first.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOREVER = float("inf")


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    opened: float
    closed: float
    client: str
    node: str


def intervals(logs: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, list[Interval]]:
    """By export, in order of time; `logs` has each worker's log by its node."""
    opened: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    closed: dict[tuple[str, str], list[float]] = defaultdict(list)
    fenced: dict[tuple[str, str], float] = {}
    ended: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node, entries in logs.items():
        for entry in entries:
            export, at = str(entry.get("export", "")), float(entry.get("at") or 0.0)
            match entry.get("event"):
                case "gate opened":
                    opened[export].append((at, entry["client"], node))
                case "gate closed":
                    closed[export, entry["client"]].append(at)
                case "fenced":
                    key = (export, entry["client"])
                    fenced[key] = min(at, fenced.get(key, FOREVER))
                case "export ended":
                    ended[export, node].append(at)
    return {
        export: sorted(
            Interval(at, _end(at, closed[export, client], ended[export, node], fenced.get((export, client))), client, node)
            for at, client, node in found
        )
        for export, found in opened.items()
    }


def overlaps(found: Mapping[str, Sequence[Interval]]) -> list[str]:
    """Every pair of different clients that could write to an export at once, in words."""
    said = []
    for export, each in found.items():
        for number, one in enumerate(each):
            said += [
                f"export {export}: {one.client} on {one.node} could write until {one.closed:.3f}, "
                f"{other.client} on {other.node} from {other.opened:.3f}"
                for other in each[number + 1 :]
                if other.opened < one.closed and other.client != one.client
            ]
    return said


def most_at_once(found: Mapping[str, Sequence[Interval]]) -> int:
    """How many clients could write to one export at the same time, at most."""
    most = 0
    for each in found.values():
        for one in each:
            most = max(most, len({other.client for other in each if other.opened <= one.opened < other.closed} | {one.client}))
    return most


def _end(opened: float, closed: Iterable[float], ended: Iterable[float], fenced: float | None) -> float:
    later = [at for at in (*closed, *ended) if at >= opened]
    return min((*later, FOREVER if fenced is None else max(opened, fenced)), default=FOREVER)
