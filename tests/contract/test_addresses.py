"""What lending an address promises. Runs on every backend, netlink in namespaces of its own; this file is the definition."""

import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from pyroute2 import netns

from cli.lab.parts.daemons import run, waited
from iscsi_worker.addresses import connect
from iscsi_worker.addresses.base import Addresses
from iscsi_worker.addresses.loopback import Loopback
from iscsi_worker.addresses.memory import Memory
from iscsi_worker.addresses.netlink import Netlink
from sanderling.clock import ManualClock
from sanderling.errors import AddressFailed
from sanderling.model.disks import PORTAL_PORT
from sanderling.model.exports import Connection
from sanderling.settings import Settings, Worker

LONG_S = 600
OWN, FIRST, SECOND = "10.9.0.1", "10.9.0.5", "10.9.0.6"
NEIGHBOUR = "10.9.0.20"
OWN6, FIRST6, NEIGHBOUR6 = "fd9::1", "fd9::5", "fd9::20"
WRONG_MAC = "02:00:00:00:00:99"


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend, and what it may be asked: an interface, two addresses to lend, and one that is the node's own."""

    addresses: Addresses
    interface: str
    first: str
    second: str
    own: str
    passes: Callable[[float], None] | None = None

    def lend(self, address: str, *, lifetime_s: int = LONG_S) -> None:
        self.addresses.add(address, prefix_len=24, interface=self.interface, lifetime_s=lifetime_s)

    def waited(self, until: Callable[[], bool], *, within_s: float, what: str) -> None:
        """By the backend's own clock: in no time where that is simulated."""
        if self.passes is None:
            waited(until, within_s=within_s, what=what)
        else:
            self.passes(within_s)
            assert until(), what


@dataclass(frozen=True, slots=True)
class Wire:
    """Two namespaces with a cable between them; the test's own thread is in the node's."""

    node: str
    neighbour: str


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
    made = Wire(f"san-addr-n{tag}", f"san-addr-i{tag}")
    try:
        for name in (made.node, made.neighbour):
            run(["ip", "netns", "add", name])
            run(["ip", "link", "set", "lo", "up"], netns=name)
        run(["ip", "link", "add", "eth0", "netns", made.node, "type", "veth", "peer", "name", "eth0", "netns", made.neighbour])
        for name, own, own6 in ((made.node, OWN, OWN6), (made.neighbour, NEIGHBOUR, NEIGHBOUR6)):
            run(["ip", "link", "set", "eth0", "up"], netns=name)
            run(["ip", "address", "add", f"{own}/24", "dev", "eth0"], netns=name)
            run(["ip", "address", "add", f"{own6}/64", "dev", "eth0", "nodad"], netns=name)
        with inside(made.node):
            yield made
    finally:
        for name in (made.node, made.neighbour):
            with contextlib.suppress(AssertionError):
                run(["ip", "netns", "delete", name])


@pytest.fixture
def memory() -> Backend:
    clock = ManualClock()
    return Backend(Memory(clock, own=(OWN,)), "eth0", FIRST, SECOND, OWN, clock.advance)


@pytest.fixture
def loopback() -> Backend:
    clock = ManualClock()
    return Backend(Loopback(clock), "lo", "127.9.0.5", "127.9.0.6", "127.0.0.1", clock.advance)


@pytest.fixture
def netlink(wire: Wire) -> Backend:
    return Backend(Netlink(), "eth0", FIRST, SECOND, OWN)


