"""How often one caller may ask for operations of a kind: a moving window in the memory of this process, by `limits`."""

import math
import threading
import time
from collections.abc import Mapping
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from sanderling.errors import SettingsRefused, TooManyRequests
from sanderling.model.operations import OperationKind

_ANY: Final = "*"


class Rates:
    """The limits that `text` gives, such as "disk.create: 600/minute, *: 12000/minute"; `*` is every kind that is not named.

    `SettingsRefused`, naming what is wrong, when it cannot be read. Every caller and every kind is counted by itself.
    """

    def __init__(self, text: str) -> None:
        self._limits = _read(text)
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._turn = threading.Lock()  # the storage's own may be taken away while it is waited for

    def count(self, kind: OperationKind, caller: str) -> None:
        """Count a request; `TooManyRequests`, and nothing counted, when it is one too many."""
        limit = self._limits.get(kind.value) or self._limits.get(_ANY)
        if limit is None:
            return
        with self._turn:
            if self._windows.hit(limit, caller, kind.value):
                return
            free_at = self._windows.get_window_stats(limit, caller, kind.value).reset_time
        raise TooManyRequests(
            f"{caller} has asked for {limit.amount} operations {kind} in {limit.get_expiry()} s, the most there may be; "
            "wait, and ask again",
            retry_after_s=max(1, math.ceil(free_at - time.time())),
            kind=kind.value,
        )


def _read(text: str) -> Mapping[str, RateLimitItem]:
    known = {_ANY, *(kind.value for kind in OperationKind)}
    found = dict[str, RateLimitItem]()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        kind, _, limit = (part.strip() for part in entry.partition(":"))
        if kind not in known:
            raise SettingsRefused(f"[api] rate_limits: {kind} is no kind of operation; give one of {', '.join(sorted(known))}")
        if kind in found:
            raise SettingsRefused(f"[api] rate_limits: {kind} is named twice; name each once")
        try:
            found[kind] = parse(limit)
        except ValueError as error:
            raise SettingsRefused(f"[api] rate_limits: {entry} cannot be read; write it as {kind}: 600/minute") from error
        if found[kind].amount < 1:
            raise SettingsRefused(f"[api] rate_limits: {entry} lets nobody ask; give 1 or more")
    return found
