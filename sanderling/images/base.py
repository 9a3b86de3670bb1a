"""The seam to the store that holds the data: named images of bytes, text metadata on each, and the fence.

Methods are bounded by settings and raise `Unavailable` when the store cannot be reached, `NotFound` for an image that is not
there, `ImageFailed` for a refusal. tests/contract/test_images.py is the definition; it runs on every backend. After an
`Unavailable` a change may have been made or not, and may still be made: read, or repeat.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # an image's name; another is an assertion


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`clones` are the images that read from it what they have not written themselves."""

    name: str
    size_bytes: int
    taken_at: datetime
    clones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackingStore:
    """What a target process opens. `kind` is "file" or "rbd"; `options` are the target's own, such as `conf=…;id=…`."""

    kind: str
    location: str
    options: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    total_bytes: int
    free_bytes: int


class Images(Protocol):
    def create(self, name: str, size_bytes: int, *, metadata: dict[str, str]) -> None:
        """Make the image and its metadata. Repeating it with the same size is no error; another size is `Conflict`.

        A crash in the middle leaves something that a repeat completes. Features are those that several openers can
        share safely under an outside owner: no exclusive lock, no cache.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove image, snapshots and metadata. One that is not there is no error; `InUse` while a client has it open, or, naming
        them as `clones` in its context, while there are clones of its snapshots.

        An `Unavailable` with `left_bytes` in its context has done a part of the work: repeat to go on.
        """
        ...

    def grow(self, name: str, size_bytes: int) -> None:
        """Make it that large; what is added reads as zeros. No error when it is; `Conflict` when it is larger."""
        ...

    def stat(self, name: str) -> Image: ...

    def used_bytes(self, name: str) -> int:
        """What it takes up, snapshots and replicas left out; `Unavailable` when it cannot be counted in time."""
        ...

    def snapshot(self, name: str, snapshot: str) -> None:
        """Keep what the image holds now, under this name. Repeating it changes nothing.

        Everything acknowledged to the image's one writer before this call is in it, and if something is not, nothing that this
        writer began after it is. A store that cannot promise this while a client has the image open says `InUse` then.
        """
        ...

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        """Oldest first."""
        ...

    def roll_back(self, name: str, snapshot: str, *, only_if: tuple[str, str], timeout_s: float) -> None:
        """Make the image hold what the snapshot does, its size included; nobody may have it open. Repeating it goes on.

        It begins only while that key of the image's metadata holds that value, however late it comes to that: `Conflict` else.
        After a failure some of it may have been done; but nothing of it is done any more.
        """
        ...

    def end_roll_back(self, name: str) -> None:
        """Once this has returned no roll-back of the image goes on. Change what they begin by before."""
        ...

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """One that is not there is no error; `InUse`, naming them, while there are clones of it."""
        ...

    def clone(self, name: str, snapshot: str, clone: str) -> None:
        """Make the image `clone`, holding what the snapshot does, and none of the image's metadata. Repeating it changes nothing;
        `Conflict` when another image has the name.
        """
        ...

    def list(self) -> tuple[str, ...]: ...

    def get_metadata(self, name: str) -> dict[str, str]: ...

    def set_metadata(self, name: str, key: str, value: str, *, expected: str | None) -> bool:
        """Write one key if it now holds `expected` (None: it is not there); False, and nothing written, when it does not.

        Once it has returned True the write is durable.
        """
        ...

    def backing_store(self, name: str) -> BackingStore: ...

    def capacity(self) -> Capacity | None:
        """What the pool can hold; None when the store cannot say."""
        ...

    def clients(self, name: str) -> tuple[str, ...]:
        """Every client that has the image open or holds a lock on it, this one left out. May name clients that just died."""
        ...

    def fence(self, client: str) -> None:
        """Once this has returned, a write by that client fails, also one that is already open in another process.

        Durable against restarts of this process and, where the store keeps it, for days. Fencing twice is no error.
        """
        ...

    def is_fenced(self, client: str) -> bool: ...

    def ping(self) -> None:
        """Return when the store answers; `Unavailable` when it does not within the bound."""
        ...

    def touch(self) -> None:
        """Return when data can be reached; `Unavailable` when not within the bound. Every worker calls it once a second."""
        ...

    def close(self) -> None: ...
