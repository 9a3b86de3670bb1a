"""Who finds itself cut off on the network of the paths, and for how long: several gateways on a network that a test breaks."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from iscsi_worker.addresses.memory import Memory
from iscsi_worker.claims import Claims, Silence
from iscsi_worker.neighbours import Neighbours, cut_off, probes
from iscsi_worker.reach import Probe
from iscsi_worker.standing import Standing
from iscsi_worker.view import Held, View
from sanderling.clock import ManualClock
from sanderling.model.disks import Access, Disk, Path
from sanderling.model.exports import Export, ExportId, ExportPhase, Front, Gateway, Store
from sanderling.model.fronts import standing_back, stands_back
from sanderling.settings import Worker
from tests.unit.views import view_of

SETTINGS = Worker()
HOLD = {"hold_s": SETTINGS.front_hold_s, "hold_most_s": SETTINGS.front_hold_most_s}
TURNS_UNTIL_SAID = SETTINGS.front_probe_failures_max
TURNS_UNTIL_CUT = TURNS_UNTIL_SAID + 3
PATH = Path(index=1, address="10.0.0.100", prefix_len=24, interface="eth1", subnet="s")
DISK = Disk(id="d1", name="one", iqn="iqn.x:one", size_bytes=512, started=True, paths=(PATH,))


class Site:
    """Gateways a, b, c, … each with 10.0.0.<n>/24 on eth1. `down` has no link; a packet from one to another passes unless the
    pair is in `dropped`. Every gateway's turn sees what all of them published before, while the store is there."""

    def __init__(self, names: str, *, disks: dict[str, str] | None = None) -> None:
        self.names, self.disks = names, disks or {}
        self.clock = ManualClock()
        self.down: set[str] = set()
        self.dropped: set[tuple[str, str]] = set()
        self.store_is_there = True
        self.woken: list[str] = []
        self._seen: View | None = None
        self.workers = {name: self.started(name) for name in names}

    def started(self, name: str) -> Neighbours:
        return Neighbours(
            name,
            SETTINGS,
            Wire(self, name),
            Claims(name, Silence(), Memory(self.clock), view=lambda: self._seen, certain=lambda: True, clock=self.clock),
            view=lambda: self._seen,
            on_change=lambda: self.woken.append(name),
            clock=self.clock,
        )

    def restart(self, name: str) -> None:
        self.workers[name] = self.started(name)

    def address(self, name: str) -> str:
        return f"10.0.0.{1 + self.names.index(name)}"

    def carries(self, source: str, to: str) -> bool:
        there, back = (source, to), (to, source)
        return not {source, to} & self.down and there not in self.dropped and back not in self.dropped

    def holder(self, address: str) -> str:
        at = int(address.rpartition(".")[2])
        return self.names[at - 1] if at < 100 else self.disks[f"d{at - 100}"]

    def isolate(self, name: str) -> None:
        """Everything is dropped although the link is up."""
        self.dropped |= {(name, other) for other in self.names if other != name}

    def view(self) -> View:
        disks = {
            disk_id: DISK.model_copy(
                update={"id": disk_id, "paths": (PATH.model_copy(update={"address": f"10.0.0.{100 + int(disk_id[1:])}"}),)}
            )
            for disk_id in self.disks or ("d1",)
        }
        exports = {
            ExportId(disk_id, 0): Held(Export(generation=1, node=node, phase=ExportPhase.SERVING), f"session-{node}", 1)
            for disk_id, node in self.disks.items()
        }
        gateways = {
            name: Gateway(name=name, interfaces=() if name in self.down else ("eth1",), front=worker.front)
            for name, worker in self.workers.items()
        }
        return view_of(disks, exports, gateways)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            if self.store_is_there:
                self._seen = self.view()
            for worker in self.workers.values():
                worker.turn()
            self.clock.advance(SETTINGS.front_probe_interval_s)

    @property
    def cut(self) -> set[str]:
        """Those that stand back."""
        return {name for name, worker in self.workers.items() if worker.front.cut_off}


