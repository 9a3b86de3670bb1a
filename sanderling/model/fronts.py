"""What a gateway that is cut off, from the initiators or from the image store, leaves to others, where placing is concerned.

Whether it is cut off, each worker concludes for itself (iscsi_worker/neighbours.py, image_store.py) and publishes; everyone else
believes it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from sanderling.model.disks import Disk
from sanderling.model.exports import ExportId, Gateway, Store

REASON: Final = "cut off on the network of its paths"
REASON_STORE: Final = "cut off from the image store"

_LOST, _HELD, _FINE = range(3)  # how much a gateway's image store can be relied on


def stands_back(
    gateways: Mapping[str, Gateway],
    node: str,
    disk: Disk,
    export: ExportId,
    cut_off: Collection[str],
    store: Store = Store(),  # noqa: B008  it is frozen
) -> bool:
    """Whether `node`, cut off on these interfaces or as it says of the image store, should leave the export to others.

    Only when some live gateway is cut off on none of the interfaces that the export needs, and no worse off with the image store:
    where all are cut off none stands back, so that the first whose network is mended already serves. Never both of two.
    """
    level = _level(store)
    if not cut_off and level == _FINE:
        return False
    needed = {path.interface for path in disk.export_paths(export.index)}
    unreached = not needed.isdisjoint(cut_off)
    if not unreached and level == _FINE:
        return False
    return any(
        name != node
        and not gateway.withdrawing
        and str(export) not in gateway.refused
        and needed <= set(gateway.interfaces)
        and needed.isdisjoint(gateway.front.cut_off)
        and _is_better_off(gateway.store, level, unreached=unreached)
        for name, gateway in gateways.items()
    )


def _level(store: Store) -> int:
    if store.is_lost:
        return _LOST
    return _HELD if store.cut_off else _FINE


def _is_better_off(other: Store, level: int, *, unreached: bool) -> bool:
    """Whether a gateway that initiators reach is better off than one of this level, which they reach or not."""
    if level == _FINE:
        return _level(other) > _LOST
    return other.answers and (_level(other) > level or (unreached and _level(other) == level))


def standing_back(
    gateways: Mapping[str, Gateway], disks: Mapping[str, Disk], exports: Iterable[ExportId]
) -> Mapping[str, Gateway]:
    """The gateways as placement should see them: each refuses those of the exports that it stands back from.

    One that has lost the image store refuses all: whoever takes an export has to fence with it first.
    """
    cut = [gateway for gateway in gateways.values() if gateway.front.cut_off or gateway.store.cut_off]
    if not cut:
        return gateways
    known = [(export, disks[export.disk_id]) for export in exports if export.disk_id in disks]
    seen = dict(gateways)
    for gateway in cut:
        away = {
            str(export): REASON_STORE if gateway.store.cut_off else REASON
            for export, disk in known
            if gateway.store.is_lost or stands_back(gateways, gateway.name, disk, export, gateway.front.cut_off, gateway.store)
        }
        seen[gateway.name] = gateway.model_copy(update={"refused": gateway.refused | away})
    return seen
