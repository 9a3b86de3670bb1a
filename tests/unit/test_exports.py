"""Taking an export safely, whatever dies in the middle: on simulated nodes, a simulated store and an embedded coordination."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from iscsi_worker.addresses.memory import Memory
from iscsi_worker.exports import Exports
from iscsi_worker.reports import Reports
from iscsi_worker.service import Seams, Service
from iscsi_worker.targets.base import Running, TargetSpec
from iscsi_worker.targets.memory import MemoryNode, MemoryStore, MemoryTargets
from iscsi_worker.view import Held, View, parse
from rpc.bus import Bus
from sanderling.clock import ManualClock
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import ClaimLost, Fenced, Problem, SecretUnreadable, TargetFailed, Unavailable
from sanderling.images.base import BackingStore
from sanderling.model.disks import Chap, Disk, Path
from sanderling.model.exports import UNKNOWN_CLIENT, Connection, Export, ExportId, ExportPhase
from sanderling.secrets import Keyring
from sanderling.settings import Secrets, Worker

HOST = "iqn.2026-11.test:host"
ADDRESS = "10.0.0.5"
DISK = Disk(
    id="d1",
    name="one",
    iqn="iqn.2026-11.io.sanderling:one",
    size_bytes=1 << 20,
    started=True,
    allow_any=True,
    paths=(Path(index=1, address=ADDRESS, prefix_len=24, interface="eth0", subnet="s"),),
)
E = ExportId("d1", 0)
FOREVER_S = 1e9  # leases never help here: only the fence counts
CHECK_TTL_S = 5.0


class Killed(BaseException):
    """The worker's process is gone, in the middle of a call."""


@dataclass
class Store:
    """The image store of the simulation: fences by client, and lists nobody, as if every watch had expired."""

    memory: MemoryStore = field(default_factory=MemoryStore)
    listed: tuple[str, ...] = ()
    away: bool = False
    asked: int = 0  # to fence

    def backing_store(self, name: str) -> BackingStore:
        return BackingStore("memory", name)

    def clients(self, name: str) -> tuple[str, ...]:
        return self.listed

    def fence(self, client: str) -> None:
        self.asked += 1
        if self.away:
            raise Unavailable("the store is away", dependency="ceph")
        self.memory.fenced.add(client)

    def is_fenced(self, client: str) -> bool:
        return client in self.memory.fenced


class Killing:
    """Passes calls on, and kills its worker before or after the n-th call of all that share its count."""

    def __init__(self, part: object, count: list[int], at: int, *, after: bool) -> None:
        self._part, self._count, self._at, self._after = part, count, at, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._part, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._count[0] += 1
            if self._count[0] == self._at and not self._after:
                raise Killed
            answer = method(*args, **kwargs)
            if self._count[0] == self._at:
                raise Killed
            return answer

        return call


class Hanging(MemoryTargets):
    """Processes that do not answer what they are asked."""

    def connections(self, export: ExportId) -> tuple[Connection, ...]:
        raise TargetFailed(f"{export} does not answer")


