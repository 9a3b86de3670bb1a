"""The networks of the paths, where placing is concerned: what a gateway that is cut off there leaves to others.

Whether it is cut off, each worker concludes for itself (iscsi_worker/neighbours.py) and publishes; everyone else believes it.
"""

from collections.abc import Collection, Iterable, Mapping

from sanderling.model.disks import Disk
from sanderling.model.exports import ExportId, Gateway

REASON = "cut off on the network of its paths"


def stands_back(gateways: Mapping[str, Gateway], node: str, disk: Disk, export: ExportId, cut_off: Collection[str]) -> bool:
    """Whether `node`, cut off on these interfaces, should leave the export to others.

    Only when some live gateway is cut off on none of the interfaces that the export needs: where all are cut off none stands
    back, so that the first whose network is mended already serves.
    """
    if not cut_off:
        return False
    needed = {path.interface for path in disk.export_paths(export.index)}
    if needed.isdisjoint(cut_off):
        return False
    return any(
        name != node
        and not gateway.withdrawing
        and str(export) not in gateway.refused
        and needed <= set(gateway.interfaces)
        and needed.isdisjoint(gateway.front.cut_off)
        for name, gateway in gateways.items()
    )


def standing_back(
    gateways: Mapping[str, Gateway], disks: Mapping[str, Disk], exports: Iterable[ExportId]
) -> Mapping[str, Gateway]:
    """The gateways as placement should see them: each refuses those of the exports that it stands back from."""
    cut = [gateway for gateway in gateways.values() if gateway.front.cut_off]
    if not cut:
        return gateways
    known = [(export, disks[export.disk_id]) for export in exports if export.disk_id in disks]
    seen = dict(gateways)
    for gateway in cut:
        away = {
            str(export): REASON
            for export, disk in known
            if stands_back(gateways, gateway.name, disk, export, gateway.front.cut_off)
        }
        seen[gateway.name] = gateway.model_copy(update={"refused": gateway.refused | away})
    return seen
