"""The gateways: that each lives, and that all run the same release."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version

from cli.doctor.base import Check, Finding, fail, ok, warn
from sanderling import coordination
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.coordination.values import value_of
from sanderling.model.exports import Gateway
from sanderling.settings import Settings


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    def look_there() -> Iterable[Finding]:
        store = coordination.connect(settings, clock=clock)
        try:
            yield from look(store, version("sanderling"))
        finally:
            store.close()

    return [Check("gateways", look_there, "see what `consul` says above")] if settings.coordination.backend == "consul" else []


def look(store: Coordination, own: str) -> Iterable[Finding]:
    entries = store.list("nodes/").entries
    if not entries:
        yield warn(
            "gateways", "no gateway has ever been here", "systemctl enable --now sanderling-iscsi-worker on a storage node"
        )
    for entry in entries:
        name = entry.key.partition("/")[2]
        gateway = value_of(entry, Gateway)
        what = f"gateway {name}"
        if entry.consul_session is None:
            fix = f"on {name}: systemctl status sanderling-iscsi-worker consul, then sanderling doctor --role worker"
            yield fail(what, "it does not live", fix)
        elif gateway is None:
            yield fail(what, "what it says of itself cannot be read", f"install release {own} on {name}")
        elif gateway.version != own:
            seen = f"lives, release {gateway.version or 'older than this check'}; this host has {own}"
            yield warn(what, seen, "bring both to the same release (docs/operations.md, Day to day)")
        elif gateway.front.cut_off or gateway.store.cut_off:
            at = ", ".join([*gateway.front.cut_off, *(["the image store"] if gateway.store.cut_off else [])])
            yield fail(what, f"lives, and is cut off on {at}", f"sanderling gateway show {name}")
        else:
            yield ok(what, f"lives, release {own}")