class Lab:
    def __init__(self) -> None:
        self.targets_kind = MemoryTargets
        self.clock = ManualClock()
        self.store = Store()
        self.coordination = EmbeddedCoordination(clock=self.clock)
        self.coordination.put(E.key, Export(generation=1).model_dump_json().encode())
        self.coordination.put(f"disks/{DISK.id}", DISK.model_dump_json().encode())
        self.nodes = {name: MemoryNode(name) for name in "abc"}
        self.addresses = {name: Memory(self.clock) for name in "abc"}
        self.settings = Worker(lease_s=5.0, drain_timeout_s=1.0)
        self.sessions: dict[str, str] = {}
        self.is_silent = False

    def targets(self, node: str) -> MemoryTargets:
        return self.targets_kind(clock=self.clock, node=self.nodes[node], store=self.store.memory)

    def exports(self, node: str, *, kill_at: int = 0, after: bool = False) -> Exports:
        parts: tuple[Any, ...] = (self.coordination, self.store, self.targets(node), self.addresses[node])
        self.calls = [0]
        if kill_at:
            parts = tuple(Killing(part, self.calls, kill_at, after=after) for part in parts)
        reports = Reports(cast(Bus, None), node, self.settings, clock=self.clock)
        seams = Seams(*parts)
        service = Service(self.settings, seams, reports, keyring=Keyring(Secrets()), certain=lambda: True, clock=self.clock)
        return Exports(node, self.settings, seams, service, reports, store_is_silent=lambda: self.is_silent, clock=self.clock)

    def take(self, node: str, *, kill_at: int = 0, after: bool = False) -> bool:
        self.sessions[node] = self.coordination.open_session(node, check_ttl_s=CHECK_TTL_S)
        view = self.view()
        return self.exports(node, kill_at=kill_at, after=after).take(
            E, DISK, view.exports[E], unserved_since=None, consul_session=self.sessions[node], siblings=view.siblings_clients(E)
        )

    def cut_off(self, node: str) -> None:
        """The node's session ends; its processes live on, and nothing but a fence can stop them."""
        for process in self.nodes[node].processes.values():
            process.lease_until = FOREVER_S
        if node in self.sessions:
            self.coordination.close_session(self.sessions[node])
        self.clock.advance(2.0)

    def view(self) -> View:
        return parse(self.coordination.list(""))

    @property
    def held(self) -> Held:
        return self.view().exports[E]

    def writes(self, node: str) -> None:
        """Everything on that node that could still write does so now."""
        targets = self.targets(node)
        for process in list(self.nodes[node].processes.values()):
            for address in process.portals or (ADDRESS,):
                process.portals = (address,)
                try:
                    targets.login(address, HOST).write(7, node.encode())
                except TargetFailed:
                    continue

    def written(self) -> bytes | None:
        return self.store.memory.blocks.get((DISK.image, 7))


@pytest.fixture
def lab() -> Lab:
    return Lab()


def calls_of_a_takeover() -> int:
    """How many calls a taking over from a dead owner makes: the places where a worker can die in it."""
    lab = Lab()
    lab.take("a")
    lab.cut_off("a")
    lab.take("b", kill_at=10_000)
    return lab.calls[0]


PLACES = [(at, after) for at in range(1, calls_of_a_takeover() + 1) for after in (False, True)]


@pytest.mark.rows("PA-13", "IS-15", "IS-16", "W-IS-10")
def test_a_taken_export_serves_and_says_so(lab: Lab) -> None:
    before = lab.clock.monotonic()
    assert lab.take("a")
    assert lab.clock.monotonic() == before, "no step waits for time to pass"
    held = lab.held
    assert (held.export.phase, held.export.node, held.export.counter) == (ExportPhase.SERVING, "a", 1)
    assert held.consul_session == lab.sessions["a"]
    assert lab.targets("a").actual()[0].client == held.export.client
    lab.writes("a")
    assert lab.written() == b"a"
    assert lab.addresses["a"].announced[ADDRESS] == 1


def test_what_is_started_again_on_its_node_keeps_its_address_meanwhile(lab: Lab) -> None:
    """Who connects then is refused and tries again at once; a SYN that nobody answers is sent again a second later."""
    lab.take("a")
    lab.nodes["a"].processes.clear()
    lent: list[frozenset[str]] = []

    class Watched(MemoryTargets):
        def start(self, spec: TargetSpec, *, epoch: tuple[int, int], revision: int, lease_s: float) -> Running:
            lent.append(lab.addresses["a"].lent())
            return super().start(spec, epoch=epoch, revision=revision, lease_s=lease_s)

    lab.targets_kind = Watched
    assert lab.exports("a").take(E, DISK, lab.held, unserved_since=None, consul_session=lab.sessions["a"], siblings=frozenset())
    assert lent == [frozenset({ADDRESS})]
    lab.writes("a")
    assert lab.written() == b"a"


def test_the_last_owner_can_write_no_more_once_another_serves(lab: Lab) -> None:
    lab.take("a")
    lab.cut_off("a")
    assert lab.take("b")
    lab.writes("b")
    lab.writes("a")
    assert lab.written() == b"b"


