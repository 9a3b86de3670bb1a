"""F11: a Consul that is slow, answers with errors or not at all, as one worker or all of them see it, through a proxy."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace

from cli.lab.lab import CLOCK, NODES, Lab, inside
from cli.lab.parts.consul import ConsulPorts
from cli.lab.proxy import FaultProxy, Mode
from cli.lab.scenarios.base import PATIENT_S, Scenario

PORT = 18500
REQUESTS_PER_S_MAX = 10.0  # one watch, one proof, one feeding a second, and what one turn of the loop reads
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


def _hurt(lab: Lab, dice: random.Random, mode: Mode, *, delay_s: float = 0.0) -> None:
    victims = dice.choice(([lab.busy_node(dice)], list(NODES)))
    began, fault_s = CLOCK.monotonic(), lab.span(8.0, 12.0)
    for node in victims:
        _PROXIES[node].set(mode, delay_s=delay_s)
    lab.did(f"Consul as {', '.join(victims)} see it: {mode}{f' by {delay_s} s' if delay_s else ''}")
    lab.hold(fault_s)
    for node in victims:
        _PROXIES[node].set(Mode.OPEN)
        asked = [line for at, line in _PROXIES[node].requests if at >= began]
        if len(asked) > REQUESTS_PER_S_MAX * fault_s:
            lab.found("F11", f"{node} asked {len(asked)} times in {fault_s} s of {mode}: a hot loop")
    lab.hold(3.0)


def slow(lab: Lab, dice: random.Random) -> None:
    _hurt(lab, dice, Mode.SLOW, delay_s=dice.choice((0.3, 1.5)))


def errors(lab: Lab, dice: random.Random) -> None:
    _hurt(lab, dice, Mode.ERRORS)


def silent(lab: Lab, dice: random.Random) -> None:
    _hurt(lab, dice, dice.choice((Mode.HALF_OPEN, Mode.CUT)))


SCENARIOS = (
    Scenario("F11-slow", "Consul slow", slow, quick=1, full=3, keeps=True, patience_s=PATIENT_S, around=proxied),
    Scenario("F11-errors", "Consul answers 500", errors, quick=1, full=3, around=proxied),
    Scenario("F11-silent", "Consul refuses or never answers", silent, quick=1, full=3, around=proxied),
)
