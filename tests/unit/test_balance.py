"""Balance: plans are even, apart and as short as can be, honour every mark, and foretell what the workers will do."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import EntryPoint
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.errors import InvalidInput
from sanderling.model import planners
from sanderling.model.balance import (
    Distribution,
    Layout,
    PlannedMove,
    Reason,
    after,
    average,
    distribution,
    lose,
    manual,
    score,
)
from sanderling.model.exports import ExportId, Gateway
from sanderling.model.marks import Marks
from sanderling.model.placement import place
from sanderling.model.planners import GROUP, PlanRefused, checked, planner

NAMES = ("g1", "g2", "g3", "g4")


@st.composite
def layouts(draw: st.DrawFn, *, exports_max: int = 7, gateways_max: int = 4, marks: bool = True) -> Layout:
    """Disks of 1 to 5 exports anywhere, skewed or not; with marks also unserved ones, drains, pins and gateways to avoid."""
    names = NAMES[: draw(st.integers(1, gateways_max))]
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=exports_max))
    exports = [ExportId(f"d{disk}", index) for disk, size in enumerate(sizes) for index in range(size)][:exports_max]
    homes = st.sampled_from(names[: draw(st.integers(1, len(names)))])
    if not marks:
        return Layout({export: draw(homes) for export in exports}, frozenset(names))
    disks, named = st.sampled_from([f"d{disk}" for disk in range(len(sizes))]), st.sampled_from(names)
    return Layout(
        owners={export: draw(homes | st.sampled_from((None, "gone"))) for export in exports},
        gateways=frozenset(names),
        drained=frozenset(draw(st.sets(named, max_size=1))),
        pins=draw(st.dictionaries(disks, named, max_size=2)),
        avoid=draw(st.dictionaries(disks, st.frozensets(named), max_size=2)),
    )


def served(gateways: Mapping[str, int], **changed: object) -> Layout:
    """So many exclusive exports on each gateway."""
    owners = {ExportId(f"{name}-{number}", 0): name for name, count in gateways.items() for number in range(count)}
    return Layout(owners, frozenset(gateways), **changed)  # type: ignore[arg-type]


def on(layout: Layout, disk_id: str) -> list[str]:
    return sorted(owner for export, owner in layout.owners.items() if export.disk_id == disk_id and owner)


def cost(layout: Layout, owners: Mapping[ExportId, str | None]) -> tuple[int, int, int, int]:
    """What a plan is judged by, the weightiest first: siblings together, pins missed, unevenness, moves."""
    counts: Counter[str | None] = Counter(owners.values())
    beside = Counter((export.disk_id, owner) for export, owner in owners.items() if owner)
    together = sum(count * (count - 1) for count in beside.values())
    missed = sum((disk_id, pin) not in beside for disk_id, pin in layout.pins.items())
    moves = sum(owner != layout.owners[export] for export, owner in owners.items())
    return together, missed, sum(counts[name] ** 2 for name in layout.usable), moves


def least_cost(layout: Layout, chosen: Collection[ExportId] | None) -> tuple[int, int, int, int]:
    """The best of all distributions there are, by trying every one."""
    choices = []
    for export, owner in layout.owners.items():
        able = layout.usable - layout.avoid.get(export.disk_id, frozenset())
        choices.append(sorted(able) if able and (chosen is None or export in chosen) else [owner])
    return min(cost(layout, dict(zip(layout.owners, owners, strict=True))) for owners in product(*choices))


@pytest.mark.rows("PA-22")
@settings(max_examples=100, deadline=None)
@given(layout=layouts())
def test_no_plan_is_better_than_the_one_that_average_makes(layout: Layout) -> None:
    assert cost(layout, after(layout, average(layout)).owners) == least_cost(layout, None)


@pytest.mark.rows("PA-24", "PA-18")
@settings(max_examples=60, deadline=None)
@given(layout=layouts(), data=st.data())
def test_chosen_exports_are_placed_as_well_as_can_be_and_no_other_moves(layout: Layout, data: st.DataObject) -> None:
    chosen = data.draw(st.frozensets(st.sampled_from(sorted(layout.owners))))
    moves = average(layout, chosen)
    assert {move.export for move in moves} <= chosen
    assert cost(layout, after(layout, moves).owners) == least_cost(layout, chosen)


@pytest.mark.rows("PA-22")
@settings(deadline=None)
@given(layout=layouts(exports_max=40, marks=False))
def test_without_marks_gateways_end_even_with_siblings_apart(layout: Layout) -> None:
    shown = distribution(after(layout, average(layout)))
    assert shown.spread <= 1
    sizes, bins = Counter(export.disk_id for export in layout.owners).values(), len(layout.gateways)
    assert shown.together == sum(_fewest_pairs(size, bins) for size in sizes)


def _fewest_pairs(size: int, bins: int) -> int:
    each, more = divmod(size, bins)
    return bins * each * (each - 1) // 2 + more * each


@settings(deadline=None)
@given(layout=layouts(exports_max=40))
def test_marks_are_honoured(layout: Layout) -> None:
    moves = average(layout)
    then = after(layout, moves)
    assert len({move.export for move in moves}) == len(moves)
    for move in moves:
        assert move.source == layout.owners[move.export]
        assert move.destination in layout.usable - layout.avoid.get(move.export.disk_id, frozenset())
    for export, owner in then.owners.items():
        able = layout.usable - layout.avoid.get(export.disk_id, frozenset())
        assert owner in able if able else owner == layout.owners[export]
        pin = layout.pins.get(export.disk_id)
        assert pin not in able or pin in on(then, export.disk_id)


@settings(deadline=None)
@given(layout=layouts(exports_max=40))
def test_a_plan_carried_out_leaves_nothing_to_plan(layout: Layout) -> None:
    assert average(after(layout, average(layout))) == []


@given(layout=layouts(exports_max=40), order=st.randoms(use_true_random=False))
def test_the_same_layout_gives_the_same_plan_whatever_order_it_was_read_in(layout: Layout, order: object) -> None:
    shuffled = list(layout.owners.items())
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = Layout(dict(shuffled), layout.gateways, layout.drained, layout.pins, layout.avoid)
    assert average(again) == average(layout)


@given(layout=layouts(exports_max=40))
def test_moves_that_repair_come_before_those_that_even_out(layout: Layout) -> None:
    beside = Counter((export.disk_id, owner) for export, owner in layout.owners.items())

    def repairs(move: PlannedMove) -> bool:
        wrong = move.source not in layout.usable or move.source in layout.avoid.get(move.export.disk_id, ())
        pinned = layout.pins.get(move.export.disk_id) == move.destination
        return wrong or pinned or beside[move.export.disk_id, move.source] > 1

    kinds = [repairs(move) for move in average(layout)]
    assert kinds == sorted(kinds, reverse=True)


def test_a_new_gateway_gets_its_share_by_the_fewest_moves() -> None:
    moves = average(served({"g1": 6, "g2": 6, "g3": 0}))
    assert Counter((move.source, move.destination) for move in moves) == {("g1", "g3"): 2, ("g2", "g3"): 2}


def test_every_beginning_of_a_plan_takes_from_the_fullest_gateway() -> None:
    assert [move.source for move in average(served({"g1": 4, "g2": 6, "g3": 0, "g4": 0}))][:2] == ["g2", "g2"]


def test_a_drained_gateway_is_emptied_and_stays_so() -> None:
    layout = served({"g1": 3, "g2": 3, "g3": 3}, drained=frozenset({"g2"}))
    then = after(layout, average(layout))
    assert distribution(then).counts == {"g1": 5, "g2": 0, "g3": 4}
    assert distribution(then).spread == 1


def test_where_no_usable_gateway_is_left_nothing_moves() -> None:
    assert average(served({"g1": 3}, drained=frozenset({"g1"}))) == []


def test_a_pin_wins_over_evenness_and_the_rest_is_as_even_as_that_allows() -> None:
    layout = served({"g1": 6, "g2": 0, "g3": 0}, pins={f"g1-{number}": "g1" for number in range(4)})
    assert distribution(after(layout, average(layout))).counts == {"g1": 4, "g2": 1, "g3": 1}


def test_a_pin_of_a_shared_disk_brings_one_of_its_exports_and_leaves_the_others_apart() -> None:
    owners = {ExportId("d", index): NAMES[index] for index in range(3)}
    layout = Layout(owners, frozenset(NAMES), pins={"d": "g4"})
    moves = average(layout)
    assert len(moves) == 1
    assert "g4" in on(after(layout, moves), "d")
    assert distribution(after(layout, moves)).together == 0


@pytest.mark.parametrize(
    "marks", [{"drained": frozenset({"g1"})}, {"avoid": {"d": frozenset({"g1"})}}, {"gateways": frozenset({"g2"})}]
)
def test_a_pin_to_where_the_disk_may_not_be_does_not_keep_it_from_being_served(marks: dict[str, frozenset[str]]) -> None:
    layout = Layout({ExportId("d", 0): None}, pins={"d": "g1"}, **{"gateways": frozenset({"g1", "g2"})} | marks)  # type: ignore[arg-type]
    assert average(layout) == [PlannedMove(ExportId("d", 0), None, "g2")]


def test_a_disk_that_avoids_every_gateway_stays_where_it_is() -> None:
    assert average(served({"g1": 1, "g2": 0}, avoid={"g1-0": frozenset({"g1", "g2"})})) == []


def test_an_export_makes_room_for_those_that_may_not_go_elsewhere() -> None:
    owners = {ExportId("free", 0): "g3", ExportId("a", 0): "g1", ExportId("b", 0): "g1"}
    avoid = dict.fromkeys("ab", frozenset({"g1"}))
    layout = Layout(owners, frozenset(NAMES[:3]), avoid=avoid)
    then = after(layout, average(layout))
    assert then.owners[ExportId("free", 0)] == "g1"
    assert distribution(then).spread == 0


@pytest.mark.rows("PA-25")
def test_chosen_exports_go_to_the_gateway_that_was_named_and_those_there_already_are_left_out() -> None:
    layout = served({"g1": 2, "g2": 1})
    assert manual(layout, list(layout.owners), "g2") == [
        PlannedMove(ExportId("g1-0", 0), "g1", "g2"),
        PlannedMove(ExportId("g1-1", 0), "g1", "g2"),
    ]


def test_a_distribution_counts_every_live_gateway_and_each_pair_of_siblings_that_share_one() -> None:
    owners = {
        ExportId("d", 0): "g1",
        ExportId("d", 1): "g1",
        ExportId("d", 2): "g1",
        ExportId("e", 0): "gone",
        ExportId("f", 0): None,
    }
    shown = distribution(Layout(owners, frozenset({"g1", "g2", "g3"}), drained=frozenset({"g3"})))
    assert shown == Distribution({"g1": 3, "g2": 0, "g3": 0, "gone": 1}, together=3, usable=frozenset({"g1", "g2"}))
    assert shown.spread == 3


@given(layout=layouts(exports_max=20), data=st.data())
def test_what_a_loss_would_do_is_what_the_workers_place(layout: Layout, data: st.DataObject) -> None:
    lost = data.draw(st.frozensets(st.sampled_from(sorted(layout.gateways))))
    owners = {export: owner for export, owner in layout.owners.items() if owner in layout.gateways - lost and owner}
    marks = Marks(drained=layout.drained, pins=layout.pins, avoid=layout.avoid)
    free = [export for export in layout.owners if export not in owners]
    placed = place(free, {name: Gateway(name=name) for name in layout.gateways - lost}, owners, marks=marks)
    foretold = lose(layout, lost)
    assert {move.export: move.destination for move in foretold.moves} == placed
    assert {export for export, _ in foretold.unserved} == layout.owners.keys() - owners.keys() - placed.keys()
    then = Layout({**dict.fromkeys(layout.owners), **owners, **placed}, layout.gateways - lost, layout.drained)
    assert foretold.distribution == distribution(then)
    disks = {export.disk_id for export in layout.owners}
    assert foretold.sharing == tuple(sorted(disk for disk in disks if any(a == b for a, b in combinations(on(then, disk), 2))))


def test_a_loss_names_disks_left_with_one_path_or_with_two_on_one_gateway() -> None:
    owners = {ExportId("d", 0): "g1", ExportId("d", 1): "g2", ExportId("d", 2): "g3"}
    layout = Layout(owners, frozenset(NAMES[:3]), avoid={"d": frozenset({"g3"})})
    foretold = lose(layout, {"g1"})
    assert (foretold.one_path, foretold.sharing, foretold.unserved) == ((), ("d",), ())
    assert lose(layout, {"g1", "g2"}).one_path == ("d",)
    assert {reason for _, reason in lose(layout, NAMES).unserved} == {Reason.NO_GATEWAY}


@given(layout=layouts(exports_max=20))
def test_the_score_is_what_each_loss_alone_would_leave_without_a_gateway_that_marks_allow(layout: Layout) -> None:
    for lost in layout.gateways:
        left = layout.usable - {lost}
        down = [export for export, owner in layout.owners.items() if owner not in layout.gateways - {lost}]
        exposed = {export for export in down if left <= layout.avoid.get(export.disk_id, frozenset())}
        assert {export for export, _ in score(layout).losses.get(lost, ())} == exposed


def test_the_score_names_the_gateway_whose_loss_is_worst() -> None:
    fine = served({"g1": 3, "g2": 3})
    assert score(fine).ok
    assert score(fine).worst is None
    risky = served({"g1": 3, "g2": 3}, avoid={"g2-0": frozenset({"g1"})})
    assert score(risky).losses == {"g2": ((ExportId("g2-0", 0), Reason.AVOID),)}
    assert (score(risky).ok, score(risky).worst) == (False, "g2")
    assert not score(served({"g1": 3, "g2": 3}, drained=frozenset({"g2"}))).ok, "a drain that breaks N-1 shows"


def test_what_nobody_may_serve_even_now_is_no_good_score() -> None:
    export = ExportId("d", 0)
    dark = score(Layout({export: "gone"}, frozenset()))
    assert (dark.ok, dark.unserved, dark.worst) == (False, ((export, Reason.NO_GATEWAY),), None)
    barred = score(Layout({export: None}, frozenset({"g1", "g2"}), avoid={"d": frozenset({"g1", "g2"})}))
    assert (barred.ok, barred.unserved) == (False, ((export, Reason.AVOID),))
    assert score(Layout({export: None}, frozenset({"g1", "g2"}))).ok, "it is about to be taken, and can be after any loss"
    assert score(Layout({}, frozenset())).ok


def backwards(layout: Layout, chosen: Collection[ExportId] | None = None) -> list[PlannedMove]:
    """A planner as a plugin brings it: everything to the gateway that sorts last."""
    return manual(layout, layout.owners if chosen is None else chosen, max(layout.gateways))


BACKWARDS = EntryPoint("backwards", f"{__name__}:backwards", GROUP)


@pytest.mark.rows("PA-19", "PA-18")
def test_a_planner_is_found_by_its_name_whether_built_in_or_installed() -> None:
    layout = served({"g1": 2, "g2": 0})
    assert planner("average") is average
    assert planner("backwards", [BACKWARDS])(layout) == manual(layout, layout.owners, "g2")
    chosen = frozenset({ExportId("g1-0", 0)})
    assert planner("backwards", [BACKWARDS])(layout, chosen) == manual(layout, chosen, "g2")


@pytest.mark.rows("W-PA-7")
def test_an_unknown_planner_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidInput, match="average, backwards"):
        planner("1", [BACKWARDS])
    with pytest.raises(InvalidInput, match="average"):
        planner("1")


def test_a_planner_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(PlanRefused, match="no_such_thing"):
        planner("broken", [EntryPoint("broken", "no_such_thing:plan", GROUP)])


@pytest.mark.parametrize(
    ("move", "fault"),
    [
        (PlannedMove(ExportId("x", 0), "g1", "g2"), "no such export"),
        (PlannedMove(ExportId("g1-0", 0), "g1", "nobody"), "no live gateway nobody"),
        (PlannedMove(ExportId("g1-0", 0), "g1", "g3"), "g3 is drained"),
        (PlannedMove(ExportId("g1-1", 0), "g1", "g2"), "avoids g2"),
        (PlannedMove(ExportId("g1-0", 0), "g2", "g1"), "is on g1, not on g2"),
        (PlannedMove(ExportId("g1-0", 0), "g1", "g1"), "is on g1 already"),
        (PlannedMove(ExportId("g1-2", 0), "g1", "g2"), "was not chosen"),
    ],
)
def test_a_foreign_plan_that_cannot_be_carried_out_is_refused_by_naming_the_export(move: PlannedMove, fault: str) -> None:
    layout = served({"g1": 3, "g2": 0, "g3": 0}, drained=frozenset({"g3"}), avoid={"g1-1": frozenset({"g2"})})
    chosen = layout.owners.keys() - {ExportId("g1-2", 0)}
    with pytest.raises(PlanRefused, match=f"{move.export}: .*{fault}"):
        checked(layout, [move], chosen)


def test_a_foreign_plan_that_moves_an_export_twice_is_refused() -> None:
    move = PlannedMove(ExportId("g1-0", 0), "g1", "g2")
    with pytest.raises(PlanRefused, match="moved twice"):
        checked(served({"g1": 1, "g2": 0}), [move, move])


def broken(*_: object) -> Iterator[PlannedMove]:
    """A planner whose fault shows only when its moves are taken."""
    yield PlannedMove(ExportId("g1-0", 0), "g1", "g2")
    raise ZeroDivisionError("no average of nothing")


def nothing_returned(*_: object) -> None:
    """A planner that forgets to return."""


def pairs(*_: object) -> list[tuple[ExportId, str]]:
    return [(ExportId("g1-0", 0), "g2")]


def texts(*_: object) -> list[PlannedMove]:
    return [PlannedMove("g1-0/0", "g1", "g2")]  # type: ignore[arg-type]


def lists(*_: object) -> list[PlannedMove]:
    return [PlannedMove(ExportId("g1-0", 0), "g1", ["g2"])]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("broken", "no average of nothing"),
        ("nothing_returned", "NoneType"),
        ("pairs", "is no PlannedMove"),
        ("texts", "is no PlannedMove"),
        ("lists", "is no PlannedMove"),
        ("NAMES", "not callable"),
        ("no_such_planner", "no_such_planner"),
    ],
)
def test_whatever_is_wrong_with_an_installed_planner_is_refused_by_its_name(attribute: str, said: str) -> None:
    with pytest.raises(PlanRefused, match=f"planner theirs .*{said}") as refused:
        planner("theirs", [EntryPoint("theirs", f"{__name__}:{attribute}", GROUP)])(served({"g1": 1, "g2": 0}))
    assert refused.value.context["planner"] == "theirs"
    assert refused.value.context["faults"]


class Unloadable(EntryPoint):
    """An entry point whose module fails while it is imported."""

    def load(self) -> object:
        raise ValueError("their module is broken")


def test_a_planner_whose_module_fails_is_refused_by_its_name() -> None:
    with pytest.raises(PlanRefused, match=r"planner theirs cannot be loaded: .*their module is broken"):
        planner("theirs", [Unloadable("theirs", "theirs:plan", GROUP)])


def test_an_installed_planner_is_checked() -> None:
    layout = served({"g1": 1, "g2": 0}, drained=frozenset({"g2"}))
    with pytest.raises(PlanRefused, match="backwards proposed what cannot be"):
        planners.planner("backwards", [BACKWARDS])(layout)


@settings(deadline=None)
@given(layout=layouts(exports_max=40))
def test_what_average_proposes_would_pass_the_check(layout: Layout) -> None:
    assert checked(layout, average(layout)) == average(layout)