class Wire:
    def __init__(self, site: Site, name: str) -> None:
        self._site, self._name = site, name

    def own(self) -> dict[str, tuple[str, ...]]:
        return {"lo": ("127.0.0.1/8",), "eth1": (f"{self._site.address(self._name)}/24",)}

    def answered(self, probes: Collection[Probe], *, timeout_s: float) -> frozenset[Probe]:
        return frozenset(one for one in probes if self._site.carries(self._name, self._site.holder(one.address)))


@pytest.mark.parametrize("names", ["ab", "abc", "abcde"])
def test_while_everybody_reaches_everybody_nobody_stands_back_and_nothing_is_published_again(names: str) -> None:
    site = Site(names, disks={"d1": "a"})
    site.turn(3)
    assert site.workers["b"].front.reachable["eth1"]
    site.woken.clear()
    site.turn(20)
    assert (site.cut, site.woken) == (set(), [])


@pytest.mark.parametrize("names", ["abc", "abcde"])
@pytest.mark.parametrize("disks", [{"d1": "a"}, {"d1": "a", "d2": "b"}, {"d1": "b"}], ids=["serving", "one of two", "idle"])
def test_a_gateway_that_nobody_reaches_while_others_reach_each_other_is_cut_off(names: str, disks: dict[str, str]) -> None:
    site = Site(names, disks=disks)
    site.turn(3)
    site.isolate("a")
    site.turn(TURNS_UNTIL_CUT)
    assert site.cut == {"a"}


@pytest.mark.parametrize("inbound", [True, False], ids=["nothing comes in", "nothing goes out"])
def test_loss_in_one_direction_only_cuts_off_as_well(inbound: bool) -> None:
    site = Site("abc", disks={"d1": "a"})
    site.turn(3)
    site.dropped = {("b", "a"), ("c", "a")} if inbound else {("a", "b"), ("a", "c")}
    site.turn(TURNS_UNTIL_CUT)
    assert site.cut == {"a"}


def test_a_gateway_that_somebody_still_reaches_stays() -> None:
    site = Site("abcd", disks={"d1": "a"})
    site.turn(3)
    site.dropped = {("b", "a"), ("c", "a")}
    site.turn(50)
    assert site.cut == set()


def test_with_two_gateways_that_do_not_reach_each_other_neither_gives_up() -> None:
    site = Site("ab", disks={"d1": "a", "d2": "b"})
    site.turn(3)
    site.isolate("a")
    site.turn(50)
    assert site.cut == set()


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_gateway_whose_own_link_is_gone_is_cut_off_also_where_only_one_other_is_left(names: str) -> None:
    site = Site(names, disks={"d1": "a"})
    site.turn(3)
    site.down = {"a"}
    site.turn(TURNS_UNTIL_CUT)
    assert site.cut == {"a"}


@pytest.mark.parametrize("names", ["ab", "abc", "abcde"])
@pytest.mark.parametrize("how", ["links", "packets"])
def test_when_all_are_cut_off_none_gives_up(names: str, how: str) -> None:
    site = Site(names, disks={"d1": "a", "d2": "b"})
    site.turn(3)
    if how == "links":
        site.down = set(names)
    for name in names if how == "packets" else "":
        site.isolate(name)
    site.turn(50)
    assert site.cut == set()


def test_a_network_split_in_the_middle_moves_nothing() -> None:
    site = Site("abcde", disks={"d1": "a", "d2": "c"})
    site.turn(3)
    site.dropped = {(one, other) for one in "ab" for other in "cde"}
    site.turn(50)
    assert site.cut == set()


def test_one_lost_answer_is_no_failure() -> None:
    site = Site("abc", disks={"d1": "a"})
    site.turn(3)
    for _ in range(10):
        site.isolate("a")
        site.turn(TURNS_UNTIL_SAID - 1)
        site.dropped.clear()
        site.turn()
    assert site.cut == set()
    assert site.workers["b"].front.unreachable == {}


