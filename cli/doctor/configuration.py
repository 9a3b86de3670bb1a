"""The settings' file: that there is one, and that nobody reads its secrets who should not."""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from cli.doctor.base import Check, Finding, fail, ok, warn
from sanderling.clock import Clock
from sanderling.settings import Settings


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    return [Check("settings file", lambda: look(file), "run this as root, or as the user that the processes run as")]


def look(file: str | None) -> Iterable[Finding]:
    if file is None:
        fix = "write /etc/sanderling/sanderling.conf (docs/operations.md, section 6), or set SANDERLING_CONFIG to where it is"
        yield warn("settings file", "there is none: defaults and the environment alone count", fix)
        return
    path = Path(file).resolve()
    seen = path.stat()
    mode = stat.S_IMODE(seen.st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        fix = f"chmod 640 {path}, with the group sanderling"
        yield fail("settings file", f"{path} has mode {mode:o}: everybody may read what may hold passwords", fix)
    elif mode & stat.S_IWGRP:
        yield warn("settings file", f"{path} has mode {mode:o}: its group may change it", f"chmod 640 {path}")
    else:
        yield ok("settings file", f"{path}, mode {mode:o}")
    if not os.access(path.parent, os.X_OK):
        yield fail("settings file", f"{path.parent} cannot be entered by this user", f"chmod 750 {path.parent}")
