"""The addresses of this node: one seam, and the backend that the settings name."""

from iscsi_worker.addresses.base import Addresses
from iscsi_worker.addresses.loopback import Loopback
from iscsi_worker.addresses.memory import Memory
from sanderling.clock import SystemClock
from sanderling.settings import Settings


def connect(settings: Settings) -> Addresses:
    """The backend that `[iscsi_worker] addresses` names."""
    match settings.iscsi_worker.addresses:
        case "memory":
            return Memory(SystemClock())
        case "loopback":
            return Loopback(SystemClock())
    from iscsi_worker.addresses.netlink import Netlink  # noqa: PLC0415  its import costs a tenth of a second

    return Netlink()
