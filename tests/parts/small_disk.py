"""A small file system of a test's own, to be filled to the last block."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab.parts.daemons import run

ROOM = "200m"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """The folder is one until the block ends; what it held is gone then."""
    run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0755", "sanderling-test", str(folder)])
    try:
        yield
    finally:
        run(["umount", "--lazy", str(folder)])


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """No room is left on the folder's file system until the block ends."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as out:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        out.write(bytes(size))
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                out.write(bytes(1 << 12))
        yield
    finally:
        ballast.unlink()