def test_a_gateway_that_is_reached_again_stands_back_for_a_while_and_no_longer() -> None:
    site = Site("abc", disks={"d1": "a"})
    site.turn(3)
    site.isolate("a")
    site.turn(TURNS_UNTIL_CUT)
    site.disks = {"d1": "b"}  # given up, and taken by another
    site.turn(100)
    assert site.cut == {"a"}
    site.dropped.clear()
    held = int(SETTINGS.front_hold_s / SETTINGS.front_probe_interval_s)
    site.turn(held - 2)
    assert site.cut == {"a"}
    site.turn(4)
    assert site.cut == set()


def test_a_network_that_comes_and_goes_is_stood_back_from_for_longer_each_time_up_to_a_bound() -> None:
    standing, now, held = Standing(), 0.0, list[float]()
    for _ in range(8):
        while not standing.cut_off:
            standing, now = standing.after(True, now=now, **HOLD), now + 1
        began = now
        while standing.cut_off:
            standing, now = standing.after(False, now=now, **HOLD), now + 1
        held.append(now - began)
    assert held == sorted(held)
    assert held[1] > 1.8 * held[0]
    assert held[-1] < SETTINGS.front_hold_most_s + 2


def test_a_gateway_that_was_well_for_long_stands_back_only_briefly_again() -> None:
    standing = Standing(hold_s=SETTINGS.front_hold_most_s, until=10.0)
    now = 11.0 + SETTINGS.front_hold_most_s
    for _ in range(2):
        standing = standing.after(True, now=now, **HOLD)
    assert (standing.cut_off, standing.hold_s) == (True, SETTINGS.front_hold_s)


def test_one_verdict_alone_changes_nothing() -> None:
    once = Standing().after(True, now=0.0, **HOLD)
    assert not once.cut_off
    assert not once.after(False, now=1.0, **HOLD).after(True, now=2.0, **HOLD).cut_off


def test_a_store_that_is_away_or_was_made_anew_cuts_nobody_off() -> None:
    site = Site("abc", disks={"d1": "a"})
    site.turn(3)
    site.store_is_there = False
    site.isolate("a")
    site.turn(50)
    assert site.cut == set(), "nobody can read what its peers find"
    site.dropped.clear()
    for name in site.names:
        site.restart(name)  # what each knew is gone as well
    site.store_is_there = True
    site.turn(50)
    assert site.cut == set()


def test_a_gateway_that_restarts_while_cut_off_finds_that_out_again() -> None:
    site = Site("abc", disks={"d1": "b"})
    site.turn(3)
    site.isolate("a")
    site.turn(TURNS_UNTIL_CUT)
    site.restart("a")
    site.turn(TURNS_UNTIL_CUT)
    assert site.cut == {"a"}


def test_of_many_gateways_each_asks_a_few_and_every_one_is_asked_for_by_as_many() -> None:
    names = [f"n{number:02}" for number in range(20)]
    seen = view_of({}, {}, {name: Gateway(name=name, front=Front(own={"eth1": ("10.0.0.9/24",)})) for name in names})
    found = {name: probes(seen, ["eth1"], name, {"eth1": ("10.0.0.1/24",)}, peers_max=4) for name in names}
    assert {len(one) for one in found.values()} == {4}
    assert all(sum(probe.peer == name for one in found.values() for probe in one) == 4 for name in names)


def test_a_gateway_without_an_address_in_the_subnet_asks_nobody_there() -> None:
    seen = view_of({}, {}, {name: Gateway(name=name, front=Front(own={"eth1": ("10.0.0.9/24",)})) for name in "ab"})
    own = {"eth1": ("10.0.1.1/24",), "eth0": ("10.0.0.1/24",)}
    assert probes(seen, ["eth1"], "a", own, peers_max=4) == []


