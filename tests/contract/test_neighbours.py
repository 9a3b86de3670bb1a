"""What asking for a portal of another node tells, on real interfaces in namespaces: this file is the definition of the seam."""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pyroute2 import netns

from cli.lab.parts.daemons import run, waited
from iscsi_worker import claims
from iscsi_worker.addresses.netlink import Netlink
from iscsi_worker.claims import Arp
from iscsi_worker.reach import Probe, TcpReach, Unprobed, connect
from sanderling.clock import SystemClock
from sanderling.model.disks import PORTAL_PORT

CLOCK = SystemClock()
OWN, PEER, SECOND, LENT = "10.9.1.1", "10.9.1.2", "10.9.1.3", "10.9.1.50"
OWN6, PEER6 = "fd91::1", "fd91::2"
ENOUGH_S, BOUND_S = 5.0, 0.3
ASKED = Probe("peer", "eth1", OWN, PEER)


@dataclass(frozen=True, slots=True)
class Wire:
    """A cable from the node (eth1), where the test's own thread is, to the peer (eth1)."""

    node: str
    peer: str

    def drop(self, *rule: str) -> None:
        """Let the peer's machine drop packets that match, in silence."""
        for words in (["add", "table", "inet", "cut"], ["add", "chain", "inet", "cut", rule[0], _hook(rule[0])]):
            run(["nft", *words], netns=self.peer)
        run(["nft", "add", "rule", "inet", "cut", *rule, "drop"], netns=self.peer)


def _hook(direction: str) -> str:
    return f"{{ type filter hook {direction} priority 0 ; }}"


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread in another network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        netns.setns(name)
        yield
    finally:
        netns.setns(home)
        os.close(home)


@pytest.fixture
def wire() -> Iterator[Wire]:
    tag = secrets.token_hex(3)
    made = Wire(f"san-near-n{tag}", f"san-near-p{tag}")
    try:
        for name in (made.node, made.peer):
            run(["ip", "netns", "add", name])
            run(["ip", "link", "set", "lo", "up"], netns=name)
        run(["ip", "link", "add", "eth1", "netns", made.node, "type", "veth", "peer", "name", "eth1", "netns", made.peer])
        for name, addresses in (
            (made.node, (f"{OWN}/24", f"{OWN6}/64")),
            (made.peer, (f"{PEER}/24", f"{PEER6}/64", f"{SECOND}/24")),
        ):
            for address in addresses:
                run(["ip", "address", "add", address, "dev", "eth1", *(["nodad"] if ":" in address else [])], netns=name)
            run(["ip", "link", "set", "eth1", "up"], netns=name)
        with inside(made.node):
            yield made
    finally:
        for name in (made.node, made.peer):
            with contextlib.suppress(AssertionError):
                run(["ip", "netns", "delete", name])


@pytest.fixture
def reach(wire: Wire) -> TcpReach:
    return TcpReach(CLOCK)


