"""The clock of this host: whether anything keeps it right, and whether those it works with have the same time."""

import contextlib
import ctypes
import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import httpx

from cli.access import Access, find
from cli.client import verified
from cli.doctor.base import Check, Finding, ok, warn
from sanderling.clock import Clock
from sanderling.errors import Problem
from sanderling.settings import Settings

APART_S: Final = 2.0  # an HTTP date has whole seconds
ASK_S: Final = 5.0
STA_UNSYNC: Final = 0x40
FIX: Final = "apt-get install chrony, and let it reach a time server"


class Kept(NamedTuple):
    """What the kernel knows of its clock."""

    in_step: bool
    error_most_s: float


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    return [
        Check("clock", lambda: [look_at_kernel(kernel())], FIX),
        Check("clock", lambda: look_at_others(settings, clock=clock), FIX),
    ]


def kernel() -> Kept | None:
    """By adjtimex(2), which only reads when it is given no mode: mode, offset, frequency, largest error, error, status.

    None where that is not allowed.
    """
    buffer = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return None
    _, _, _, error_most_us, _, status = struct.unpack_from("@Iqqqqi", buffer)
    return Kept(in_step=not status & STA_UNSYNC, error_most_s=error_most_us / 1e6)


def look_at_kernel(kept: Kept | None) -> Finding:
    if kept is None:
        return warn("clock", "the kernel does not tell here how it is kept", "run this on the host itself, not in a container")
    if kept.in_step:
        return ok("clock", f"kept in step; wrong by {kept.error_most_s:.3f} s at most, says the kernel")
    return warn("clock", "nothing keeps it in step, says the kernel", FIX)


def look_at_others(settings: Settings, *, clock: Clock) -> Iterable[Finding]:
    """The dates of their HTTP answers. Who does not answer is another check's to tell."""
    for name, path, access in _others(settings):
        before = clock.wall()
        try:
            answer = httpx.get(f"{access.url}{path}", timeout=ASK_S, verify=verified(access), trust_env=False)
        except (Problem, httpx.HTTPError, OSError, ValueError):
            continue
        said = answer.headers.get("date")
        if said:
            yield compared(name, said, before=before, after=clock.wall())


def compared(name: str, said: str, *, before: datetime, after: datetime) -> Finding:
    """The other's date, taken between these two moments here."""
    theirs = parsedate_to_datetime(said).astimezone(UTC)
    apart_s = max((before - theirs).total_seconds() - 1.0, (theirs - after).total_seconds(), 0.0)
    if apart_s > APART_S:
        seen = f"{name} has another time than this host, by {apart_s:.0f} s or more"
        return warn(f"clock of {name}", seen, f"on both: {FIX}")
    return ok(f"clock of {name}", "the same as here, by the date of its answer")


def _others(settings: Settings) -> Iterable[tuple[str, str, Access]]:
    consul = settings.coordination
    if consul.backend == "consul":
        agent = Access(consul.url, "", ca_file=consul.ca_file, cert_file=consul.cert_file, key_file=consul.key_file)
        yield "the Consul agent", "/v1/status/leader", agent
    with contextlib.suppress(Problem):
        yield "the API", "/healthz", find()
