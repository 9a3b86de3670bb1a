"""sanderling up: everything in one process, on loopback portals and real target processes. The first five minutes."""

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from cli.access import Access, files, own_file, read
from cli.client import Client
from cli.output import POLL_S, out, watched
from sanderling import logs
from sanderling.clock import SystemClock
from sanderling.errors import Conflict, Malformed, NotFound, SettingsRefused
from sanderling.model.disks import PORTAL_PORT
from sanderling.signals import Told

PORTAL = ("127.0.1.1", PORTAL_PORT)  # the first address of the subnet
SUBNET = {"name": "loopback", "cidr": "127.0.1.0/24", "interface": "lo"}
SERVED_WITHIN_S = 15.0
DEMO = {"name": "demo", "size_bytes": 256 << 20, "paths": 2, "allow_any": True}


def up(
    state: Annotated[
        Path, typer.Option(help="Folder for everything that outlives this process; it is found again next time.")
    ] = Path("sanderling-state"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the HTTP API on 127.0.0.1; 0 for any.")] = 8080,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Make sure that a disk called demo exists.")] = True,
) -> None:
    """Run everything in this process until Ctrl-C: API, conductor, worker, leader; data in sparse files, paths on 127.0.1.0/24.

    Needs tgt on this machine, and the iSCSI port 3260 for itself. No root, RabbitMQ, Consul or Ceph.
    """
    told = Told(signal.SIGINT, signal.SIGTERM)
    with _owned(state) as folder, (folder / "sanderling.log").open("a") as journal:
        from cli.together import running, settings_of  # noqa: PLC0415  a second of imports that no other command needs

        _refuse_a_taken_portal(folder)
        settings = settings_of(folder, port)
        logs.configure(settings.sanderling, process="up", to=journal)
        out.print(f"Starting; state in {folder}, log in {folder / 'sanderling.log'}", highlight=False)
        with running(settings, folder) as access:
            _prepare(access, demo=demo, told=told)
            if not told.is_set():
                _greet(access, folder)
            told.wait()
            out.print("Stopping: giving up every export in order", highlight=False)
    out.print("Stopped. Start again with the same --state to find everything as it was.", highlight=False)


@contextlib.contextmanager
def _owned(state: Path) -> Iterator[Path]:
    """The folder, ours alone for as long as this runs; the kernel lets go of it however we end."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        held: TextIO = (state / "lock").open("a+")
    except OSError as error:
        raise SettingsRefused(f"--state: {state} cannot be used: {error.strerror}; choose another folder") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            raise SettingsRefused(
                f"--state: {state} is in use by process {held.read().strip() or 'unknown'}; stop it, or choose another folder"
            ) from None
        held.truncate(0)
        held.write(str(os.getpid()))
        held.flush()
        yield state.resolve()


def _refuse_a_taken_portal(folder: Path) -> None:
    """Whoever listens on the first portal, or on every address, is named; but not our own targets, which are adopted."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        try:
            probe.bind(PORTAL)
        except OSError as error:
            if _has_targets(folder):
                return
            raise SettingsRefused(
                f"{PORTAL[0]} port {PORTAL[1]} cannot be used ({error.strerror}); stop what serves iSCSI here: another "
                "`sanderling up`, or Debian's tgtd (systemctl stop tgt.service)"
            ) from error


def _has_targets(folder: Path) -> bool:
    """Whether a target process of this folder has outlived the last run."""
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if cwd.readlink().is_relative_to(folder / "run"):
                return True
    return False


def _prepare(access: Access, *, demo: bool, told: threading.Event) -> None:
    """A subnet on loopback, and a disk to try; what is there already stays as it is."""
    client = Client(access)
    with contextlib.suppress(Conflict):
        client.post("/v1/subnets", SUBNET)
    if not demo or told.is_set():
        return
    try:
        disk = client.get("/v1/disks/demo")
    except NotFound:
        watched(client, client.post("/v1/disks", DEMO), told=told)
        return
    if disk["started"]:
        _await_served(client, told)


def _await_served(client: Client, told: threading.Event) -> None:
    """Wait until the demo disk's exports are taken again, or give up with a word."""
    clock = SystemClock()
    deadline = clock.monotonic() + SERVED_WITHIN_S
    while clock.monotonic() < deadline:
        if all(path["status"] == "serving" for path in client.get("/v1/disks/demo")["paths"]):
            return
        if clock.wait(told, POLL_S):
            return
    out.print("The demo disk is not served yet; see: sanderling disk show demo", highlight=False)


def _is_found(access: Access) -> bool:
    """Whether a command that is typed elsewhere finds us through the user's own client file."""
    try:
        return files()[0] == own_file() and read(own_file()).url == access.url
    except (FileNotFoundError, Malformed):
        return False


def _greet(access: Access, folder: Path) -> None:
    paths = list(Client(access).pages("/v1/paths", "paths", disk="demo"))
    where = "" if _is_found(access) else f"SANDERLING_CLIENT={folder}/client.json "
    shown = [
        f"Ready at {access.url}. Ctrl-C stops it.",
        "",
        *(f"  iscsi-ls -s iscsi://{path['address']}" for path in paths),
        "",
        "From another shell:",
        f"  {where}.venv/bin/sanderling disk create first --size 1G --paths 2 --allow-any --wait",
        f"  {where}.venv/bin/sanderling path list",
    ]
    out.print("\n".join(shown), highlight=False, markup=False)  # at once: who waits for its first line may read on
