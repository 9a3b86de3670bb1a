"""C4: what is left over or missing once everything has been healed: addresses, processes, watchers, keys, operations."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sanderling.model.leaders import PREFIX
from sanderling.model.marks import MARKS_KEY

KNOWN_KEYS = ("disks/", "exports/", "nodes/", "changes/", PREFIX, MARKS_KEY)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the nodes, the stores and the API show: `addresses` and `processes` (exports' names) by node.

    `watchers`, by disk, are those of its image; empty when nobody asked.
    """

    addresses: Mapping[str, frozenset[str]]
    processes: Mapping[str, tuple[str, ...]]
    watchers: Mapping[str, frozenset[str]]
    keys: tuple[str, ...]
    exports: Mapping[str, Mapping[str, Any]]
    disks: tuple[Mapping[str, Any], ...]
    open_operations: tuple[str, ...]


def orphans(seen: Observed) -> list[str]:
    """Each thing that should not be there, or should and is not, in words. Operations are not counted: `left_open` does."""
    return [*_addresses(seen), *_processes(seen), *_watchers(seen), *_keys(seen)]


def left_open(seen: Observed) -> list[str]:
    return [f"operation {each} has not ended" for each in seen.open_operations]


def _addresses(seen: Observed) -> list[str]:
    wanted = {(path["address"], path["gateway"]) for disk in seen.disks for path in disk["paths"] if disk["started"]}
    found = {(address, node) for node, addresses in seen.addresses.items() for address in addresses}
    said = [f"{node} has {address}, which is not its to have" for address, node in sorted(found - wanted, key=str)]
    return said + [f"{node} lacks {address}" for address, node in sorted(wanted - found, key=str)]


def _processes(seen: Observed) -> list[str]:
    wanted = Counter((export["node"], name) for name, export in seen.exports.items() if export["client"])
    found = Counter((node, name) for node, names in seen.processes.items() for name in names)
    said = [f"{node} runs a target process of {name} too many" for node, name in sorted((found - wanted).elements())]
    return said + [f"{node} has no target process of {name}" for node, name in sorted((wanted - found).elements())]


def _watchers(seen: Observed) -> list[str]:
    said = []
    for disk in seen.disks:
        named = (export["client"] for name, export in seen.exports.items() if name.startswith(f"{disk['id']}/"))
        extra = seen.watchers.get(disk["id"], frozenset()) - set(named)
        said += [f"the image of {disk['name']} is open to {client}, which no export names" for client in sorted(extra)]
    return said


def _keys(seen: Observed) -> list[str]:
    ids = {disk["id"] for disk in seen.disks}
    said = []
    for key in seen.keys:
        of_disk = key.startswith(("disks/", "exports/"))
        if not key.startswith(KNOWN_KEYS):
            said.append(f"key {key} is of no known kind")
        elif of_disk and key.split("/")[1] not in ids:
            said.append(f"key {key} belongs to no disk")
    return said
