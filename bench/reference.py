"""The reference algorithm's hand-over of a path, written anew from its description (behaviours.md, sections 4 and 5).

Nothing of it but the order of its steps, its sleeps and its one lock per path is here; each benchmark says what dropping and
taking a path is. Where the description leaves a choice, it is made in the reference's favour: no ssh, no ping, no load-dependent
waits before a lock.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Final

from sanderling.clock import SystemClock
from sanderling.coordination.base import Coordination

CLOCK: Final = SystemClock()
_NEVER: Final = threading.Event()
_WOKEN_WITHIN_S: Final = 60.0
_TAKEN_OVER_WITHIN_S: Final = 120.0
_LOCK_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Constants:
    """Its sleeps, in seconds. `fence_s` is what its attempt to switch off a node that does not answer takes."""

    drop_sessions_s: float = 3.0
    batch_s: float = 2.0
    poll_s: float = 0.25
    show_s: float = 10.0
    lock_delay_s: float = 15.0
    fence_s: float = 5.0
    after_map_s: float = 3.0

    @property
    def fixed_s(self) -> float:
        """What a reassignment sleeps before its first path and after its last."""
        return self.drop_sessions_s + self.show_s

    @property
    def without_sleeps(self) -> "Constants":
        """Lock-delay is Consul's, so it keeps the shortest that ours has too."""
        return replace(self, drop_sessions_s=0, batch_s=0, poll_s=0, show_s=0, lock_delay_s=0, fence_s=0, after_map_s=0)

    def printed(self, *names: str) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items() if not names or name in names)


def pause(seconds: float) -> None:
    CLOCK.wait(_NEVER, seconds)


@dataclass(slots=True)
class Node:
    """A node's service: its coordination and its one session."""

    coordination: Coordination
    consul_session: str

    @classmethod
    def on(cls, coordination: Coordination, name: str, *, lock_delay_s: int = 0) -> "Node":
        return cls(coordination, coordination.open_session(name, check_ttl_s=3600.0, lock_delay_s=lock_delay_s))


class Handover:
    """A path's key beneath `prefix`, and how it goes from node to node: one path after another, source before target."""

    def __init__(self, prefix: str, name: str, constants: Constants) -> None:
        self._prefix, self._constants = prefix, constants
        self.key, self.status = f"{prefix}paths/{name}", f"{prefix}moves/{name}"

    def belongs_to(self, node: Node) -> None:
        assert node.coordination.acquire(self.key, b"", consul_session=node.consul_session), f"{self.key} is locked"

    def move(self, source: Node, target: Node, *, drop: Callable[[], None], take: Callable[[], None]) -> None:
        """Returns once the target's success has been polled."""
        source.coordination.put(self.status, b"moving")
        index = target.coordination.list(f"{self._prefix}paths/").index
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(self._take, target, index, take)
            drop()
            assert source.coordination.release(self.key, b"", consul_session=source.consul_session), "the lock was lost"
            while (entry := source.coordination.get(self.status)) is None or entry.value != b"succeeded":
                assert not taken.done() or taken.exception() is None, taken.exception()
                pause(self._constants.poll_s)
            taken.result()

    def take_over(self, target: Node, *, take: Callable[[], None]) -> None:
        """What the other node's service does once the owner's session is gone; it tries for the lock until the delay is over."""
        constants, index = self._constants, target.coordination.list(f"{self._prefix}paths/").index
        deadline = CLOCK.monotonic() + _TAKEN_OVER_WITHIN_S
        while self._is_locked(target):
            assert CLOCK.monotonic() < deadline, f"{self.key} never became free"
            index = target.coordination.watch(f"{self._prefix}paths/", index=index, timeout_s=10.0).index
        pause(constants.batch_s)
        pause(constants.fence_s)
        while not target.coordination.acquire(self.key, b"", consul_session=target.consul_session):
            assert CLOCK.monotonic() < deadline, f"{self.key} cannot be locked"
            pause(_LOCK_EVERY_S)
        take()

    def _is_locked(self, node: Node) -> bool:
        entry = node.coordination.get(self.key)
        return entry is not None and entry.consul_session is not None

    def _take(self, target: Node, index: int, take: Callable[[], None]) -> None:
        """The target's service: it wakes for any change of the tree, lets changes gather, and takes what is free."""
        deadline = CLOCK.monotonic() + _WOKEN_WITHIN_S
        while True:
            listing = target.coordination.watch(f"{self._prefix}paths/", index=index, timeout_s=10.0)
            if listing.index != index:
                pause(self._constants.batch_s)
            index = listing.index
            if target.coordination.acquire(self.key, b"", consul_session=target.consul_session):
                break
            assert CLOCK.monotonic() < deadline, f"{self.key} never became free"
        take()
        target.coordination.put(self.status, b"succeeded")
