"""Who owns what: one seam, an embedded backend for one process and Consul for many."""

from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.settings import Settings


def connect(settings: Settings, *, clock: Clock) -> Coordination:
    """The backend that `[coordination] backend` names. An embedded store is new and empty at every call."""
    if settings.coordination.backend == "embedded":
        from sanderling.coordination.embedded import EmbeddedCoordination  # noqa: PLC0415

        return EmbeddedCoordination(clock=clock)
    from sanderling.coordination.consul import ConsulCoordination  # noqa: PLC0415  costs memory that an embedded process saves

    return ConsulCoordination(settings.coordination, clock=clock)
