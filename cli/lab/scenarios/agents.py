"""F11: a Consul that is slow, wrong or silent, as one worker or all of them see it, through a proxy."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cli.lab.lab import CLOCK, NODES, Lab, inside
from cli.lab.lies import Past, invalid_session, set_back, stuck, too_large
from cli.lab.parts.consul import ConsulPorts
from cli.lab.proxy import FaultProxy, Lie, Mode, no_leader
from cli.lab.scenarios.base import PATIENT_S, Scenario
from cli.lab.scenarios.moves import moved

PORT = 18500
REQUESTS_PER_S_MAX = 10.0  # one watch, one proof, one feeding a second, and what one turn of the loop reads
REFUSED_PER_S_MAX = 25.0  # a write that is refused is tried again four times a second, each time with reads and a proof
LEASE_AND_TAKE_OVER_S, LEASE_S = 8.0, 6.0
INDEX_BACK_BY = 100
REMEMBER_S = 3.0
_PROXIES: dict[str, FaultProxy] = {}


@contextlib.contextmanager
def proxied(lab: Lab) -> Iterator[None]:
    """Every worker talks to its Consul agent through a proxy."""
    configured = {node: lab.cluster[node].settings for node in NODES}
    with contextlib.ExitStack() as stack:
        for node in NODES:
            address = lab.network.address(node, "back")
            proxy = FaultProxy(("127.0.0.1", PORT), (address, ConsulPorts().http))
            with inside(lab.network.netns(node)):
                proxy.start()
            stack.callback(proxy.stop)
            _PROXIES[node] = proxy
        coordination = replace(configured[NODES[0]].coordination, url=f"http://127.0.0.1:{PORT}")
        lab.restart({node: replace(configured[node], coordination=coordination) for node in NODES})
        yield
        for node in NODES:
            _PROXIES.pop(node).set(Mode.OPEN)
        lab.restart(configured)


def _victims(lab: Lab, dice: random.Random) -> list[str]:
    return dice.choice(([lab.busy_node(dice)], list(NODES)))


def _hurt(
    lab: Lab,
    victims: Sequence[str],
    what: str,
    begin: Callable[[FaultProxy], None],
    *,
    least_s: float = LEASE_AND_TAKE_OVER_S,
    most_per_s: float = REQUESTS_PER_S_MAX,
) -> None:
    """Their proxies as `begin` makes them, for a while, and not one request too many."""
    began, fault_s = CLOCK.monotonic(), lab.span(least_s, 12.0)
    for node in victims:
        begin(_PROXIES[node])
    lab.did(f"Consul as {', '.join(victims)} see it: {what}")
    lab.hold(fault_s)
    for node in victims:
        _PROXIES[node].set(Mode.OPEN)
        if said := hot_loop([at for at, _ in _PROXIES[node].requests], began, CLOCK.monotonic(), most_per_s=most_per_s):
            lab.found("F11", f"{node}, {what}: {said}")
    lab.hold(3.0)


def hot_loop(asked: Sequence[float], began: float, ended: float, *, most_per_s: float) -> str | None:
    """In words, when there were more requests in this time."""
    found = sum(began <= at <= ended for at in asked)
    if found <= most_per_s * (ended - began):
        return None
    return f"it asked {found} times in {ended - began:.1f} s: a hot loop"


def slow(lab: Lab, dice: random.Random) -> None:
    delay_s = dice.choice((0.3, 1.5))
    _hurt(lab, _victims(lab, dice), f"slow by {delay_s} s", lambda proxy: proxy.set(Mode.SLOW, delay_s=delay_s))


def silent(lab: Lab, dice: random.Random) -> None:
    mode = dice.choice((Mode.HALF_OPEN, Mode.CUT))
    _hurt(lab, _victims(lab, dice), mode, lambda proxy: proxy.set(mode))


def _lied_to(lab: Lab, dice: random.Random, what: str, lie: Lie, **bounds: float) -> None:
    _hurt(lab, _victims(lab, dice), what, lambda proxy: proxy.set(Mode.LYING, lie=lie), **bounds)


def errors(lab: Lab, dice: random.Random) -> None:
    _lied_to(lab, dice, "500 to everything", no_leader)


def refused(lab: Lab, dice: random.Random) -> None:
    _lied_to(lab, dice, "413 to every transaction", too_large, least_s=LEASE_S)
    _lied_to(lab, dice, "`invalid session` to every lock", invalid_session, least_s=LEASE_S, most_per_s=REFUSED_PER_S_MAX)


def backwards(lab: Lab, dice: random.Random) -> None:
    _lied_to(lab, dice, f"every index less by {INDEX_BACK_BY}", set_back(INDEX_BACK_BY), least_s=LEASE_S)
    _lied_to(lab, dice, "every index is 1", stuck, least_s=LEASE_S)


def stale(lab: Lab, dice: random.Random) -> None:
    """They are told who owned what before a disk was moved. It may cost time; nobody may write because of it."""
    victims = _victims(lab, dice)
    pasts = {node: Past() for node in victims}
    for node, past in pasts.items():
        _PROXIES[node].set(Mode.LYING, lie=past)
    lab.hold(REMEMBER_S)
    moved(lab, dice)
    try:
        for past in pasts.values():
            past.stand_still()
        _hurt(lab, victims, "answers from before the disk was moved", lambda _: None, most_per_s=REFUSED_PER_S_MAX)
    finally:
        for past in pasts.values():
            past.end()


SCENARIOS = (
    Scenario("F11-slow", "Consul slow", slow, quick=0, full=3, keeps=True, patience_s=PATIENT_S, around=proxied),
    Scenario("F11-errors", "Consul answers 500", errors, quick=1, full=3, around=proxied),
    Scenario("F11-silent", "Consul refuses or never answers", silent, quick=0, full=3, around=proxied),
    Scenario("F11-stale", "Consul answers from the past", stale, quick=0, full=2, around=proxied),
    Scenario(
        "F11-backwards", "Consul's index goes back", backwards, quick=0, full=1, keeps=True, patience_s=PATIENT_S, around=proxied
    ),
    Scenario("F11-refused", "Consul refuses writes", refused, quick=0, full=1, keeps=True, patience_s=PATIENT_S, around=proxied),
)
