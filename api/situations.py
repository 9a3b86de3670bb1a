"""What plans and predictions are made from, read within a request's bounds, and what two such readings differ in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from api.context import Context
from sanderling import layouts
from sanderling.coordination.base import Coordination, Entry
from sanderling.layouts import Situation
from sanderling.model.balance import Distribution, Layout, Score, Unserved
from sanderling.model.exports import ExportId
from sanderling.records import marks

NAMED_MAX: Final = 100  # of what may be as many as there are exports, an answer names the first and counts the rest


@dataclass(frozen=True, slots=True)
class Seen:
    """A situation, the gateways that people have drained (the layout adds those without an image store), and every gateway that
    lives or has left a trace: what is not `known` was never there."""

    situation: Situation
    drained: frozenset[str]
    known: frozenset[str]

    @property
    def layout(self) -> Layout:
        return self.situation.layout

    def disk_name(self, disk_id: str) -> str:
        disk = self.situation.disks.get(disk_id)
        return disk.name if disk else disk_id


def look(context: Context) -> Seen:
    """What is there now; `Unavailable` when coordination cannot be read."""

    def read(coordination: Coordination) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        return coordination.list("exports/").entries, coordination.list("nodes/").entries

    exports, nodes = context.coordination.ask(read)
    with context.records.read() as session:
        situation = layouts.of(session, exports, nodes)
        drained = marks.read(session).drained
    traces = {entry.key.removeprefix("nodes/") for entry in nodes} | {value.node for value in situation.exports.values()}
    return Seen(situation, drained, frozenset(traces - {""}) | drained)


def changes(was: Layout, now: Layout) -> list[dict[str, Any]]:
    """What holds no longer of what a plan was made from; empty when it can be applied."""
    return [*_owners(was, now), *_gateways(was, now), *_marks(was, now)]


def show_distribution(distribution: Distribution) -> dict[str, Any]:
    """`spread` is how many exports more the fullest gateway has than the emptiest, `together` the pairs of siblings on one."""
    return {"exports": dict(distribution.counts), "spread": distribution.spread, "together": distribution.together}


def show_score(seen: Seen, score: Score) -> dict[str, Any]:
    """`losses` names the gateways whose loss, of each alone, would leave exports unserved; `unserved` are so without one."""
    losses = {name: show_unserved(seen, unserved) for name, unserved in score.losses.items()}
    return {"ok": score.ok, "worst": score.worst, "losses": losses, "unserved": show_unserved(seen, score.unserved)}


def show_unserved(seen: Seen, unserved: tuple[Unserved, ...]) -> dict[str, Any]:
    named = [show_export(seen, one.export) | {"reason": one.reason.value} for one in unserved[:NAMED_MAX]]
    return {"count": len(unserved), "exports": named}


def show_export(seen: Seen, export: ExportId) -> dict[str, Any]:
    disk = seen.situation.disks.get(export.disk_id)
    paths = [path.address for path in disk.export_paths(export.index)] if disk else []
    return {"disk": seen.disk_name(export.disk_id), "disk_id": export.disk_id, "index": export.index, "paths": paths}


def _owners(was: Layout, now: Layout) -> Iterator[dict[str, Any]]:
    for export in sorted({*was.owners, *now.owners}):
        before, after = _owner(was, export), _owner(now, export)
        if before != after:
            yield {"what": "export", "export": str(export), "was": before, "is": after}


def _owner(layout: Layout, export: ExportId) -> str:
    return (layout.owners[export] or "nobody") if export in layout.owners else "not started"


def _gateways(was: Layout, now: Layout) -> Iterator[dict[str, Any]]:
    for name in sorted(was.gateways ^ now.gateways):
        words = ("online", "offline") if name in was.gateways else ("offline", "online")
        yield {"what": "gateway", "gateway": name, "was": words[0], "is": words[1]}
    for name in sorted(was.drained ^ now.drained):
        words = ("out of use", "in use") if name in was.drained else ("in use", "out of use")
        yield {"what": "drain", "gateway": name, "was": words[0], "is": words[1]}


def _marks(was: Layout, now: Layout) -> Iterator[dict[str, Any]]:
    yield from _marked("pin", was.pins, now.pins)
    avoid = [{disk_id: sorted(names) for disk_id, names in layout.avoid.items()} for layout in (was, now)]
    yield from _marked("avoid", *avoid)


def _marked(kind: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for disk_id in sorted({*was, *now}):
        if was.get(disk_id) != now.get(disk_id):
            yield {"what": kind, "disk_id": disk_id, "was": was.get(disk_id), "is": now.get(disk_id)}
