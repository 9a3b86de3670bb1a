"""Noticing that this node is cut off on a network of the paths, while coordination and the images can still be reached.

Each worker asks for some of its peers over those networks and publishes whom it reaches. A node is cut off where at least
two peers that reach somebody else do not reach it, and nobody does; or where its own link is gone and a peer's is not. With two
gateways only the link tells: each would be the only witness against the other, and both could give up at once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from itertools import islice
from typing import Final

import structlog

from iscsi_worker.claims import Claims
from iscsi_worker.reach import Probe, Reach
from iscsi_worker.standing import Standing
from iscsi_worker.view import View
from sanderling.clock import Clock
from sanderling.model.disks import Disk
from sanderling.model.exports import ExportPhase, Front
from sanderling.settings import Worker

log = structlog.get_logger(__name__)

WITNESSES_LEAST: Final = 2
PORTALS_MOST: Final = 2  # of one peer on one interface: two exports of one node seldom fail together

_Pair = tuple[str, str]  # an interface and a peer


def cut_off(view: View, node: str) -> frozenset[str]:
    """The interfaces of the paths on which this node is cut off while others are not, as far as the view tells."""
    if node not in view.gateways:
        return frozenset()
    used = {interface for gateway in view.gateways.values() for interface in gateway.front.own}
    return frozenset(
        interface for interface in used if _lost_its_link(view, node, interface) or _is_unreached(view, node, interface)
    )


def _lost_its_link(view: View, node: str, interface: str) -> bool:
    return interface not in view.gateways[node].interfaces and any(
        interface in peer.interfaces and interface not in peer.front.cut_off
        for name, peer in view.gateways.items()
        if name != node
    )


def _is_unreached(view: View, node: str, interface: str) -> bool:
    peers = [peer.front for name, peer in view.gateways.items() if name != node]
    if any(node in peer.reachable.get(interface, ()) for peer in peers):
        return False
    witnesses = [
        peer for peer in peers if node in peer.unreachable.get(interface, ()) and set(peer.reachable.get(interface, ())) - {node}
    ]
    return len(witnesses) >= WITNESSES_LEAST


def interfaces(disks: Mapping[str, Disk]) -> tuple[str, ...]:
    """The interfaces of the paths."""
    return tuple(sorted({path.interface for disk in disks.values() for path in disk.paths}))


def portals(view: View, interface: str, gateway: str) -> list[str]:
    """Some of the portals that a live gateway serves on this interface, as far as the view knows."""
    held = ((export, view.exports[export]) for export in view.held_by(view.sessions[gateway]))
    serving = (
        path.address
        for export, one in held
        if one.export.phase is ExportPhase.SERVING and export.disk_id in view.disks
        for path in view.disks[export.disk_id].export_paths(export.index)
        if path.interface == interface
    )
    return list(islice(serving, PORTALS_MOST))


def probes(view: View, asked: Sequence[str], node: str, own: Mapping[str, Sequence[str]], *, peers_max: int) -> list[Probe]:
    """What this node asks: on each of the interfaces the next `peers_max` gateways after it by name that are to be found there,
    in a ring.

    It asks from an address of its own in the same subnet; where it has none it says nothing.
    """
    names = sorted(name for name in view.gateways if name != node)
    ring = [name for name in names if name > node] + [name for name in names if name < node]
    found = []
    for interface in asked:
        there = (asking for peer in ring if (asking := _probes_of(view, interface, peer, own.get(interface, ()))))
        for asking in islice(there, peers_max):
            found += asking
    return found


def _probes_of(view: View, interface: str, peer: str, own: Sequence[str]) -> list[Probe]:
    """At the peer's own addresses, or at its portals where none of those can be asked from here.

    What others have moved is known late, so that a portal may be another's by now; a node's own address stays where it is.
    """
    its_own = [address.partition("/")[0] for address in view.gateways[peer].front.own.get(interface, ())]
    for addresses in (its_own, portals(view, interface, peer)):
        found = [Probe(peer, interface, source, address) for address in addresses if (source := _source(own, address))]
        if found:
            return found
    return []


def _source(own: Sequence[str], address: str) -> str | None:
    return next((str(at.ip) for at in map(ip_interface, own) if ip_address(address) in at.network), None)


class Neighbours:
    """`turn` is called at each probe interval by a thread of its own; `front` may be read by any."""

    def __init__(
        self,
        node: str,
        settings: Worker,
        reach: Reach,
        claims: Claims,
        *,
        view: Callable[[], View | None],
        on_change: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._node, self._settings, self._reach, self._claims = node, settings, reach, claims
        self._view, self._on_change, self._clock = view, on_change, clock
        self._front = Front()
        self._failures: dict[_Pair, int] = {}
        self._reached: set[_Pair] = set()
        self._unreached: set[_Pair] = set()
        self._standing: dict[str, Standing] = {}
        self._known: Mapping[str, Disk] = {}
        self._interfaces: tuple[str, ...] = ()  # of the paths of those

    @property
    def front(self) -> Front:
        """What this gateway publishes of itself and its peers."""
        return self._front

    def turn(self) -> None:
        """Ask, conclude, and tell the worker's loop when that changes anything."""
        view = self._view()
        if view is None:
            return
        if view.disks is not self._known:
            self._known, self._interfaces = view.disks, interfaces(view.disks)
        asked, own = self._interfaces, self._reach.own()
        self._ask(probes(view, asked, self._node, own, peers_max=self._settings.front_probe_peers))
        self._conclude(cut_off(view, self._node))
        self._claims.turn()
        front = Front(
            own={interface: own[interface] for interface in asked if interface in own},
            reachable=_by_interface(self._reached),
            unreachable=_by_interface(self._unreached),
            cut_off=tuple(sorted(interface for interface, standing in self._standing.items() if standing.cut_off)),
            claimed=dict(self._claims.claimed),
        )
        if front != self._front:
            self._front = front
            self._on_change()

    def _ask(self, asking: Sequence[Probe]) -> None:
        """Count failures in a row; a peer that never answered is spoken of only when it has failed for long enough."""
        answered = self._reach.answered(asking, timeout_s=self._settings.front_probe_timeout_s)
        reached = {(probe.interface, probe.peer) for probe in answered}
        asked = {(probe.interface, probe.peer) for probe in asking}
        self._failures = {pair: 0 if pair in reached else self._failures.get(pair, 0) + 1 for pair in asked}
        given_up = {pair for pair, failures in self._failures.items() if failures >= self._settings.front_probe_failures_max}
        self._reached = (self._reached & asked | reached) - given_up
        self._unreached = given_up

    def _conclude(self, verdicts: frozenset[str]) -> None:
        now = self._clock.monotonic()
        for interface in verdicts | self._standing.keys():
            before = self._standing.get(interface, Standing())
            after = before.after(
                interface in verdicts,
                now=now,
                hold_s=self._settings.front_hold_s,
                hold_most_s=self._settings.front_hold_most_s,
            )
            self._standing[interface] = after
            if after.cut_off and not before.cut_off:
                log.error("cut off in front", interface=interface, stands_back_s=after.hold_s)
            elif before.cut_off and not after.cut_off:
                log.info("reached again in front", interface=interface)


def _by_interface(pairs: Iterable[_Pair]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for interface, peer in sorted(pairs):
        found[interface] = (*found.get(interface, ()), peer)
    return found
