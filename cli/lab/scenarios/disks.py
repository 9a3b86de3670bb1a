"""F7: the disk of the records full, broken or slow. Serving needs no records; what cannot be recorded must be refused."""

import contextlib
import os
import random
from collections.abc import Iterator

from cli.lab.filesystems import LoopFilesystem
from cli.lab.lab import CLOCK, Lab
from cli.lab.scenarios.base import PATIENT_S, Scenario

ACCEPTED, UNAVAILABLE, NO_ROOM = 202, 503, 507
ASKED_MAX = 40
SLOW_BYTES_PER_S = 8192  # a page takes half a second
WRITERS = ("api", "conductor-1")
_FILESYSTEM: list[LoopFilesystem] = []


@contextlib.contextmanager
def on_a_loop(lab: Lab) -> Iterator[None]:
    """The records on a block device of their own; whoever writes them is ended for each change of that."""
    filesystem = LoopFilesystem(lab.cluster.records_folder, lab.folder / "records.img")
    with lab.without(WRITERS):
        filesystem.mount()
    _FILESYSTEM.append(filesystem)
    try:
        yield
    finally:
        _FILESYSTEM.clear()
        with lab.without(WRITERS):
            filesystem.unmount()


def full(lab: Lab, _dice: random.Random) -> None:
    """The database goes on for a while in the room that it already has."""
    filler = lab.cluster.records_folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(os.sysconf("SC_PAGE_SIZE"))):
                pass
        lab.did("the records' file system is full")
        for _ in range(ASKED_MAX):
            answer = lab.ask(expected=None)
            if answer is None or answer.status_code != ACCEPTED:
                break
        if answer is not None and answer.status_code not in {ACCEPTED, NO_ROOM}:
            lab.found("F7", f"a creation without room was answered with {answer.status_code}: {answer.text[:300]}")
        lab.hold(3.0)
    finally:
        filler.unlink(missing_ok=True)
    lab.ask()


def read_only(lab: Lab, dice: random.Random) -> None:
    """As ext4 makes itself when its disk fails. It is mended as a person would: ended, mounted anew, started."""
    lab.ask()
    lab.hold(dice.random() * 0.5)
    _FILESYSTEM[0].break_down()
    lab.did("the records' file system has made itself read-only")
    for _ in range(5):
        answer = lab.ask(expected=None)
        if answer is not None and answer.status_code not in {UNAVAILABLE, NO_ROOM}:
            lab.found("F7", f"a creation that cannot be recorded was answered with {answer.status_code}: {answer.text[:300]}")
        lab.hold(0.5)
    shown = lab.cluster.http.get("/v1/disks")
    if shown.status_code not in {200, UNAVAILABLE}:
        lab.found("F7", f"a list was answered with {shown.status_code}: {shown.text[:300]}")
    lab.hold(lab.span(3.0, 8.0))
    with lab.without(WRITERS):
        _FILESYSTEM[0].repair()
    lab.ask()


def slow(lab: Lab, _dice: random.Random) -> None:
    """Each creation is recorded in its time, or refused."""
    with _FILESYSTEM[0].slow(SLOW_BYTES_PER_S, [lab.cluster[name].pid for name in WRITERS]):
        lab.did(f"the records' disk writes {SLOW_BYTES_PER_S} bytes/s")
        until = CLOCK.monotonic() + lab.span(8.0, 15.0)
        longest_s = 0.0
        while CLOCK.monotonic() < until:
            began = CLOCK.monotonic()
            answer = lab.ask(expected=None)
            longest_s = max(longest_s, CLOCK.monotonic() - began)
            if answer is not None and answer.status_code not in {ACCEPTED, UNAVAILABLE}:
                lab.found("F7", f"a creation on a slow disk was answered with {answer.status_code}: {answer.text[:300]}")
        lab.measured["the slowest answer to a creation came"] = longest_s


SCENARIOS = (
    Scenario("F7-records", "the records' disk full", full, quick=1, full=4, keeps=True, patience_s=PATIENT_S),
    Scenario(
        "F7-readonly",
        "the records' disk broken, read-only",
        read_only,
        quick=0,
        full=2,
        keeps=True,
        patience_s=PATIENT_S,
        around=on_a_loop,
    ),
    Scenario("F7-slow", "the records' disk slow", slow, quick=0, full=2, keeps=True, patience_s=PATIENT_S, around=on_a_loop),
)