@contextlib.contextmanager
def portal(wire: Wire, address: str = PEER) -> Iterator[socket.socket]:
    with inside(wire.peer):
        listening = socket.create_server((address, PORTAL_PORT), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    with listening:
        yield listening


def answered(reach: TcpReach, *probes: Probe, timeout_s: float = ENOUGH_S) -> set[Probe]:
    return set(reach.answered(probes, timeout_s=timeout_s))


def test_a_portal_that_is_there_answers(wire: Wire, reach: TcpReach) -> None:
    with portal(wire):
        assert answered(reach, ASKED) == {ASKED}


def test_an_address_that_refuses_answers_too(reach: TcpReach) -> None:
    assert answered(reach, ASKED) == {ASKED}


def test_an_ipv6_portal_answers(wire: Wire, reach: TcpReach) -> None:
    asked = Probe("peer", "eth1", OWN6, PEER6)
    with portal(wire, PEER6):
        waited(lambda: bool(answered(reach, asked)), within_s=10, what="it answers")


def test_asking_leaves_no_connection_behind(wire: Wire, reach: TcpReach) -> None:
    with portal(wire) as listening:
        for _ in range(3):
            answered(reach, ASKED)
            with listening.accept()[0] as accepted, pytest.raises(ConnectionResetError):
                accepted.recv(1)
        assert run(["ss", "-Htan", "state", "all", "dst", f"{PEER}:{PORTAL_PORT}"]).strip() == ""


@pytest.mark.parametrize("rule", [("input", "tcp", "dport", "3260"), ("output", "tcp", "sport", "3260")], ids=["in", "out"])
def test_what_is_dropped_in_one_direction_only_is_not_answered(wire: Wire, reach: TcpReach, rule: tuple[str, ...]) -> None:
    wire.drop(*rule)
    with portal(wire):
        assert answered(reach, ASKED, timeout_s=BOUND_S) == set()


def test_an_address_that_nobody_has_is_not_answered(reach: TcpReach) -> None:
    assert answered(reach, Probe("peer", "eth1", OWN, "10.9.1.77"), timeout_s=BOUND_S) == set()


@pytest.mark.parametrize("end", ["node", "peer"])
def test_with_the_link_down_at_either_end_nothing_answers_until_it_is_up_again(wire: Wire, reach: TcpReach, end: str) -> None:
    name = wire.node if end == "node" else wire.peer
    with portal(wire):
        run(["ip", "link", "set", "eth1", "down"], netns=name)
        assert answered(reach, ASKED, timeout_s=BOUND_S) == set()
        run(["ip", "link", "set", "eth1", "up"], netns=name)
        waited(lambda: bool(answered(reach, ASKED, timeout_s=1.0)), within_s=10, what="it answers again")


def test_a_way_round_over_another_interface_does_not_count(wire: Wire, reach: TcpReach) -> None:
    with portal(wire):
        run(["ip", "link", "add", "eth2", "type", "veth", "peer", "name", "eth3"])
        run(["ip", "link", "set", "eth2", "up"])
        assert answered(reach, Probe("peer", "eth2", OWN, PEER), timeout_s=BOUND_S) == set()


@pytest.mark.parametrize("wrong", [("eth7", OWN), ("eth1", "10.9.1.9")], ids=["interface", "source"])
def test_an_interface_or_a_source_that_is_gone_is_no_answer_and_no_failure(reach: TcpReach, wrong: tuple[str, str]) -> None:
    interface, source = wrong
    assert answered(reach, Probe("peer", interface, source, PEER)) == set()


def test_many_are_asked_at_once_and_those_that_are_silent_hold_up_nobody(wire: Wire, reach: TcpReach) -> None:
    silent = [Probe(f"silent-{number}", "eth1", OWN, f"10.9.1.{number}") for number in range(100, 200)]
    second = Probe("second", "eth1", OWN, SECOND)
    with portal(wire):
        began = CLOCK.monotonic()
        assert answered(reach, *silent, ASKED, second, timeout_s=BOUND_S) == {ASKED, second}
        assert CLOCK.monotonic() - began < BOUND_S * len(silent) / 2


def test_nothing_is_left_open(wire: Wire, reach: TcpReach) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        answered(reach, ASKED, Probe("nobody", "eth1", OWN, "10.9.1.77"), Probe("peer", "eth7", OWN, PEER), timeout_s=0.05)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_nodes_own_addresses_are_told_from_those_lent_for_paths(reach: TcpReach) -> None:
    Netlink().add(LENT, prefix_len=24, interface="eth1", lifetime_s=600)
    assert reach.own()["eth1"] == (f"{OWN}/24", f"{OWN6}/64")


def test_where_addresses_are_simulated_nobody_is_asked() -> None:
    for kind in ("memory", "loopback"):
        made = connect(kind, clock=CLOCK)
        assert isinstance(made, Unprobed)
        assert (made.own(), made.answered([ASKED], timeout_s=ENOUGH_S)) == ({}, frozenset())
    assert isinstance(connect("netlink", clock=CLOCK), TcpReach)


def test_an_interface_without_a_carrier_could_not_carry_an_address(wire: Wire) -> None:
    assert "eth1" in Netlink().interfaces()
    run(["ip", "link", "set", "eth1", "down"], netns=wire.peer)
    waited(lambda: "eth1" not in Netlink().interfaces(), within_s=10, what="the lost carrier is seen")


@pytest.fixture
def arp(wire: Wire) -> Iterator[Arp]:
    made = Arp()
    yield made
    made.close()


def claim(wire: Wire, address: str) -> str:
    """Put the address on the peer as well; the peer's hardware address."""
    run(["ip", "address", "add", f"{address}/24", "dev", "eth1"], netns=wire.peer)
    return run(["cat", "/sys/class/net/eth1/address"], netns=wire.peer).strip()


def test_another_machine_that_has_an_address_of_ours_is_found_and_only_that(wire: Wire, arp: Arp) -> None:
    Netlink().add(LENT, prefix_len=24, interface="eth1", lifetime_s=600)
    assert arp.answers("eth1", [LENT, OWN]) == {}
    mac = claim(wire, LENT)
    assert arp.answers("eth1", [LENT, OWN]) == {LENT: mac}
    run(["ip", "address", "delete", f"{LENT}/24", "dev", "eth1"], netns=wire.peer)
    assert arp.answers("eth1", [LENT, OWN]) == {}


def test_this_nodes_own_other_interfaces_are_no_other_machine(wire: Wire, arp: Arp) -> None:
    """A kernel answers on every interface for any of its addresses: here both ends of a second cable are ours."""
    Netlink().add(LENT, prefix_len=24, interface="eth1", lifetime_s=600)
    run(["ip", "link", "add", "eth2", "type", "veth", "peer", "name", "eth3"])
    for name in ("eth2", "eth3"):
        run(["ip", "link", "set", name, "up"])
    assert arp.answers("eth2", [LENT]) == {}


def test_what_was_said_before_it_was_asked_is_no_answer(wire: Wire, arp: Arp) -> None:
    assert arp.answers("eth1", [LENT]) == {}
    claim(wire, LENT)
    with inside(wire.peer):
        Netlink().announce(LENT, interface="eth1")
    run(["ip", "address", "delete", f"{LENT}/24", "dev", "eth1"], netns=wire.peer)
    assert arp.answers("eth1", [LENT]) == {}


def test_an_interface_that_is_gone_or_down_has_nobody_on_it(wire: Wire, arp: Arp) -> None:
    mac = claim(wire, LENT)
    assert arp.answers("eth7", [LENT]) == {}
    run(["ip", "link", "set", "eth1", "down"])
    assert arp.answers("eth1", [LENT]) == {}
    run(["ip", "link", "set", "eth1", "up"])
    waited(lambda: arp.answers("eth1", [LENT]) == {LENT: mac}, within_s=10, what="it is found again")


def test_where_addresses_are_simulated_nobody_claims_any() -> None:
    assert claims.connect("memory").answers("lo", [LENT]) == {}
    assert isinstance(claims.connect("netlink"), Arp)
