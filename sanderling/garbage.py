"""How often Python looks for garbage in cycles: seldom, in processes that know a hundred thousand things."""

import gc
from typing import Final

GARBAGE_AFTER: Final = 50_000  # more objects than a turn of a worker's loop makes: its own die by their reference counts


def collect_rarely() -> None:
    """With Python's threshold each turn of a loop, and each thousand paths of a plan, pays for a walk over all that is known."""
    gc.set_threshold(GARBAGE_AFTER)
