"""What there is after a fault, read from the parts themselves, for the checkers to compare with what should be."""

import contextlib
import ipaddress
import json
from collections.abc import Callable
from typing import Final

import sanderling.images
from cli.lab.lab import CLOCK, NODES, Lab
from cli.lab.orphans import Observed, left_open, orphans
from cli.lab.parts.daemons import run, waited
from sanderling.model.disks import image_of
from sanderling.settings import Settings

SETTLED_WITHIN_S: Final = 60.0
READ_WITHIN_S: Final = 30


def settled(lab: Lab, *, watchers: bool) -> tuple[list[str], list[str]]:
    """Operations left open and orphans, once nothing changes for the better any more or there are none."""
    seen = ([""], [""])

    def none() -> bool:
        nonlocal seen
        now = observe(lab, watchers=watchers)
        seen = (left_open(now), orphans(now))
        return not seen[0] and not seen[1]

    with contextlib.suppress(AssertionError):
        waited(none, within_s=SETTLED_WITHIN_S, what="nothing is left over", every_s=0.2)
    return seen


def observe(lab: Lab, *, watchers: bool) -> Observed:
    """What there is now; who has the images open is asked of Ceph only on request."""
    settings = lab.cluster.settings()
    shown = [lab.cluster.http.get(f"/v1/disks/{name}").json() for name in lab.disks]
    operations = lab.cluster.http.get("/v1/operations", params={"limit": 1000}).json()["operations"]
    with lab.keys() as keys:
        entries = keys.list("").entries
    held = {entry.key: json.loads(entry.value) for entry in entries if entry.key.startswith("exports/")}
    return Observed(
        addresses={node: _addresses(lab, node) for node in NODES},
        processes={node: tuple(export for _, export in lab.targets(node)) for node in NODES},
        watchers=_watchers(lab, settings) if watchers else {},
        keys=tuple(entry.key for entry in entries),
        exports={key.removeprefix("exports/"): value for key, value in held.items()},
        disks=tuple(shown),
        open_operations=tuple(each["id"] for each in operations if not each["ended_at"]),
    )


def read_directly(lab: Lab, disk: str) -> Callable[[int], bytes]:
    """Reads one sector of the disk's image at a time, past every target."""
    import rados  # noqa: PLC0415  Debian's, which a machine without the lab's packages lacks
    import rbd  # noqa: PLC0415

    bounds = {"rados_osd_op_timeout": str(READ_WITHIN_S), "rados_mon_op_timeout": str(READ_WITHIN_S)}  # for ever, by default
    ceph = rados.Rados(conffile=lab.cluster.ceph.conf, rados_id=lab.cluster.ceph.user, conf=bounds)
    ceph.connect(timeout=10)
    pool = ceph.open_ioctx(lab.cluster.ceph.pool)
    image = rbd.Image(pool, image_of(lab.disks[disk]["id"]), read_only=True)
    data: dict[int, bytes] = {}
    try:
        whole = image.read(0, 1 << 20)
        data = {lba: whole[lba * 512 : (lba + 1) * 512] for lba in range(len(whole) // 512)}
    finally:
        image.close()
        pool.close()
        ceph.shutdown()
    return lambda lba: data[lba]


def _watchers(lab: Lab, settings: Settings) -> dict[str, frozenset[str]]:
    with contextlib.closing(sanderling.images.connect(settings, clock=CLOCK)) as images:
        return {disk["id"]: frozenset(images.clients(image_of(disk["id"]))) for disk in lab.disks.values()}


def _addresses(lab: Lab, node: str) -> frozenset[str]:
    first, last = map(ipaddress.ip_address, lab.network.front_pool)
    said = json.loads(run(["ip", "-n", lab.network.netns(node), "-j", "-4", "address", "show", "dev", "eth1"]))
    found = [one["local"] for link in said for one in link.get("addr_info", ())]
    return frozenset(each for each in found if int(first) <= int(ipaddress.ip_address(each)) <= int(last))
