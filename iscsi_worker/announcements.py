"""Repeating announcements: a neighbour may miss the first, and whoever waited for the others would hold up other exports."""

import threading
from collections.abc import Callable, Iterable
from itertools import accumulate

import structlog

from iscsi_worker.addresses.base import Addresses
from sanderling.clock import Clock
from sanderling.errors import AddressFailed
from sanderling.model.disks import Path
from sanderling.settings import Worker

log = structlog.get_logger(__name__)


class Announcements:
    """What is still to be announced again. `follow` runs in a thread of its own; every other method returns at once."""

    def __init__(self, settings: Worker, addresses: Addresses, *, certain: Callable[[], bool], clock: Clock) -> None:
        """Nothing is announced unless `certain` says that the locks were proved a moment ago: another may have taken over."""
        self._settings, self._addresses, self._certain, self._clock = settings, addresses, certain, clock
        self._lock = threading.Lock()
        self._due: dict[str, tuple[Path, list[float]]] = {}
        self._more = threading.Event()

    def repeat(self, paths: Iterable[Path]) -> None:
        """Announce each path's address again, as often as set: soon at first, then further and further apart.

        A neighbour that heard none of the first, since its own network was being mended, would use the old one for a minute.
        """
        now, own = self._clock.monotonic(), self._settings
        first = [own.announce_interval_s] * (own.announcements - 1)
        pauses = accumulate(first, lambda pause_s, _: min(2 * pause_s, own.announce_interval_most_s))
        moments = list(accumulate(pauses, initial=now))[1:]
        with self._lock:
            for path in paths:
                self._due[path.address] = (path, list(moments))
        self._more.set()

    def forget(self, addresses: Iterable[str]) -> None:
        """Announce these no more: another node may be about to."""
        with self._lock:
            for address in addresses:
                self._due.pop(address, None)

    def turn(self) -> float | None:
        """Announce what is due; seconds until there is more, None when there is nothing left."""
        with self._lock:  # held while announcing, so that nothing is announced once it was forgotten
            now, certain = self._clock.monotonic(), self._certain()
            for path, moments in list(self._due.values()):
                while moments and moments[0] <= now:
                    moments.pop(0)
                    if certain:
                        self._announce(path)
                if not moments:
                    del self._due[path.address]
            return min(moments[0] for _, moments in self._due.values()) - now if self._due else None

    def follow(self, stopping: threading.Event) -> None:
        """Announce until told to stop."""
        while not stopping.is_set():
            self._more.clear()
            left_s = self.turn()
            self._clock.wait(self._more, self._settings.renew_interval_s if left_s is None else left_s)

    def _announce(self, path: Path) -> None:
        try:
            self._addresses.announce(path.address, interface=path.interface)
        except AddressFailed as problem:
            log.warning("announcement failed", address=path.address, problem=problem.detail)
