"""What serves iSCSI on this host: tgtd, the guard, its port, and the rights that a worker needs."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import iscsi_worker.addresses
from cli.doctor.base import Check, Finding, Role, fail, ok, warn
from iscsi_worker.targets.guard import GuardLibrary
from iscsi_worker.targets.probe import LIBRARY
from sanderling import coordination
from sanderling.clock import Clock
from sanderling.coordination.values import value_of
from sanderling.model.disks import PORTAL_PORT, Disk
from sanderling.settings import Settings

WORKING: Final = frozenset({Role.WORKER})
CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
PRELOAD_S: Final = 5.0
LISTENS: Final = "0A"
ANY: Final = {"0" * 8, "0" * 32}
BACKING_STORE: Final = Path("/usr/lib/tgt/backing-store/bs_rbd.so")
KERNEL_LEAST: Final = (5, 18)


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    own = settings.iscsi_worker
    rbd = settings.images.backend == "rbd"
    interfaces = "bring the interface up, or mend the subnet (sanderling subnet list)"
    found = [
        Check("tgtd", lambda: look_at_tgtd(own.tgtd, BACKING_STORE if rbd else None), "apt-get install tgt tgt-rbd", WORKING),
        Check("guard", lambda: look_at_guard(own.guard), "make guard", WORKING),
        Check("libiscsi", lambda: look_at_library(LIBRARY), "apt-get install libiscsi7", WORKING),
        Check("port 3260", lambda: look_at_port(Path("/proc")), "run this as root", WORKING),
        Check("kernel", lambda: look_at_kernel(os.uname().release), "use Debian 12's kernel or a newer one", WORKING),
        Check("runtime folder", lambda: look_at_runtime(Path(settings.sanderling.runtime_dir)), "run this as root", WORKING),
    ]
    if own.addresses == "netlink":
        status = Path("/proc/self/status")
        found.append(Check("capabilities", lambda: look_at_capabilities(status.read_text()), "run this as root", WORKING))
    if settings.coordination.backend == "consul":
        found.append(Check("interfaces", lambda: look_at_interfaces(settings, clock=clock), interfaces, WORKING))
    return found


def look_at_tgtd(program: str, backing_store: Path | None) -> Iterable[Finding]:
    if shutil.which(program) is None:
        yield fail("tgtd", f"{program} is not there", "apt-get install tgt, or name it in [iscsi_worker] tgtd")
        return
    done = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=PRELOAD_S, check=False)
    yield ok("tgtd", f"{program}, version {(done.stdout or done.stderr).strip()[:40]}")
    if backing_store is not None and not backing_store.is_file():
        yield fail("tgtd", f"{backing_store} is not there: it cannot serve RBD images", "apt-get install tgt-rbd")


def look_at_library(name: str) -> Iterable[Finding]:
    """With it a worker looks whether a target answers; without it no export is opened."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        yield fail("libiscsi", f"{error}", "apt-get install libiscsi7")
    else:
        yield ok("libiscsi", f"{name} can be loaded")


def look_at_guard(path: str) -> Iterable[Finding]:
    library = GuardLibrary(path)  # its refusal says how to make it
    environment = {"LD_PRELOAD": str(library.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["true"], capture_output=True, text=True, timeout=PRELOAD_S, check=False, env=environment)
    if done.returncode or "cannot be preloaded" in done.stderr:
        yield fail("guard", f"{library.path} cannot be preloaded", "make guard, on this host")
    else:
        yield ok("guard", f"{library.path} can be loaded and preloaded")


def look_at_port(proc: Path) -> Iterable[Finding]:
    """Who listens on every address takes the port from all paths."""
    what, foreign = f"port {PORTAL_PORT}", []
    for table in ("tcp", "tcp6"):
        rows = (line.split() for line in (proc / "net" / table).read_text().splitlines()[1:])
        foreign += [row[1] for row in rows if row[3] == LISTENS and _is_foreign(row[1])]
    if foreign:
        fix = "systemctl mask --now tgt.service (or stop what `ss -ltnp sport = :3260` names), then restart the worker"
        yield fail(what, "somebody listens on it at every address: no path's portal can be opened", fix)
    else:
        yield ok(what, "nobody listens on it at every address")


def _is_foreign(local: str) -> bool:
    address, _, port = local.partition(":")
    return address in ANY and int(port, 16) == PORTAL_PORT


def look_at_kernel(release: str) -> Iterable[Finding]:
    found = tuple(int("".join(filter(str.isdecimal, part)) or 0) for part in release.split(".")[:2])
    if found < KERNEL_LEAST:
        yield fail(
            "kernel", f"{release}; 5.18 is the oldest that lends addresses as is needed", "use Debian 12's, or a newer one"
        )
    else:
        yield ok("kernel", release)


def look_at_runtime(folder: Path) -> Iterable[Finding]:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield fail("runtime folder", f"{folder} cannot be written by this user", "run this, and the worker, as root")
    else:
        yield ok("runtime folder", f"{folder} can be written")


def look_at_capabilities(status: str) -> Iterable[Finding]:
    """Of this process: a worker started as this one was has the same."""
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        fix = "run this as root; in a container, add these capabilities to it"
        yield fail("capabilities", f"without {', '.join(missing)} no address can be lent and announced", fix)
    else:
        yield ok("capabilities", ", ".join(CAPABILITIES))


def look_at_interfaces(settings: Settings, *, clock: Clock) -> Iterable[Finding]:
    store = coordination.connect(settings, clock=clock)
    try:
        disks = [value_of(entry, Disk) for entry in store.list("disks/").entries]
    finally:
        store.close()
    present: Any = iscsi_worker.addresses.connect(settings).interfaces()
    yield needed(disks, present)


def needed(disks: Collection[Disk | None], present: Collection[str]) -> Finding:
    """The interfaces of the paths of started disks, against those of this host."""
    wanted = {path.interface for disk in disks if disk is not None and disk.started for path in disk.paths}
    missing = sorted(wanted - set(present))
    if missing:
        seen = f"{', '.join(missing)} not there: this gateway cannot serve the paths on it"
        return warn("interfaces", seen, "bring it up, or give this host an interface of that name")
    return ok("interfaces", f"{', '.join(sorted(wanted)) or 'none'} needed by started disks, all there")
