"""Every scenario there is, by name; how to add one is in docs/lab.md."""

from collections.abc import Iterable
from typing import Final

from cli.lab.scenarios import agents, bus, ceph, disks, journals, machines, moves, partitions, pauses, processes, stores
from cli.lab.scenarios.base import Scenario
from sanderling.errors import NotFound

ALL: Final[tuple[Scenario, ...]] = tuple(
    scenario
    for each in (processes, pauses, partitions, stores, bus, ceph, agents, journals, machines, disks, moves)
    for scenario in each.SCENARIOS
)
NOT_APPLICABLE: Final = {"F12": "there is no power management of machines yet"}
assert len({scenario.name for scenario in ALL}) == len(ALL), "a name is given twice"


def chosen(words: Iterable[str]) -> list[Scenario]:
    """The scenarios of these names or faults (`F4-export`, `F5`), in the order of the catalogue; all when none is given."""
    wanted = list(words)
    unknown = [word for word in wanted if not any(word in {each.name, each.fault} for each in ALL)]
    if unknown:
        reason = NOT_APPLICABLE.get(unknown[0], "see `sanderling lab list`")
        raise NotFound(f"no scenario is called {unknown[0]}: {reason}", unknown=unknown)
    return [each for each in ALL if not wanted or {each.name, each.fault} & set(wanted)]