def test_a_gateway_is_asked_for_at_its_own_address_and_at_portals_it_serves_where_it_has_none() -> None:
    site = Site("ab", disks={"d1": "a", "d2": "a", "d3": "a"})

    def asked(of: str, view: View) -> set[str]:
        return {
            probe.address for probe in probes(view, ["eth1"], "c", {"eth1": ("10.0.0.9/24",)}, peers_max=4) if probe.peer == of
        }

    before = site.view()  # in which they have yet to say what addresses they have
    assert len(asked("a", before)) == 2
    assert asked("a", before) < {"10.0.0.101", "10.0.0.102", "10.0.0.103"}
    assert asked("b", before) == set()
    site.turn(2)
    after = site.view()
    assert (asked("a", after), asked("b", after)) == ({"10.0.0.1"}, {"10.0.0.2"})
    elsewhere = Front(own={"eth1": ("fd00::1/64",)})
    there = {"a": after.gateways["a"].model_copy(update={"front": elsewhere}), "b": after.gateways["b"]}
    assert len(asked("a", replace(after, gateways=there))) == 2, "its own addresses cannot be asked from here"


def gateways(**cut: tuple[str, ...]) -> dict[str, Gateway]:
    return {
        name: Gateway(name=name, interfaces=("eth1", "eth2"), front=Front(cut_off=interfaces)) for name, interfaces in cut.items()
    }


def test_what_is_cut_off_leaves_an_export_only_to_one_that_is_not() -> None:
    export = ExportId("d1", 0)
    assert stands_back(gateways(a=("eth1",), b=()), "a", DISK, export, ["eth1"])
    assert not stands_back(gateways(a=("eth2",), b=()), "a", DISK, export, ["eth2"]), "another network's trouble"
    assert not stands_back(gateways(a=("eth1",)), "a", DISK, export, ["eth1"]), "nobody else is left"
    assert not stands_back(gateways(a=("eth1",), b=("eth1",)), "a", DISK, export, ["eth1"]), "the other is no better"
    for worse in ({"withdrawing": True}, {"refused": {str(export): "why"}}, {"interfaces": ("eth2",)}):
        seen = gateways(a=("eth1",), b=())
        seen["b"] = seen["b"].model_copy(update=worse)
        assert not stands_back(seen, "a", DISK, export, ["eth1"]), worse


def test_two_gateways_cut_off_on_different_networks_do_not_hand_a_disk_to_and_fro() -> None:
    both = DISK.model_copy(update={"paths": (PATH, PATH.model_copy(update={"index": 2, "interface": "eth2"}))})
    seen = gateways(a=("eth1",), b=("eth2",))
    assert not stands_back(seen, "a", both, ExportId("d1", 0), ["eth1"])
    assert not stands_back(seen, "b", both, ExportId("d1", 0), ["eth2"])
    shared = both.model_copy(update={"access": Access.SHARED})
    assert stands_back(seen, "a", shared, ExportId("d1", 1), ["eth1"])
    assert not stands_back(seen, "a", shared, ExportId("d1", 2), ["eth1"])


def test_placement_sees_a_gateway_that_is_cut_off_as_refusing_what_others_can_serve() -> None:
    export, unknown = ExportId("d1", 0), ExportId("gone", 0)
    seen = standing_back(gateways(a=("eth1",), b=()), {"d1": DISK}, [export, unknown])
    assert set(seen["a"].refused) == {str(export)}
    assert seen["b"].refused == {}
    everywhere = gateways(a=("eth1",), b=("eth1",))
    assert standing_back(everywhere, {"d1": DISK}, [export]) == everywhere


FINE, HELD, LOST, OLD = Store(answers=True), Store(answers=True, cut_off=True), Store(cut_off=True), Store()


def stores(**said: Store) -> dict[str, Gateway]:
    return {name: Gateway(name=name, interfaces=("eth1", "eth2"), store=store) for name, store in said.items()}


