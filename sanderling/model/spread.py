"""Spreading groups of like units over bins: members of a group apart, then bins even, then as few units moved as can be; exact.

A group is a disk's exports and a bin is a gateway (sanderling/model/balance.py gives the numbers their names). As a flow of
units from groups to bins every cost is convex, so a distribution from which no cycle of moves gains anything is the best there
is. A greedy pass nearly always reaches a bound that shows it to be the best; only where it does not are such cycles looked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from types import MappingProxyType

Edges = dict[int, tuple[int, "Group"]]
NOWHERE = -1
NONE: frozenset[int] = frozenset()
NOTHING: Mapping[int, int] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Group:
    """Units that are alike, and how many of them are in which bin; `loose` ones are in none yet.

    A bin takes up to `cap` of them unless it is `barred`; each of `musts` is to have `need`; `fixed` ones stay. `was` is `at`
    before any unit moved, less what had to go in any case.
    """

    size: int
    at: dict[int, int]
    was: dict[int, int]
    loose: int
    cap: int
    barred: frozenset[int]
    need: int
    musts: frozenset[int]
    fixed: Mapping[int, int]

    @classmethod
    def plain(cls, homes: Sequence[int]) -> "Group":
        """Units without marks, fewer than there are bins: one at most in each."""
        at = dict.fromkeys(homes, 1)
        at.pop(NOWHERE, None)
        return cls(len(homes), at, at, len(homes) - len(at), 1, NONE, 1, NONE, NOTHING)

    @classmethod
    def marked(
        cls, homes: Sequence[int], fixed: Mapping[int, int], bins: int, barred: frozenset[int], pin: int = NOWHERE
    ) -> "Group":
        """Units at `homes` beside the `fixed` ones, as evenly as can be over the bins not barred, and one at the `pin`."""
        if fixed:
            level, over = filled([fixed.get(bin_, 0) for bin_ in range(bins) if bin_ not in barred], len(homes))
        else:
            level, over = divmod(len(homes), bins - len(barred))
        cap = level + (over > 0)
        at = dict(fixed)
        for home in homes:
            if home != NOWHERE and home not in barred and at.get(home, 0) < cap:
                at[home] = at.get(home, 0) + 1
        size = len(homes) + sum(fixed.values())
        musts = frozenset(range(bins)) if level else frozenset({pin} - {NOWHERE})
        return cls(size, at, at, size - sum(at.values()), cap, barred, max(level, 1), musts - barred, fixed)

    def least(self, bin_: int) -> int:
        """How many of it stay in the bin in any case."""
        return max(self.need if bin_ in self.musts else 0, self.fixed.get(bin_, 0))

    def gives(self, bin_: int) -> bool:
        return self.at.get(bin_, 0) > (self.least(bin_) if self.musts or self.fixed else 0)

    def takes(self, bin_: int) -> bool:
        return self.at.get(bin_, 0) < self.cap and bin_ not in self.barred

    @property
    def closed(self) -> Set[int]:
        """The bins that take none of it."""
        return self.barred | {bin_ for bin_, count in self.at.items() if count >= self.cap}

    def lacks(self, bin_: int) -> bool:
        """Whether one that was in the bin is there no more, so that one more would not be a move."""
        return self.at.get(bin_, 0) < self.was.get(bin_, 0)

    def visits(self, bin_: int) -> bool:
        """Whether one more is in the bin than there was, so that one less would save a move."""
        return self.at.get(bin_, 0) > self.was.get(bin_, 0)

    def take(self, bin_: int) -> None:
        if self.at is self.was:
            self.at = dict(self.was)
        left = self.at[bin_] - 1
        if left:
            self.at[bin_] = left
        else:
            del self.at[bin_]
        self.loose += 1

    def put(self, bin_: int) -> None:
        if self.at is self.was:
            self.at = dict(self.was)
        self.at[bin_] = self.at.get(bin_, 0) + 1
        self.loose -= 1


def filled(bases: Sequence[int], extra: int) -> tuple[int, int]:
    """The level that `extra` units reach when the lowest bases are filled first, and how many are left above it."""
    rising = sorted(bases)
    level = rising[0]
    for lifted, base in enumerate(rising[1:], 1):
        step = min(base - level, extra // lifted)
        level, extra = level + step, extra - step * lifted
        if level < base:
            return level, extra
    more, extra = divmod(extra, len(rising))
    return level + more, extra


def spread(groups: Sequence[Group], held: Sequence[int]) -> list[Group]:
    """Move units of the groups to where they are best; `held` counts, for each bin, what else is there and stays.

    Answers with the groups that may have changed. The order of the groups decides between equals.
    """
    load, least = list(held), list(held)
    members: list[list[Group]] = [[] for _ in held]
    _count(groups, load, members, least)
    kept = list(load)
    changed = {group: None for group in groups if group.loose or group.musts}
    moves = sum(_settle(group, load) for group in changed)
    wanted = _targets(load, least, sum(group.loose for group in changed))
    for bin_, target in enumerate(wanted):
        if load[bin_] > target:
            changed.update(dict.fromkeys(_relieve(bin_, members[bin_], load, target)))
    moves += _house(changed, load, wanted)
    fewest = sum(load) - sum(map(min, kept, wanted))
    if load != wanted or moves > fewest:
        changed.update(dict.fromkeys(_Cycles(groups, load).cancelled()))
    return list(changed)


def _count(groups: Sequence[Group], load: list[int], members: list[list[Group]], least: list[int]) -> None:
    for group in groups:
        for bin_, count in group.at.items():
            load[bin_] += count
            members[bin_].append(group)
        for bin_ in group.musts | group.fixed.keys():
            least[bin_] += group.least(bin_)


def _settle(group: Group, load: list[int]) -> int:
    """Give each bin what it must have of the group, of the loose units first and then from the fullest bins. The moves made."""
    moves = 0
    for bin_ in sorted(group.musts):
        while group.at.get(bin_, 0) < group.least(bin_):
            if not group.loose:
                fullest = max(filter(group.gives, group.at), key=lambda other: (group.at[other], load[other], -other))
                group.take(fullest)
                load[fullest] -= 1
            group.put(bin_)
            load[bin_] += 1
            moves += 1
    return moves


def _targets(load: Sequence[int], least: Sequence[int], loose: int) -> list[int]:
    """The evenest loads that leave each bin what must stay; where it does not matter, fuller bins keep one more."""
    level, over = filled(least, sum(load) + loose - sum(least))
    wanted = [max(level, base) for base in least]
    able = (bin_ for bin_ in range(len(load)) if least[bin_] <= level)
    for bin_ in sorted(able, key=lambda bin_: (-load[bin_], bin_))[:over]:
        wanted[bin_] += 1
    return wanted


def _relieve(bin_: int, members: list[Group], load: list[int], target: int) -> Iterator[Group]:
    """Take units from a bin until it has its target: of large groups first, whose other units go on serving meanwhile."""
    for group in sorted(members, key=_size_of, reverse=True):
        while load[bin_] > target and group.gives(bin_):
            group.take(bin_)
            load[bin_] -= 1
            yield group
        if load[bin_] == target:
            break


_size_of = attrgetter("size")


def _house(changed: Iterable[Group], load: list[int], wanted: Sequence[int]) -> int:
    """Put loose units into bins that want more; what fits in none of them goes to the emptiest that takes it. The moves made."""
    moves = 0
    room = [bin_ for bin_, target in enumerate(wanted) if load[bin_] < target]
    turn = 0
    for group in sorted(changed, key=lambda group: (-len(group.barred), -group.size)):
        while group.loose:
            place = _place(group, room, turn)
            bin_ = room[place] if place != NOWHERE else min(filter(group.takes, range(len(load))), key=load.__getitem__)
            moves += not group.lacks(bin_)
            group.put(bin_)
            load[bin_] += 1
            if place != NOWHERE:
                turn = place + 1
                if load[bin_] == wanted[bin_]:
                    del room[place]
                    turn = place
                turn = 0 if turn >= len(room) else turn
    return moves


def _place(group: Group, room: Sequence[int], turn: int) -> int:
    """The next place in `room`, from the turn on and round, whose bin takes one of the group."""
    for place in chain(range(turn, len(room)), range(turn)):
        if group.takes(room[place]):
            return place
    return NOWHERE


class _Cycles:
    """Finds cycles of moves that gain something and applies them until there are none.

    A node is a bin, an edge the cheapest unit that can go from one bin to another: -1 when a moved unit comes home, 0 when one
    that has moved anyway goes elsewhere, 1 for a new move. One more node, the ends of paths, makes a path that evens out a cycle.
    """

    def __init__(self, groups: Iterable[Group], load: list[int]) -> None:
        self._load, self._bins = load, len(load)
        self._weight = len(load) + 1  # one step more even outweighs every move of a cycle
        self._members: list[dict[Group, None]] = [{} for _ in load]
        for group in groups:
            for bin_ in group.at:
                self._members[bin_][group] = None
        self._known: dict[int, Edges] = {}

    def cancelled(self) -> Iterator[Group]:
        while cycle := self._gaining():
            steps = [(a, b, self._edges(a)[b][1]) for a, b in cycle if self._bins not in {a, b}]
            for source, destination, group in steps:
                group.take(source)
                group.put(destination)
                self._load[source] -= 1
                self._load[destination] += 1
                if source not in group.at:
                    del self._members[source][group]
                self._members[destination][group] = None
                for bin_ in {source, *group.at}:
                    self._known.pop(bin_, None)
                yield group

    def _edges(self, bin_: int) -> Edges:
        if bin_ not in self._known:
            self._known[bin_] = self._cheapest(bin_)
        return self._known[bin_]

    def _cheapest(self, bin_: int) -> Edges:
        edges: Edges = {}
        giving = [group for group in self._members[bin_] if group.gives(bin_)]
        visitors = [group for group in giving if group.visits(bin_)]
        residents = [group for group in giving if not group.visits(bin_)]
        homes = [(group, home) for group in giving if group.at is not group.was for home in sorted(group.was)]
        back = [(group, home) for group, home in homes if group.lacks(home) and group.takes(home)]
        for group, home in back:
            if group.visits(bin_):
                edges.setdefault(home, (-1, group))
        unreached = set(range(self._bins)) - {bin_} - edges.keys()
        self._reach(unreached, visitors, 0, edges)
        for group, home in back:
            if home in unreached:
                edges[home] = (0, group)
                unreached.discard(home)
        self._reach(unreached, residents, 1, edges)
        return edges

    @staticmethod
    def _reach(unreached: set[int], groups: Iterable[Group], cost: int, edges: Edges) -> None:
        for group in groups:
            if not unreached:
                return
            reached = unreached - group.closed
            edges.update(dict.fromkeys(reached, (cost, group)))
            unreached -= reached

    def _gaining(self) -> list[tuple[int, int]]:
        """A cycle of negative cost, or nothing when there is none."""
        return self._single() or self._longer()

    def _single(self) -> list[tuple[int, int]]:
        """One move that gains by itself: nearly all do."""
        ends, load = self._bins, self._load
        for bin_ in sorted(range(ends), key=lambda bin_: (-load[bin_], bin_)):
            for other, (weight, _) in self._edges(bin_).items():
                if 2 * self._weight * (load[other] - load[bin_] + 1) + weight < 0:
                    return [(ends, bin_), (bin_, other), (other, ends)]
        return []

    def _longer(self) -> list[tuple[int, int]]:
        """Bellman and Ford, from everywhere at once."""
        ends, load = self._bins, self._load
        cost, parent = [0] * (ends + 1), [NOWHERE] * (ends + 1)
        changed = True
        while changed:
            changed = False
            for bin_ in range(ends):
                if (start := cost[ends] - self._weight * (2 * load[bin_] - 1)) < cost[bin_]:
                    cost[bin_], parent[bin_], changed = start, ends, True
                here = cost[bin_]
                for other, (weight, _) in self._edges(bin_).items():
                    if here + weight < cost[other]:
                        cost[other], parent[other], changed = here + weight, bin_, True
            for bin_ in range(ends):
                if (end := cost[bin_] + self._weight * (2 * load[bin_] + 1)) < cost[ends]:
                    cost[ends], parent[ends], changed = end, bin_, True
            if changed and (cycle := _cycle_in(parent)):
                return cycle
        return []


def _cycle_in(parent: Sequence[int]) -> list[tuple[int, int]]:
    """The edges of a cycle among (parent, child) pairs, if there is one."""
    seen = [NOWHERE] * len(parent)
    for start in range(len(parent)):
        node = start
        while node != NOWHERE and seen[node] == NOWHERE:
            seen[node], node = start, parent[node]
        if node != NOWHERE and seen[node] == start:
            cycle = [(parent[node], node)]
            while cycle[-1][0] != node:
                cycle.append((parent[cycle[-1][0]], cycle[-1][0]))
            return cycle
    return []
