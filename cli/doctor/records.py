"""The records: that they answer, that their schema is that of this release, and that there is room for them."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from cli.doctor.base import DRIVING, Check, Finding, fail, ok, warn
from sanderling.clock import Clock
from sanderling.records.database import Records
from sanderling.settings import Settings

ROOM_LEAST_BYTES: Final = 64 << 20
ROOM_BYTES: Final = 1 << 30
FIX: Final = "mend [records] url, and see that its database runs and lets this user in"


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    return [Check("records", lambda: look(settings, clock=clock), FIX, DRIVING)]


def look(settings: Settings, *, clock: Clock) -> Iterable[Finding]:
    url = make_url(settings.records.url)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        if not path.is_file():  # asking for it would make it, as this user's
            fix = "start sanderling-api or sanderling-conductor once, which make it, or restore it from a backup"
            yield fail("records", f"there is no file {path}", fix)
            return
        yield from _file(path)
        yield _room(path)
    records = Records(settings.records, clock=clock)
    try:
        records.ping()
        yield ok("records", f"{url.render_as_string(hide_password=True)} answers")
        present, wanted = records.schema()
    finally:
        records.close()
    if present == wanted:
        yield ok("records' schema", f"revision {present}")
    else:
        fix = "restart sanderling-conductor and sanderling-api of the newest release; they bring it up to date"
        yield fail("records' schema", f"revision {present}, this release works with {wanted}", fix)


def _file(path: Path) -> Iterable[Finding]:
    owner = path.parent.stat().st_uid
    others = [one.name for one in (path, *path.parent.glob(f"{path.name}-*")) if one.stat().st_uid != owner]
    if others:
        fix = f"chown --reference={path.parent} {path}*"
        yield fail("records' owner", f"{', '.join(others)} not owned by the owner of {path.parent}: it cannot be written", fix)


def _room(path: Path) -> Finding:
    free = shutil.disk_usage(path.parent).free
    seen = f"{free >> 20} MiB free in {path.parent}"
    fix = "make room on that file system: when it is full nothing can be changed any more"
    if free < ROOM_LEAST_BYTES:
        return fail("records' room", seen, fix)
    return warn("records' room", seen, fix) if free < ROOM_BYTES else ok("records' room", seen)