@pytest.mark.rows("IS-16", "W-PA-13")
@pytest.mark.parametrize(("at", "after"), PLACES)
def test_whoever_dies_in_the_middle_of_taking_nobody_before_the_next_owner_can_write_after_it(
    lab: Lab, at: int, after: bool
) -> None:
    lab.take("a")
    lab.cut_off("a")
    with pytest.raises(Killed):
        lab.take("b", kill_at=at, after=after)
    lab.cut_off("b")
    assert lab.take("c")
    lab.writes("c")
    for dead in "ab":
        lab.writes(dead)
    assert lab.written() == b"c"


@pytest.mark.parametrize(("at", "after"), PLACES)
def test_an_export_whose_taker_died_in_the_middle_can_be_taken_by_the_same_node_again(lab: Lab, at: int, after: bool) -> None:
    lab.take("a")
    lab.cut_off("a")
    with pytest.raises(Killed):
        lab.take("b", kill_at=at, after=after)
    lab.coordination.close_session(lab.sessions["b"])
    lab.clock.advance(2.0)
    assert lab.take("b")
    lab.writes("b")
    assert lab.written() == b"b"


@pytest.mark.rows("IS-16", "W-IS-9")
def test_an_export_is_not_served_when_the_last_owner_cannot_be_fenced(lab: Lab) -> None:
    lab.take("a")
    lab.cut_off("a")
    lab.store.away = True
    with pytest.raises(Unavailable):
        lab.take("b")
    held = lab.held
    assert lab.targets("b").actual() == ()
    assert (held.consul_session, held.export.client) == (None, lab.targets("a").actual()[0].client)


@pytest.mark.rows("W-PA-4")
def test_a_failure_to_take_leaves_nothing_running_and_names_whom_to_fence(lab: Lab) -> None:
    lab.addresses["a"] = Memory(lab.clock, interfaces=("eth9",))
    with pytest.raises(Problem, match="eth0"):
        lab.take("a")
    held = lab.held
    assert lab.targets("a").actual() == ()
    assert lab.addresses["a"].lent() == frozenset()
    assert held.consul_session is None
    assert held.export.needs_fence


def test_who_has_no_key_for_a_disks_secret_touches_neither_its_lock_nor_its_last_owner(lab: Lab) -> None:
    lab.take("a")
    lab.cut_off("a")
    before, session = lab.held, lab.coordination.open_session("b", check_ttl_s=CHECK_TTL_S)
    secret = DISK.model_copy(update={"chap": Chap(user="host", secret="sealed with a key of others", mutual_secret="")})
    with pytest.raises(SecretUnreadable):
        lab.exports("b").take(E, secret, before, unserved_since=None, consul_session=session, siblings=frozenset())
    assert (lab.held, lab.store.asked) == (before, 0)


@pytest.mark.parametrize("text", ["", "d", "d/", "/0", "d/x", "d/00", "d/-1", "d/+1", "d/٣", "d/0/1", "d/0\n", f"d/{'9' * 5000}"])
def test_what_is_not_called_as_we_call_an_export_is_none(text: str) -> None:
    assert ExportId.named(text) is None
    assert ExportId.from_key(f"exports/{text}") is None


def test_an_export_is_known_again_by_its_name_and_by_its_key_alone() -> None:
    for export in (E, ExportId("d", 0), ExportId("d", 10)):
        assert (ExportId.named(str(export)), ExportId.from_key(export.key)) == (export, export)
        assert ExportId.from_key(f"disks/{export}") is None


def test_two_that_take_at_once_from_one_view_do_not_both_get_it(lab: Lab) -> None:
    view = lab.view()
    first, second = (lab.coordination.open_session(name, check_ttl_s=CHECK_TTL_S) for name in "ab")
    assert lab.exports("a").take(E, DISK, view.exports[E], unserved_since=None, consul_session=first, siblings=frozenset())
    assert not lab.exports("b").take(E, DISK, view.exports[E], unserved_since=None, consul_session=second, siblings=frozenset())
    assert lab.targets("b").actual() == ()


