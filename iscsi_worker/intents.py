"""What this worker was told about single exports, and what it stands back from: each good for one epoch, or for a while."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from iscsi_worker.decisions import Handing
from iscsi_worker.view import View
from iscsi_worker.watch import Watch
from sanderling.clock import Clock
from sanderling.errors import StaleEpoch
from sanderling.model.exports import Epoch, ExportId, Kept
from sanderling.model.operations import Cause
from sanderling.settings import Worker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Until(Generic[T]):
    value: T
    until: float


@dataclass(frozen=True, slots=True)
class Told:
    """Everything in force at one moment; `refused` and `kept` with the reasons."""

    wanted: Mapping[ExportId, Epoch]
    unwanted: Mapping[ExportId, Epoch]
    handing: Mapping[ExportId, Handing]
    refused: Mapping[ExportId, str]
    kept: Mapping[ExportId, Kept]


class Intents:
    """Commands come on the bus's threads, refusals on lanes, and the loop reads: every method may be called at any time."""

    def __init__(self, settings: Worker, watch: Watch, *, wake: Callable[[], None], clock: Clock) -> None:
        self._settings, self._watch, self._wake, self._clock = settings, watch, wake, clock
        self._lock = threading.Lock()  # guards all below
        self._wanted: dict[ExportId, _Until[Epoch]] = {}
        self._unwanted: dict[ExportId, Epoch] = {}
        self._handing: dict[ExportId, _Until[Handing]] = {}
        self._refused: dict[ExportId, _Until[str]] = {}
        self._kept: dict[ExportId, _Until[Kept]] = {}
        self._causes: dict[ExportId, _Until[Cause]] = {}

    def want(self, export: ExportId, epoch: Epoch, *, cause: Cause) -> None:
        """path_host: take this export as soon as it is free, whatever placement says, and stand ready for it until then.

        `StaleEpoch` for an old epoch, here and below. It holds for a while only; a command that is repeated renews it.
        """
        self._check(export, epoch)
        with self._lock:
            self._note(export, cause)
            self._wanted[export] = _Until(epoch, self._clock.monotonic() + self._settings.move_intent_s)
            self._unwanted.pop(export, None)
            self._attend(export.key)
        self._wake()

    def unwant(self, export: ExportId, epoch: Epoch, *, cause: Cause) -> None:
        """clean: give this export up and stand back from it for a while."""
        self._check(export, epoch)
        with self._lock:
            self._note(export, cause)
            self._unwanted[export] = epoch
            self._wanted.pop(export, None)
        self.refuse(export, "given up by command")

    def hand_on(self, export: ExportId, epoch: Epoch, *, destination: str, cause: Cause) -> None:
        """clean, with a destination: pass this export on to that gateway once it stands ready, and serve it until then."""
        self._check(export, epoch)
        with self._lock:
            operation_id = cause.operation_id
            if export in self._kept and self._kept[export].value.operation_id == operation_id:
                return  # a repetition that crossed with the answer
            self._note(export, cause)
            self._handing[export] = _Until(
                Handing(epoch, destination, operation_id), self._clock.monotonic() + self._settings.move_intent_s
            )
            self._kept.pop(export, None)
            self._attend(f"nodes/{destination}")
        self._wake()

    def refuse(self, export: ExportId, reason: str) -> None:
        """Stand back from it for a while: another gateway shall try."""
        with self._lock:
            self._refused[export] = _Until(reason, self._clock.monotonic() + self._settings.stand_back_s)
        self._wake()

    def keep(self, export: ExportId, operation_id: str, reason: str) -> None:
        """Note that it was not handed on, for whoever asked; the command counts no more."""
        kept = Kept(operation_id=operation_id, reason=reason)
        with self._lock:
            self._handing.pop(export, None)
            self._kept[export] = _Until(kept, self._clock.monotonic() + self._settings.stand_back_s)
        self._wake()

    def cause(self, export: ExportId) -> Cause | None:
        """The operation of the last command about this export, as long as what follows from it may be under way."""
        with self._lock:
            return _in_force(self._causes, self._clock.monotonic()).get(export)

    def told(self) -> Told:
        """What is in force now."""
        with self._lock:
            now = self._clock.monotonic()
            return Told(
                wanted=_in_force(self._wanted, now),
                unwanted=dict(self._unwanted),
                handing=_in_force(self._handing, now),
                refused=_in_force(self._refused, now),
                kept=_in_force(self._kept, now),
            )

    def settle(self, view: View) -> None:
        """Forget what has run out, and what was said of an epoch that is over."""
        with self._lock:
            now = self._clock.monotonic()
            self._wanted = {e: one for e, one in self._wanted.items() if one.until > now and not _is_over(view, e, one.value)}
            self._unwanted = {e: epoch for e, epoch in self._unwanted.items() if not _is_over(view, e, epoch)}
            self._handing = {
                e: one for e, one in self._handing.items() if one.until > now and not _is_over(view, e, one.value.epoch)
            }
            self._refused = {e: one for e, one in self._refused.items() if one.until > now}
            self._kept = {e: one for e, one in self._kept.items() if one.until > now}
            self._causes = {e: one for e, one in self._causes.items() if one.until > now}
            waited_for = {export.key for export in self._wanted}
            waited_for |= {f"nodes/{one.value.destination}" for one in self._handing.values()}
            self._watch.neglect(but=waited_for)  # under the lock: what is attended to from now on stays so

    def _note(self, export: ExportId, cause: Cause) -> None:
        self._causes[export] = _Until(cause, self._clock.monotonic() + self._settings.move_intent_s)

    def _attend(self, key: str) -> None:
        self._watch.attend(key, for_s=self._settings.move_intent_s)

    def _check(self, export: ExportId, epoch: Epoch) -> None:
        held = self._watch.look(export.key).exports.get(export)
        if held is None or held.export.epoch != epoch:
            now = str(held.export.epoch) if held else "none"
            raise StaleEpoch(f"export {export} is at epoch {now}, the command is for {epoch}", export=str(export), epoch=now)


def _in_force(known: Mapping[ExportId, _Until[T]], now: float) -> dict[ExportId, T]:
    return {export: one.value for export, one in known.items() if one.until > now}


def _is_over(view: View, export: ExportId, epoch: Epoch) -> bool:
    """Whether the export is gone or past that epoch. An epoch to come is of a command that is newer than the view."""
    return export not in view.exports or view.exports[export].export.epoch > epoch
