"""Memory of processes that know a hundred thousand things: garbage is looked for seldom, and what is free is given back."""

import ctypes
import gc
from typing import Final

GARBAGE_AFTER: Final = 50_000  # more objects than a turn of a worker's loop makes: its own die by their reference counts
_LIBC: Final = ctypes.CDLL(None)


def collect_rarely() -> None:
    """With Python's threshold each turn of a loop, and each thousand paths of a plan, pays for a walk over all that is known."""
    gc.set_threshold(GARBAGE_AFTER)


def give_back() -> None:
    """Return what is free in the heap to the system, by glibc's malloc_trim(3), which a text of many megabytes leaves there."""
    _LIBC.malloc_trim(0)
