"""Which exports should move where, and what a loss would do: pure, and the same plan for the same layout."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from sanderling.model.exports import ExportId, Gateway
from sanderling.model.marks import Marks
from sanderling.model.placement import place
from sanderling.model.spread import NONE, NOTHING, NOWHERE, Group, spread

_NOTHING: Mapping[str, str] = MappingProxyType({})
_NOBODY: Mapping[str, frozenset[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Layout:
    """Who serves what, and which gateways may serve: what a plan is made from.

    `owners` names every started export; None when nobody serves it now. `gateways` are the live ones, online and not
    withdrawing; a `drained` one, live or not, gets nothing new. `avoid` forbids a disk certain gateways. `pins` says where a disk
    is to be: with a shared disk one of its exports, the others staying apart. A pin never keeps a disk from being served: one to
    a gateway that is not live, is drained or is avoided counts for nothing.
    """

    owners: Mapping[ExportId, str | None]
    gateways: frozenset[str]
    drained: frozenset[str] = frozenset()
    pins: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    avoid: Mapping[str, frozenset[str]] = field(default_factory=lambda: _NOBODY)

    @property
    def usable(self) -> frozenset[str]:
        """The gateways that may be given something."""
        return self.gateways - self.drained


class PlannedMove(NamedTuple):
    """`source` is None when nobody serves the export now."""

    export: ExportId
    source: str | None
    destination: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """Exports per gateway, every live one included; `together` is the number of pairs of siblings that share a gateway."""

    counts: Mapping[str, int]
    together: int
    usable: frozenset[str]

    @property
    def spread(self) -> int:
        """How many exports more the fullest usable gateway has than the emptiest."""
        counts = [self.counts[name] for name in self.usable]
        return max(counts, default=0) - min(counts, default=0)


class Reason(StrEnum):
    """Why nobody could serve an export."""

    NO_GATEWAY = "no gateway"
    AVOID = "avoid"


class Unserved(NamedTuple):
    export: ExportId
    reason: Reason


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What the workers would make of a loss: who takes what, and what could then not be served or would be served badly.

    `one_path` and `sharing` name shared disks: left with all their served exports on one gateway, and with any two on one.
    """

    moves: tuple[PlannedMove, ...]
    distribution: Distribution
    unserved: tuple[Unserved, ...]
    one_path: tuple[str, ...]
    sharing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """What no gateway that the marks allow could serve, for each live gateway lost alone; only losses that leave something.

    `unserved` is what nobody serves and none of them could even now.
    """

    losses: Mapping[str, tuple[Unserved, ...]]
    unserved: tuple[Unserved, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether any one gateway may die, or none, and every export still be served as its marks say."""
        return not self.losses and not self.unserved

    @property
    def worst(self) -> str | None:
        return min(self.losses, key=lambda name: (-len(self.losses[name]), name), default=None)


def average(layout: Layout, chosen: Collection[ExportId] | None = None) -> list[PlannedMove]:
    """The fewest moves to where siblings are apart, as far as there are gateways, and gateways even: one export more at most.

    Drained gateways are emptied and what nobody serves is placed. Avoid, then apartness and pins, go before evenness, which is
    then as good as they allow. Only `chosen` exports move, if that is given. What no usable gateway may have stays where it is.
    First come the moves that repair: unserved, where it must not be, siblings together; then the rest, the fullest gateway first.
    """
    names = sorted(layout.usable)
    if not names:
        return []
    bins: dict[str | None, int] = {name: bin_ for bin_, name in enumerate(names)}
    disks: dict[str, _Disk] = defaultdict(_Disk)
    for export, owner in layout.owners.items():
        disk = disks[export.disk_id]
        disk.exports.append(export)
        disk.homes.append(bins.get(owner, NOWHERE))
    held = [0] * len(names)
    groups = _groups(layout, disks, bins, None if chosen is None else frozenset(chosen), held)
    changed = set(spread(list(groups), held))
    left = Counter(layout.owners.values())
    moves: list[PlannedMove] = []
    keys: list[int] = []
    for group, disk_id in groups.items():
        if group in changed:
            pin = bins.get(layout.pins.get(disk_id), NOWHERE)
            for export, home, destination, rank in _moved(group, disks[disk_id], pin):
                source = layout.owners[export] if home == NOWHERE else names[home]
                moves.append(PlannedMove(export, source, names[destination]))
                keys.append((0 if source is None else rank) * len(layout.owners) - left[source])
                left[source] -= 1
    return [moves[number] for number in sorted(range(len(moves)), key=keys.__getitem__)]


def manual(layout: Layout, chosen: Iterable[ExportId], destination: str) -> list[PlannedMove]:
    """The chosen exports to one gateway; what is there already is left out. Whether that is allowed is for the caller to say."""
    moves = (PlannedMove(export, layout.owners[export], destination) for export in sorted(set(chosen)))
    return [move for move in moves if move.source != destination]


def after(layout: Layout, moves: Iterable[PlannedMove]) -> Layout:
    """The layout once every move has succeeded."""
    return replace(layout, owners={**layout.owners, **{move.export: move.destination for move in moves}})


def distribution(layout: Layout) -> Distribution:
    """How the exports that are served are spread; a gateway that is gone but still named as an owner is counted too."""
    counts = Counter(owner for owner in layout.owners.values() if owner is not None)
    beside = Counter((export.disk_id, owner) for export, owner in layout.owners.items() if owner is not None)
    together = sum(count * (count - 1) // 2 for count in beside.values())
    return Distribution({name: counts[name] for name in sorted({*layout.gateways, *counts})}, together, layout.usable)


def lose(layout: Layout, gateways: Collection[str]) -> WhatIf:
    """What would happen if these gateways died now and nobody planned anything: what the workers themselves would do.

    They serve an export even where a mark speaks against it, when nobody else is left; `score` counts that as a loss.
    """
    left = replace(layout, gateways=layout.gateways - frozenset(gateways))
    owners = {export: owner for export, owner in layout.owners.items() if owner is not None and owner in left.gateways}
    free = [export for export in layout.owners if export not in owners]
    workers = {name: Gateway(name=name) for name in left.gateways}
    placed = place(free, workers, owners, marks=Marks(drained=left.drained, pins=left.pins, avoid=left.avoid))
    then = replace(left, owners={**dict.fromkeys(free), **owners, **placed})
    served: dict[str, list[str]] = defaultdict(list)
    exports = Counter(export.disk_id for export in layout.owners)
    for export, owner in then.owners.items():
        if owner is not None:
            served[export.disk_id].append(owner)
    return WhatIf(
        moves=tuple(PlannedMove(export, layout.owners[export], placed[export]) for export in sorted(placed)),
        distribution=distribution(then),
        unserved=tuple(_unserved(left, sorted(set(free) - placed.keys()))),
        one_path=tuple(sorted(disk_id for disk_id, by in served.items() if len(set(by)) == 1 < exports[disk_id])),
        sharing=tuple(sorted(disk_id for disk_id, by in served.items() if len(set(by)) < len(by))),
    )


def score(layout: Layout) -> Score:
    """The standing N-1 score: whether the other gateways could serve each live one's exports as marked, should it die alone."""
    homeless = [export for export, owner in layout.owners.items() if owner not in layout.gateways]
    owned: dict[str, list[ExportId]] = {name: list(homeless) for name in sorted(layout.gateways)}
    for export, owner in layout.owners.items():
        if owner in owned:
            owned[owner].append(export)
    losses = {}
    for name, exports in owned.items():
        left = replace(layout, gateways=layout.gateways - {name})
        exposed = exports if not left.usable else [export for export in exports if export.disk_id in layout.avoid]
        if unserved := tuple(_unserved(left, sorted(exposed))):
            losses[name] = unserved
    return Score(losses, tuple(_unserved(layout, sorted(homeless))))


def _unserved(layout: Layout, exports: Iterable[ExportId]) -> Iterator[Unserved]:
    """Those of the exports that no usable gateway may have."""
    usable = layout.usable
    for export in exports:
        if usable <= layout.avoid.get(export.disk_id, frozenset()):
            yield Unserved(export, Reason.AVOID if usable else Reason.NO_GATEWAY)


class _Disk:
    """Its exports, the bin that each is in, and those that are not to move."""

    __slots__ = ("exports", "fixed", "homes")

    def __init__(self) -> None:
        self.exports: list[ExportId] = []
        self.homes: list[int] = []
        self.fixed: Collection[ExportId] = ()


def _groups(
    layout: Layout,
    disks: Mapping[str, _Disk],
    bins: Mapping[str | None, int],
    chosen: frozenset[ExportId] | None,
    held: list[int],
) -> dict[Group, str]:
    """Each disk that can move as a group, with its id, in the order of ids; what cannot move is counted into `held`."""
    groups: dict[Group, str] = {}
    for disk_id in sorted(disks):
        disk, barred = disks[disk_id], NONE
        homes, fixed = disk.homes, NOTHING
        if disk_id in layout.avoid:
            barred = frozenset(bins[name] for name in layout.avoid[disk_id] if name in bins)
        if len(barred) == len(bins):
            disk.fixed = disk.exports
        elif chosen is not None:
            disk.fixed = [export for export in disk.exports if export not in chosen]
        if disk.fixed:
            homes = [home for export, home in zip(disk.exports, disk.homes, strict=True) if export not in disk.fixed]
            fixed = Counter(disk.homes)
            fixed.subtract(homes)
            fixed = {bin_: count for bin_, count in fixed.items() if count and bin_ != NOWHERE}
        if not homes:
            for bin_, count in fixed.items():
                held[bin_] += count
        elif barred or fixed or disk_id in layout.pins or len(homes) >= len(bins):
            groups[Group.marked(homes, fixed, len(bins), barred, bins.get(layout.pins.get(disk_id), NOWHERE))] = disk_id
        else:
            groups[Group.plain(homes)] = disk_id
    return groups


def _moved(group: Group, disk: _Disk, pin: int) -> Iterator[tuple[ExportId, int, int, int]]:
    """The exports of a disk that must move to be where its group is; what can stay stays, the lowest index first.

    Each with where it is, where it goes and a rank: 1 where it must not be, 2 siblings together or a pin, 3 evenness.
    """
    room = dict(group.at)
    for bin_, count in group.fixed.items():
        room[bin_] -= count
    leaving = []
    numbers = range(len(disk.exports))
    for number in sorted(numbers, key=lambda number: disk.exports[number].index) if len(numbers) > 1 else numbers:
        export, home = disk.exports[number], disk.homes[number]
        if disk.fixed and export in disk.fixed:
            continue
        if room.get(home):
            room[home] -= 1
        else:
            leaving.append((export, home))
    free = [bin_ for bin_ in sorted(room) for _ in range(room[bin_])]
    for (export, home), bin_ in zip(leaving, free, strict=True):
        if home == NOWHERE or home in group.barred:
            yield export, home, bin_, 1
        else:
            yield export, home, bin_, 2 if bin_ == pin or disk.homes.count(home) > 1 else 3
