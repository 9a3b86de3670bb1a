"""Which keys have changed, told by who changed them: a reader then looks at those, where a watch would hand it all there are.

Each writer keeps a short journal under a key of its own. It says what to look at, never what is there; a reader that cannot tell
what it missed reads everything.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

PREFIX: Final = "changes/"
KEPT: Final = 16  # keys that a journal names; whoever has missed more reads everything, which is less work than so many keys


class Changes(BaseModel):
    """The value of `changes/<kind>/<name>`: the last of the `count` keys that its writer changed since it began as `since`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    since: str
    count: int = 0
    keys: tuple[str, ...] = ()

    def after(self, known: "Changes | None") -> tuple[str, ...] | None:
        """The keys noted after `known`, by the same writer; None when they are not all named here any more."""
        if known is not None and known.since != self.since:
            return None
        new = self.count - (known.count if known else 0)
        return self.keys[len(self.keys) - new :] if 0 <= new <= len(self.keys) else None


class Journal:
    """A writer's side. Threads may note and write at once: what one has noted is written by itself or by another."""

    def __init__(self, kind: str, name: str) -> None:
        self.key: Final = f"{PREFIX}{kind}/{name}"
        self._changes = Changes(since=uuid4().hex)
        self._written: Changes | None = None
        self._lock = threading.Lock()  # guards what is noted; never held while a store is waited for
        self._writing = threading.Lock()

    def note(self, keys: Iterable[str]) -> None:
        """These have changed. Nobody is told before `write`."""
        with self._lock:
            noted = tuple(dict.fromkeys(keys))
            told = (*self._changes.keys, *noted)[-KEPT:]
            self._changes = Changes(since=self._changes.since, count=self._changes.count + len(noted), keys=told)

    @property
    def is_written(self) -> bool:
        """Whether nothing was noted since the last write."""
        return self._written == self._changes

    def write(self, put: Callable[[str, bytes], bool], *, again: bool = False) -> bool:
        """Tell everybody, by `put`, what was noted and is not yet written; False when it is refused. `again` writes in any case.

        What `put` raises is raised, and what was noted stays to be written.
        """
        with self._writing:
            changes = self._changes
            if self._written == changes and not again:
                return True
            if not put(self.key, changes.model_dump_json().encode()):
                return False
            self._written = changes
            return True
