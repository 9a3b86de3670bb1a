"""What the lab needs of a machine, asked before anything is started."""

import importlib.util
import os
import shutil
from pathlib import Path

from cli.lab.lab import LabFailed

PROGRAMS = (
    "ip",
    "nft",
    "mount",
    "losetup",
    "mkfs.ext4",
    "ceph-mon",
    "ceph-osd",
    "ceph",
    "rbd",
    "consul",
    "epmd",
    "/usr/sbin/tgtd",
)
BROKER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
MODULES = ("rados", "rbd")


def check() -> None:
    """`LabFailed` says in one line what is missing and how to get it."""
    if os.geteuid() != 0:
        raise LabFailed("the lab makes network namespaces and needs root: run it with sudo")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += [] if BROKER.exists() else ["rabbitmq-server"]
    missing += [f"Python's {name}" for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise LabFailed(
            f"missing on this machine: {', '.join(missing)}; run `scripts/install-system real` and `scripts/install-python dev`"
        )