def test_an_old_view_takes_nothing_since_it_would_fence_the_wrong_client(lab: Lab) -> None:
    old = lab.view()
    lab.take("a")
    lab.cut_off("a")
    session = lab.coordination.open_session("b", check_ttl_s=CHECK_TTL_S)
    assert not lab.exports("b").take(E, DISK, old.exports[E], unserved_since=None, consul_session=session, siblings=frozenset())


def test_initiators_of_the_last_owner_are_tickled_from_this_path_only(lab: Lab) -> None:
    here, gone = (Connection(HOST, "10.0.0.9", 40000, address) for address in (ADDRESS, "10.9.9.9"))
    entry = lab.held
    value = entry.export.model_copy(update={"connections": (here, gone)})
    lab.coordination.put(E.key, value.model_dump_json().encode())
    lab.take("a")
    assert list(lab.addresses["a"].tickled) == [here]


@pytest.mark.rows("PA-41")
def test_an_export_given_up_in_order_needs_no_fence(lab: Lab) -> None:
    lab.take("a")
    give_up(lab, "a")
    held = lab.held
    assert (held.consul_session, held.export.phase, held.export.client) == (None, ExportPhase.LEFT, "")
    assert lab.targets("a").actual() == ()
    assert lab.addresses["a"].lent() == frozenset()
    assert lab.store.memory.fenced == set()


def test_an_export_that_does_not_drain_in_time_fences_itself(lab: Lab) -> None:
    lab.take("a")
    lab.store.memory.stuck = True
    lab.writes("a")
    client = lab.held.export.client
    give_up(lab, "a")
    lab.store.memory.stuck = False
    assert lab.store.is_fenced(client)
    assert lab.held.export.client == ""
    assert lab.written() is None


def test_an_export_that_cannot_fence_itself_is_left_to_the_next_owner(lab: Lab) -> None:
    lab.take("a")
    lab.store.memory.stuck = lab.store.away = True
    lab.writes("a")
    client = lab.held.export.client
    give_up(lab, "a")
    assert lab.held.export.client == client
    assert lab.targets("a").actual() == ()


class Waited(MemoryTargets):
    """Notes how long draining was to wait at most."""

    waited: list[float] = []  # noqa: RUF012  the test empties it

    def drain(self, export: ExportId, *, timeout_s: float) -> bool:
        self.waited.append(timeout_s)
        return super().drain(export, timeout_s=timeout_s)


@pytest.fixture
def silent(lab: Lab) -> Lab:
    """The image store answers other nodes, and this one knows that it will wait in vain."""
    Waited.waited.clear()
    lab.targets_kind = Waited
    lab.take("a")
    lab.store.memory.stuck = lab.store.away = lab.is_silent = True
    return lab


def test_while_the_store_is_silent_giving_up_waits_for_nothing_and_its_heir_fences_before_it_serves(silent: Lab) -> None:
    silent.writes("a")
    client, asked = silent.held.export.client, silent.store.asked
    give_up(silent, "a")
    assert Waited.waited == [0.0]
    assert silent.store.asked == asked, "the fence would have been waited for in vain"
    held = silent.held
    assert (held.consul_session, held.export.phase, held.export.client) == (None, ExportPhase.LEFT, client)
    assert silent.targets("a").actual() == ()
    assert silent.addresses["a"].lent() == frozenset()
    silent.store.away = False  # for the heir
    assert silent.take("b")
    assert silent.store.is_fenced(client)
    silent.store.memory.stuck = False
    silent.writes("b")
    assert silent.written() == b"b"


def test_what_had_nothing_in_flight_when_the_store_fell_silent_needs_no_fence(silent: Lab) -> None:
    give_up(silent, "a")
    assert silent.held.export.client == ""


def test_dropping_while_the_store_is_silent_waits_for_no_fence(silent: Lab) -> None:
    running, asked = silent.targets("a").actual()[0], silent.store.asked
    silent.exports("a").drop(E, [ADDRESS], running)
    assert silent.store.asked == asked
    assert silent.targets("a").actual() == ()


