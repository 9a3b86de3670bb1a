"""Every check there is."""

from collections.abc import Collection, Sequence

from cli.doctor import bus, configuration, coordination, gateways, host, images, records, targets
from cli.doctor.base import Check, Role
from sanderling.clock import Clock
from sanderling.settings import Settings


def of(settings: Settings, file: str | None, roles: Collection[Role], *, clock: Clock) -> Sequence[Check]:
    """Those that one of the roles needs, in the order in which they are shown."""
    modules = (configuration, records, coordination, bus, images, targets, host, gateways)
    found = [check for module in modules for check in module.checks(settings, file, clock=clock)]
    return [check for check in found if check.roles & set(roles)]
