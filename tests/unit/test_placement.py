"""Placement: what every worker computes for itself must be the same everywhere, even, and never hand out what was refused."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sanderling.model.exports import ExportId, Gateway
from sanderling.model.marks import Marks
from sanderling.model.placement import place

NODES = ("n1", "n2", "n3", "n4")
EXPORTS = st.lists(st.builds(ExportId, st.sampled_from("abcdef"), st.integers(1, 8)), unique=True, max_size=40)
ALIVE = st.lists(st.sampled_from(NODES), unique=True, min_size=1)


def gateways(*names: str, **changed: Gateway) -> dict[str, Gateway]:
    return {name: Gateway(name=name) for name in names} | changed


@given(free=EXPORTS, alive=ALIVE, order=st.randoms(use_true_random=False))
def test_every_worker_computes_the_same_whatever_order_it_read_things_in(
    free: list[ExportId], alive: list[str], order: object
) -> None:
    shuffled, nodes = list(free), list(alive)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    order.shuffle(nodes)  # type: ignore[attr-defined]
    assert place(free, gateways(*alive), {}) == place(shuffled, gateways(*nodes), {})


@given(free=EXPORTS, alive=ALIVE)
def test_every_free_export_is_placed_on_a_live_gateway(free: list[ExportId], alive: list[str]) -> None:
    placed = place(free, gateways(*alive), {})
    assert set(placed) == set(free)
    assert set(placed.values()) <= set(alive)


@given(free=st.lists(st.builds(ExportId, st.uuids().map(str), st.just(0)), unique=True, max_size=40), alive=ALIVE)
def test_exclusive_exports_are_spread_evenly(free: list[ExportId], alive: list[str]) -> None:
    load = Counter(place(free, gateways(*alive), {}).values())
    loads = [load[name] for name in alive]
    assert max(loads) - min(loads) <= 1


@given(paths=st.integers(1, 8), alive=ALIVE)
def test_siblings_share_a_gateway_only_when_there_are_more_of_them_than_gateways(paths: int, alive: list[str]) -> None:
    placed = place([ExportId("d", number) for number in range(1, paths + 1)], gateways(*alive), {})
    assert max(Counter(placed.values()).values()) == -(-paths // len(alive))


def test_an_export_goes_where_the_load_is_least() -> None:
    owners = {ExportId("x", 0): "n1", ExportId("y", 0): "n1", ExportId("z", 0): "n2"}
    assert place([ExportId("d", 0)], gateways("n1", "n2", "n3"), owners) == {ExportId("d", 0): "n3"}


def test_an_export_that_still_runs_somewhere_goes_back_there_before_all_else() -> None:
    busy = {ExportId(str(number), 0): "n1" for number in range(9)}
    running = Gateway(name="n1", running={"d/0": "10.0.0.1:0/7"})
    assert place([ExportId("d", 0)], gateways("n2", n1=running), busy) == {ExportId("d", 0): "n1"}


def test_a_gateway_that_refused_an_export_or_withdraws_gets_none_of_it() -> None:
    refused, leaving = Gateway(name="n1", refused={"d/0": "no image"}), Gateway(name="n2", withdrawing=True)
    assert place([ExportId("d", 0)], gateways(n1=refused, n2=leaving), {}) == {}
    assert place([ExportId("d", 0)], gateways("n3", n1=refused, n2=leaving), {}) == {ExportId("d", 0): "n3"}


def test_a_gateway_that_was_passed_over_is_asked_again_when_nobody_else_is_left() -> None:
    export = ExportId("d", 0)
    assert place([export], gateways("n1", "n2"), {}, passed_over={export: ["n1"]}) == {export: "n2"}
    assert place([export], gateways("n1"), {}, passed_over={export: ["n1"]}) == {export: "n1"}


def test_without_a_gateway_nothing_is_placed() -> None:
    assert place([ExportId("d", 0)], {}, {}) == {}


def test_one_more_gateway_moves_nothing_that_is_held() -> None:
    held = {ExportId("a", 0): "n1", ExportId("b", 0): "n1"}
    assert place([], gateways("n1", "n2"), held) == {}


def test_a_mark_leaves_nothing_unserved_when_the_only_one_it_welcomes_has_had_its_chance() -> None:
    export, marks = ExportId("a", 0), Marks(drained=frozenset({"n1"}), avoid={"a": frozenset({"n2"})})
    everybody = gateways("n1", "n2", "n3")
    assert place([export], everybody, {}, marks=marks) == {export: "n3"}
    assert place([export], everybody, {}, marks=marks, passed_over={export: ["n3"]})[export] in {"n1", "n2"}
    assert place([export], gateways("n1"), {}, marks=marks) == {export: "n1"}


def test_a_move_comes_before_a_pin_and_a_pin_before_evenness() -> None:
    export, owners = ExportId("a", 0), {ExportId("b", 0): "n1", ExportId("c", 0): "n1"}
    everybody, marks = gateways("n1", "n2"), Marks(pins={"a": "n1"})
    assert place([export], everybody, owners) == {export: "n2"}
    assert place([export], everybody, owners, marks=marks) == {export: "n1"}
    assert place([export], everybody, owners, marks=marks, preferred={export: "n2"}) == {export: "n2"}