def test_who_is_cut_off_from_the_image_store_leaves_an_export_only_to_one_whose_store_answers() -> None:
    export = ExportId("d1", 0)
    assert stands_back(stores(a=LOST, b=FINE), "a", DISK, export, (), LOST)
    assert stands_back(stores(a=LOST, b=HELD), "a", DISK, export, (), LOST), "better than one that cannot at all"
    assert stands_back(stores(a=HELD, b=FINE), "a", DISK, export, (), HELD)
    for no_better in (LOST, OLD):
        assert not stands_back(stores(a=LOST, b=no_better), "a", DISK, export, (), LOST), no_better
    assert not stands_back(stores(a=HELD, b=HELD), "a", DISK, export, (), HELD)
    assert not stands_back(stores(a=LOST), "a", DISK, export, (), LOST), "nobody else is left"
    for worse in (
        {"withdrawing": True},
        {"refused": {str(export): "it cannot map the image"}},
        {"interfaces": ("eth2",)},
        {"front": Front(cut_off=("eth1",))},
    ):
        seen = stores(a=LOST, b=FINE)
        seen["b"] = seen["b"].model_copy(update=worse)
        assert not stands_back(seen, "a", DISK, export, (), LOST), worse


def test_who_is_cut_off_in_front_leaves_nothing_to_one_that_has_lost_the_image_store() -> None:
    export = ExportId("d1", 0)
    assert stands_back(stores(a=FINE, b=OLD), "a", DISK, export, ["eth1"], FINE)
    assert not stands_back(stores(a=FINE, b=LOST), "a", DISK, export, ["eth1"], FINE)


@pytest.mark.parametrize("store", [FINE, HELD, LOST, OLD])
@pytest.mark.parametrize("other_store", [FINE, HELD, LOST, OLD])
@pytest.mark.parametrize(("front", "other_front"), [((), ()), (("eth1",), ()), (("eth1",), ("eth1",))])
def test_of_two_gateways_never_both_stand_back(
    store: Store, other_store: Store, front: tuple[str, ...], other_front: tuple[str, ...]
) -> None:
    export, seen = ExportId("d1", 0), stores(a=store, b=other_store)
    seen = {
        name: gateway.model_copy(update={"front": Front(cut_off=cut)})
        for (name, gateway), cut in zip(seen.items(), (front, other_front), strict=True)
    }
    stand_back = [
        stands_back(seen, "a", DISK, export, front, store),
        stands_back(seen, "b", DISK, export, other_front, other_store),
    ]
    assert stand_back != [True, True]


def test_placement_gives_nothing_to_one_that_has_lost_the_image_store_even_when_nobody_else_may_have_it() -> None:
    export = ExportId("d1", 0)
    seen = stores(a=LOST, b=FINE)
    seen["b"] = seen["b"].model_copy(update={"refused": {str(export): "why"}})
    assert set(standing_back(seen, {"d1": DISK}, [export])["a"].refused) == {str(export)}
    assert standing_back(stores(a=HELD, b=OLD), {"d1": DISK}, [export])["a"].refused == {}


def test_a_gateway_that_is_not_live_concludes_nothing() -> None:
    assert cut_off(View(), "a") == frozenset()


def test_what_a_gateway_says_of_another_network_does_not_count_here() -> None:
    site = Site("abc", disks={"d1": "a"})
    site.turn(3)
    view = site.view()
    witness = Front(own={"eth1": ()}, unreachable={"eth2": ("a",)}, reachable={"eth1": ("c",), "eth2": ("c",)})
    seen = replace(view, gateways=dict(view.gateways) | {"b": view.gateways["b"].model_copy(update={"front": witness})})
    assert cut_off(seen, "a") == frozenset()


def test_one_witness_is_not_enough_even_if_it_reaches_somebody_else() -> None:
    site = Site("abc", disks={"d1": "a"})
    site.turn(3)
    view = site.view()
    witness = Front(own={"eth1": ()}, unreachable={"eth1": ("a",)}, reachable={"eth1": ("c",)})
    silent = Front()
    seen = dict(view.gateways)
    seen |= {name: seen[name].model_copy(update={"front": front}) for name, front in (("b", witness), ("c", silent))}
    assert cut_off(replace(view, gateways=seen), "a") == frozenset()
    seen["c"] = seen["c"].model_copy(update={"front": witness.model_copy(update={"reachable": {"eth1": ("b",)}})})
    assert cut_off(replace(view, gateways=seen), "a") == {"eth1"}