@pytest.fixture(params=["memory", "loopback", "netlink"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.getfixturevalue(request.param)
    return chosen


@contextlib.contextmanager
def unheard(neighbour: str) -> Iterator[None]:
    """What this node sends to the neighbour is addressed to no machine there is."""
    run(["ip", "neigh", "replace", neighbour, "lladdr", WRONG_MAC, "dev", "eth0", "nud", "permanent"])
    try:
        yield
    finally:
        run(["ip", "neigh", "delete", neighbour, "dev", "eth0"])


def routes() -> str:
    return run(["ip", "-o", "route", "show", "dev", "eth0"]) + run(["ip", "-o", "-6", "route", "show", "dev", "eth0"])


def mac_of(address: str, *, seen_from: str) -> str:
    said = run(["ip", "neigh", "show", "to", address, "dev", "eth0"], netns=seen_from).split()
    return said[said.index("lladdr") + 1] if "lladdr" in said else ""


@pytest.mark.parametrize(("name", "kind"), [("memory", Memory), ("loopback", Loopback), ("netlink", Netlink)])
def test_the_settings_name_the_backend(name: str, kind: type) -> None:
    assert type(connect(Settings(iscsi_worker=Worker(addresses=name)))) is kind


def test_a_lent_address_is_present_and_known_as_lent(backend: Backend) -> None:
    backend.lend(backend.first)
    assert backend.first in backend.addresses.present()
    assert backend.addresses.lent() == {backend.first}


def test_the_nodes_own_address_is_present_but_not_lent(backend: Backend) -> None:
    assert backend.own in backend.addresses.present()
    assert backend.own not in backend.addresses.lent()


def test_the_nodes_own_address_is_never_lent_or_taken_off(backend: Backend) -> None:
    with pytest.raises(AddressFailed, match=backend.own):
        backend.lend(backend.own)
    backend.addresses.remove(backend.own)
    assert backend.own in backend.addresses.present()


@pytest.mark.rows("W-IS-4")
def test_an_address_that_is_not_renewed_goes_away_by_itself(backend: Backend) -> None:
    backend.lend(backend.first, lifetime_s=1)
    backend.lend(backend.second)
    backend.waited(lambda: backend.first not in backend.addresses.present(), within_s=4.0, what="the kernel drops it")
    assert backend.addresses.lent() == {backend.second}


def test_renewing_makes_it_last(backend: Backend) -> None:
    backend.lend(backend.first, lifetime_s=1)
    backend.lend(backend.second, lifetime_s=1)
    backend.lend(backend.first, lifetime_s=LONG_S)
    backend.waited(lambda: backend.second not in backend.addresses.present(), within_s=4.0, what="the kernel drops the other")
    assert backend.addresses.lent() == {backend.first}


def test_removing_takes_off_that_one_only_and_may_be_repeated(backend: Backend) -> None:
    backend.lend(backend.first)
    backend.lend(backend.second)
    backend.addresses.remove(backend.first)
    backend.addresses.remove(backend.first)
    assert backend.addresses.lent() == {backend.second}
    assert backend.own in backend.addresses.present()


def test_a_removed_address_can_be_lent_again(backend: Backend) -> None:
    backend.lend(backend.first)
    backend.addresses.remove(backend.first)
    backend.lend(backend.first)
    assert backend.addresses.lent() == {backend.first}


def test_the_interfaces_are_those_that_could_carry_an_address(backend: Backend) -> None:
    assert backend.interface in backend.addresses.interfaces()


@pytest.mark.parametrize("wrong", ["not-an-address", "10.9.0.300", "", "10.9.0.5/24"])
def test_what_is_no_address_is_refused_by_name(backend: Backend, wrong: str) -> None:
    attempts: tuple[Callable[[], None], ...] = (
        lambda: backend.lend(wrong),
        lambda: backend.addresses.remove(wrong),
        lambda: backend.addresses.announce(wrong, interface=backend.interface),
        lambda: backend.addresses.tickle([Connection("iqn.2026-11.test:i", NEIGHBOUR, 1, wrong)]),
    )
    for attempt in attempts:
        with pytest.raises(AddressFailed) as refused:
            attempt()
        assert repr(wrong) in refused.value.detail


def test_an_interface_that_is_missing_is_refused_by_name(backend: Backend) -> None:
    with pytest.raises(AddressFailed, match="nowhere0"):
        backend.addresses.add(backend.first, prefix_len=24, interface="nowhere0", lifetime_s=LONG_S)
    with pytest.raises(AddressFailed, match="nowhere0"):
        backend.addresses.announce(backend.first, interface="nowhere0")
    assert backend.addresses.lent() == frozenset()


@pytest.mark.parametrize("prefix_len", [0, 33])
def test_a_prefix_that_is_none_is_refused(backend: Backend, prefix_len: int) -> None:
    with pytest.raises(AddressFailed, match=backend.first):
        backend.addresses.add(backend.first, prefix_len=prefix_len, interface=backend.interface, lifetime_s=LONG_S)
    assert backend.addresses.lent() == frozenset()


def test_an_address_that_is_not_here_is_neither_announced_nor_spoken_for(backend: Backend) -> None:
    with pytest.raises(AddressFailed, match=backend.first):
        backend.addresses.announce(backend.first, interface=backend.interface)
    with pytest.raises(AddressFailed, match=backend.first):
        backend.addresses.tickle([Connection("iqn.2026-11.test:i", NEIGHBOUR, 40000, backend.first)])


def test_announcing_and_tickling_a_lent_address_may_be_repeated(backend: Backend) -> None:
    backend.lend(backend.first)
    for _ in range(2):
        backend.addresses.announce(backend.first, interface=backend.interface)
        backend.addresses.tickle([Connection("iqn.2026-11.test:i", NEIGHBOUR, 40000, backend.first)])


def test_memory_tells_what_was_announced_and_tickled(memory: Backend) -> None:
    told = Connection("iqn.2026-11.test:i", NEIGHBOUR, 40000, FIRST)
    memory.lend(FIRST)
    memory.addresses.announce(FIRST, interface="eth0")
    memory.addresses.tickle([told])
    assert isinstance(memory.addresses, Memory)
    assert memory.addresses.announced[FIRST] == 1
    assert list(memory.addresses.tickled) == [told]


def test_loopback_carries_nothing_but_loopback(loopback: Backend) -> None:
    with pytest.raises(AddressFailed, match=r"10\.9\.0\.5"):
        loopback.lend(FIRST)


def test_netlink_keeps_the_routes_of_the_subnet(netlink: Backend) -> None:
    before = routes()
    for address, prefix_len in ((FIRST, 24), (FIRST6, 64)):
        for _ in range(2):
            netlink.addresses.add(address, prefix_len=prefix_len, interface="eth0", lifetime_s=LONG_S)
        assert address in netlink.addresses.lent()
        netlink.addresses.remove(address)
        assert address not in netlink.addresses.present()
        assert routes() == before


def test_netlink_keeps_the_other_addresses_when_the_subnets_first_one_goes(wire: Wire) -> None:
    run(["ip", "address", "flush", "dev", "eth0", "scope", "global"])
    addresses = Netlink()
    for address in (FIRST, SECOND):
        addresses.add(address, prefix_len=24, interface="eth0", lifetime_s=LONG_S)
    addresses.remove(FIRST)
    assert addresses.lent() == {SECOND}
    assert f"10.9.0.0/24 proto kernel scope link src {SECOND}" in routes()


def test_netlink_leaves_alone_what_somebody_else_lent(netlink: Backend) -> None:
    run(["ip", "address", "add", f"{FIRST}/24", "dev", "eth0", "valid_lft", "600", "preferred_lft", "600"])
    assert netlink.addresses.lent() == frozenset()
    netlink.addresses.remove(FIRST)
    assert FIRST in netlink.addresses.present()
    with pytest.raises(AddressFailed, match=FIRST):
        netlink.lend(FIRST)


def test_netlink_finds_again_what_a_worker_before_it_lent(netlink: Backend) -> None:
    netlink.lend(FIRST)
    heir = Netlink()
    assert heir.lent() == {FIRST}
    heir.add(FIRST, prefix_len=24, interface="eth0", lifetime_s=LONG_S)
    heir.remove(FIRST)
    assert heir.lent() == frozenset()


def test_netlink_names_no_interface_that_is_down_or_loopback(netlink: Backend) -> None:
    assert netlink.addresses.interfaces() == {"eth0"}
    run(["ip", "link", "set", "eth0", "down"])
    assert netlink.addresses.interfaces() == frozenset()


def test_an_ipv6_address_is_usable_at_once(netlink: Backend) -> None:
    netlink.addresses.add(FIRST6, prefix_len=64, interface="eth0", lifetime_s=LONG_S)
    with socket.create_server((FIRST6, PORTAL_PORT), family=socket.AF_INET6):
        pass


def test_an_ipv6_address_of_the_nodes_own_is_never_lent_not_even_before_it_is_known_to_be_nobody_elses(netlink: Backend) -> None:
    run(["ip", "address", "add", f"{FIRST6}/64", "dev", "eth0"])
    assert "tentative" in run(["ip", "address", "show", "dev", "eth0"])
    with pytest.raises(AddressFailed, match=FIRST6):
        netlink.addresses.add(FIRST6, prefix_len=64, interface="eth0", lifetime_s=LONG_S)
    assert netlink.addresses.lent() == frozenset()


def test_an_ipv6_address_that_is_not_here_is_not_announced(netlink: Backend) -> None:
    with pytest.raises(AddressFailed, match=FIRST6):
        netlink.addresses.announce(FIRST6, interface="eth0")


@pytest.mark.parametrize(("address", "prefix_len"), [(FIRST, 24), (FIRST6, 64)])
def test_an_announcement_mends_a_neighbours_stale_entry(wire: Wire, address: str, prefix_len: int) -> None:
    addresses = Netlink()
    addresses.add(address, prefix_len=prefix_len, interface="eth0", lifetime_s=LONG_S)
    run(["ip", "neigh", "replace", address, "lladdr", WRONG_MAC, "dev", "eth0", "nud", "reachable"], netns=wire.neighbour)
    assert mac_of(address, seen_from=wire.neighbour) == WRONG_MAC
    addresses.announce(address, interface="eth0")
    true_mac = run(["ip", "-o", "link", "show", "dev", "eth0"]).partition("link/ether ")[2].split()[0]
    waited(lambda: mac_of(address, seen_from=wire.neighbour) == true_mac, within_s=5.0, what="the neighbour believes it")


@pytest.mark.parametrize(
    ("address", "prefix_len", "initiator", "family"),
    [(FIRST, 24, NEIGHBOUR, socket.AF_INET), (FIRST6, 64, NEIGHBOUR6, socket.AF_INET6)],
)
def test_a_tickle_makes_an_initiator_drop_the_connection_its_last_server_left_behind(
    wire: Wire, address: str, prefix_len: int, initiator: str, family: socket.AddressFamily
) -> None:
    addresses = Netlink()
    addresses.add(address, prefix_len=prefix_len, interface="eth0", lifetime_s=LONG_S)
    with inside(wire.neighbour):
        waiting = socket.socket(family, socket.SOCK_STREAM)
    with waiting, socket.create_server((address, PORTAL_PORT), family=family) as server:
        waiting.settimeout(10.0)
        waiting.bind((initiator, 0))
        waiting.connect((address, PORTAL_PORT))
        served, _ = server.accept()
        with unheard(initiator):
            served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            served.close()
        waiting.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.recv(1)
        waiting.settimeout(10.0)
        port = waiting.getsockname()[1]
        addresses.tickle([Connection("iqn.2026-11.test:i", initiator, port, address)])
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)


def test_an_initiator_that_cannot_be_reached_does_not_keep_the_others_from_being_tickled(netlink: Backend, wire: Wire) -> None:
    netlink.lend(FIRST)
    nowhere, reached = Connection("iqn.x", "203.0.113.9", 40000, FIRST), Connection("iqn.y", NEIGHBOUR, 40000, FIRST)
    with inside(wire.neighbour):
        heard = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with heard:
        heard.settimeout(10.0)
        with pytest.raises(AddressFailed, match=r"1 of 2 .*203\.0\.113\.9"):
            netlink.addresses.tickle([nowhere, reached])
        assert heard.recvfrom(128)[1][0] == FIRST
