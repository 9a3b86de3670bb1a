"""The seam to what speaks iSCSI: one target process for one export, with a gate and a lease in memory it shares with us.

The lease is the permission to do I/O: a CLOCK_MONOTONIC deadline that the process reads before every operation on its
image; once it has passed, or the image store says that the client is fenced, the process exits at once and answers nothing.
The gate holds operations back while it is closed, and counts those in flight. tests/contract/test_targets.py is the
definition; it runs on every backend.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sanderling.images.base import BackingStore
from sanderling.model.disks import Path
from sanderling.model.exports import Connection, ExportId


@dataclass(frozen=True, slots=True)
class Credentials:
    """What CHAP is done with: an initiator proves the first secret, the target, if there is a second, proves that."""

    user: str
    secret: str = field(repr=False)
    mutual_user: str = ""
    mutual_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What a target process presents. Equal on every node for one disk, so that initiators see one disk."""

    export: ExportId
    iqn: str
    tid: int
    scsi_serial: str
    backing_store: BackingStore
    initiators: tuple[str, ...]
    allow_any: bool
    paths: tuple[Path, ...] = ()
    chap: Credentials | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A target process that runs. `client` is what the image store would fence; `epoch` and `paths` (where it is to answer)
    are the caller's own, kept for it, so that a worker that is started again renews the addresses before it has asked anybody.
    """

    export: ExportId
    epoch: tuple[int, int]
    revision: int
    client: str
    portals: tuple[str, ...]
    gate_open: bool
    lease_left_s: float
    paths: tuple[Path, ...] = ()


class Targets(Protocol):
    def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
        """Start the export's process: gate closed, no portal, its client connected and its LUN open.

        The client connects after this call began, so a fence acknowledged before it is in force for every write of it.
        The lease begins with this call. `TargetFailed` when it is not ready within the bound, or the export has a process
        already; nothing new is left running then.
        """
        ...

    def open_portal(self, export: ExportId, address: str) -> None:
        """Answer on this address, which must already be on the node. Opening it twice is no error."""
        ...

    def ungate(self, export: ExportId) -> None:
        """Let operations through; those that waited run now."""
        ...

    def gate(self, export: ExportId) -> None:
        """Hold operations back from now on; those already begun go on (see `drain`)."""
        ...

    def drain(self, export: ExportId, *, timeout_s: float) -> bool:
        """Wait until no operation is in flight behind a closed gate; False when the time has passed first."""
        ...

    def renew(self, export: ExportId, *, lease_s: float) -> None:
        """Move the lease's deadline to `lease_s` from now. A process whose lease has lapsed is dead: `TargetFailed`."""
        ...

    def connections(self, export: ExportId) -> tuple[Connection, ...]: ...

    def connected(self) -> Mapping[str, Collection[tuple[str, int]]]:
        """The other ends (address and port) of all connections to portals of this node, by the portal's address.

        Cheaper than `connections` of all exports: nothing but the kernel is asked, once. Who has yet to log in is among them.
        """
        ...

    def probe(self, export: ExportId, *, timeout_s: float) -> bool:
        """Whether a read of LBA 0 through the process's own portal succeeds in time: it is alive and not fenced.

        The read passes the gate like any other, so a closed gate is a probe that fails.
        """
        ...

    def stop(self, export: ExportId) -> None:
        """Reset its connections, kill the process and wait until it is dead. Stopping what is not there is no error."""
        ...

    def actual(self) -> tuple[Running, ...]:
        """Every export process of this node that is alive, also those that an earlier worker started."""
        ...

    def wait_for_end(self, *, timeout_s: float) -> bool:
        """Wait until a process has ended, however it did; False when the time has passed first.

        One that ended since the last call counts, so that of calls in a row none is missed.
        """
        ...