def test_an_adopted_export_goes_on_with_the_same_process(lab: Lab) -> None:
    lab.take("a")
    running = lab.targets("a").actual()[0]
    lab.coordination.close_session(lab.sessions["a"])
    lab.clock.advance(2.0)
    assert adopt(lab, "a")
    held = lab.held
    assert held.consul_session == lab.sessions["a"]
    assert (held.export.client, held.export.phase, held.export.counter) == (running.client, ExportPhase.SERVING, 2)
    assert lab.targets("a").actual()[0].client == running.client


@pytest.mark.rows("IS-2")
def test_a_process_that_was_fenced_while_its_lock_was_free_is_not_adopted(lab: Lab) -> None:
    lab.take("a")
    lab.store.fence(lab.held.export.client)
    lab.coordination.close_session(lab.sessions["a"])
    lab.clock.advance(2.0)
    with pytest.raises(Fenced):
        adopt(lab, "a")
    assert lab.targets("a").actual() == ()


@pytest.mark.rows("IS-2")
def test_adopting_after_coordination_was_lost_fences_everybody_else_who_has_the_image(lab: Lab) -> None:
    lab.take("a")
    running = lab.targets("a").actual()[0]
    lab.coordination.close_session(lab.sessions["a"])
    lab.clock.advance(2.0)
    unknown = Export(generation=2, client=UNKNOWN_CLIENT)
    lab.coordination.put(E.key, unknown.model_dump_json().encode())
    lab.store.listed = (running.client, "stranger:1")
    assert adopt(lab, "a")
    assert lab.store.memory.fenced == {"stranger:1"}
    assert lab.held.export.client == running.client


@pytest.mark.rows("W-PA-14")
def test_a_process_that_hangs_is_given_up_all_the_same(lab: Lab) -> None:
    lab.take("a")
    lab.targets_kind = Hanging
    give_up(lab, "a")
    assert (lab.held.consul_session, lab.held.export.client) == (None, "")
    assert lab.targets("a").actual() == ()


@pytest.mark.rows("PA-39", "PA-40", "W-PA-15")
def test_giving_up_from_an_old_view_does_not_make_a_removed_key_again(lab: Lab) -> None:
    lab.take("a")
    old, running = lab.held, lab.targets("a").actual()[0]
    give_up(lab, "a")
    assert lab.coordination.delete(E.key)
    with pytest.raises(ClaimLost):
        lab.exports("a").give_up(E, old, [ADDRESS], running, consul_session=lab.sessions["a"])
    assert lab.coordination.get(E.key) is None


def test_what_is_dropped_is_fenced_so_that_nothing_of_it_lands_behind_the_new_owners_back(lab: Lab) -> None:
    lab.take("a")
    running = lab.targets("a").actual()[0]
    lab.exports("a").drop(E, [ADDRESS], running)
    assert lab.store.is_fenced(running.client)
    assert lab.targets("a").actual() == ()


def test_a_taker_that_lost_its_lock_does_not_fence_the_owner_it_finds(lab: Lab) -> None:
    unknown = Export(generation=2, client=UNKNOWN_CLIENT)
    lab.coordination.put(E.key, unknown.model_dump_json().encode())

    class Slow(Store):
        def clients(self, name: str) -> tuple[str, ...]:
            lab.coordination.close_session(lab.sessions["a"])
            return ("owner:1",)

    lab.store = Slow()
    with pytest.raises(Problem):
        lab.take("a")
    assert lab.store.memory.fenced == set()


def give_up(lab: Lab, node: str) -> None:
    running = next(iter(lab.targets(node).actual()), None)
    lab.exports(node).give_up(E, lab.held, {ADDRESS}, running, consul_session=lab.sessions[node])


def adopt(lab: Lab, node: str) -> bool:
    lab.sessions[node] = lab.coordination.open_session(node, check_ttl_s=CHECK_TTL_S)
    view, running = lab.view(), lab.targets(node).actual()[0]
    session, siblings = lab.sessions[node], view.siblings_clients(E)
    return lab.exports(node).adopt(E, view.exports[E], running, DISK, consul_session=session, siblings=siblings)
