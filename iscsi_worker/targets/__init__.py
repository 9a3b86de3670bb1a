"""What speaks iSCSI: the seam, and its backends by the name that settings use."""

from iscsi_worker.targets.base import Targets
from sanderling.clock import Clock
from sanderling.settings import Settings


def connect(settings: Settings, *, clock: Clock) -> Targets:
    """The backend that [iscsi_worker] targets names. `SettingsRefused` when it cannot work here."""
    if settings.iscsi_worker.targets == "memory":
        from iscsi_worker.targets.memory import MemoryTargets  # noqa: PLC0415  a backend loads what only it needs

        return MemoryTargets(clock=clock)
    from iscsi_worker.targets.tgt import TgtTargets  # noqa: PLC0415

    return TgtTargets(settings, clock=clock)
