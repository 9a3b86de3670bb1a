"""A target as a distribution ships it, on a node of the lab: tgtd without guard or lease, and an address that is simply there.

Naive moves and the reference's are made of these. It listens on every address of its node, on a port of its own, so that no
portal needs to be opened when an address comes.
"""

import contextlib
import errno
import os
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cli.lab.lab import inside
from cli.lab.parts.daemons import Daemon, spawn, waited
from iscsi_worker.addresses.netlink import Netlink
from iscsi_worker.targets.tgt_admin import SOCKET_NAME, TgtAdmin
from sanderling.images.base import BackingStore
from sanderling.model.disks import LUN

INTERFACE: Final = "eth1"
TID: Final = 1
START_WITHIN_S: Final = 20.0


@dataclass(slots=True)
class Plain:
    """One image as one target in a node's namespace. Every name of it is the same on every node."""

    name: str
    folder: Path
    netns: str
    iqn: str
    image: BackingStore
    port: int
    daemon: Daemon | None = field(default=None, init=False)

    def start(self) -> None:
        """Run, and return once its LUN is open and anybody may log in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["/usr/sbin/tgtd", "-f", "--iscsi", f"portal=0.0.0.0:{self.port}"]
        with inside(self.netns):
            self.daemon = spawn(
                self.name, words, log=self.folder / "tgtd.log", env={"TGT_IPC_SOCKET": SOCKET_NAME}, cwd=self.folder
            )
        admin = TgtAdmin(self.folder, timeout_s=START_WITHIN_S)
        waited(admin.answers, within_s=START_WITHIN_S, what=f"{self.name} listens", every_s=0.002)
        admin.new_target(TID, self.iqn)
        admin.new_unit(TID, LUN, kind=self.image.kind, location=self.image.location, options=self.image.options)
        admin.set_unit(TID, LUN, scsi_id="bench", scsi_sn="bench")
        admin.allow_address(TID, "ALL")

    def kill(self) -> None:
        """Returns once it is dead."""
        if self.daemon is not None and self.daemon.alive:
            self.daemon.signal(signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.daemon.pid, 0)
        (self.folder / f"{SOCKET_NAME}.0").unlink(missing_ok=True)


def add(netns: str, address: str) -> None:
    """Put the address on the node and announce it."""
    with inside(netns):
        with IPRoute() as route:
            route.addr("replace", index=socket.if_nametoindex(INTERFACE), address=address, prefixlen=24)
        Netlink().announce(address, interface=INTERFACE)


def remove(netns: str, address: str) -> None:
    """Take the address off the node, if it is there."""
    with inside(netns), IPRoute() as route:
        try:
            route.addr("del", index=socket.if_nametoindex(INTERFACE), address=address, prefixlen=24)
        except NetlinkError as error:
            if error.code != errno.EADDRNOTAVAIL:
                raise
