"""What a node does about each export, from one view and what runs here."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_worker.decisions import (
    Activate,
    Adopt,
    Drop,
    GiveUp,
    Handing,
    Local,
    Publish,
    Take,
    Waiting,
    decide,
    free_placed,
    named,
    wait_on,
)
from iscsi_worker.targets.base import Running
from iscsi_worker.view import Held, View, parse
from sanderling.coordination.base import Entry, Listing
from sanderling.model.disks import Access, Disk, Path
from sanderling.model.exports import (
    UNKNOWN_CLIENT,
    Connection,
    Epoch,
    Export,
    ExportId,
    ExportPhase,
    Front,
    Gateway,
    Prepared,
    Store,
)
from tests.unit.views import view_of

MINE, OTHER = "session-a", "session-b"
DISK = Disk(
    id="d1",
    name="one",
    iqn="iqn.2026-11.io.sanderling:one",
    size_bytes=512,
    started=True,
    revision=2,
    paths=(Path(index=1, address="10.0.0.5", prefix_len=24, interface="eth0", subnet="s"),),
)
E = ExportId("d1", 0)
SERVING = Export(generation=1, counter=3, node="a", client="c1", phase=ExportPhase.SERVING, revision=2)
RUNS = Running(E, (1, 3), 2, "c1", ("10.0.0.5",), gate_open=True, lease_left_s=4.0)
LOCAL = Local(node="a", consul_session=MINE)


def view(value: Export = SERVING, *, session: str | None = MINE, disk: Disk | None = DISK, gateways: str = "ab") -> View:
    return view_of({"d1": disk} if disk else {}, {E: Held(value, session, 7)}, {name: Gateway(name=name) for name in gateways})


def decided(seen: View, local: Local) -> list[object]:
    return list(decide(seen, local, free_placed(seen, {})))


def test_what_serves_as_it_should_is_left_alone() -> None:
    assert decided(view(), replace(LOCAL, running={E: RUNS})) == []


@pytest.mark.parametrize(
    "running",
    [
        None,
        replace(RUNS, gate_open=False),
        replace(RUNS, client="c0"),
        replace(RUNS, revision=1),
    ],
)
def test_an_own_export_that_does_not_serve_as_described_is_taken_again(running: Running | None) -> None:
    local = replace(LOCAL, running={E: running} if running else {})
    assert decided(view(), local) == [Take(E, DISK, view().exports[E])]


def test_an_own_export_that_does_not_answer_is_taken_again() -> None:
    assert isinstance(decided(view(), replace(LOCAL, running={E: RUNS}, sick={E}))[0], Take)


def test_an_own_export_in_the_middle_of_being_taken_by_a_worker_that_died_goes_on_or_is_taken_again() -> None:
    half = SERVING.model_copy(update={"phase": ExportPhase.TAKING})
    assert isinstance(decided(view(half), replace(LOCAL, running={E: RUNS}))[0], Activate)
    unknown = half.model_copy(update={"client": UNKNOWN_CLIENT})
    assert isinstance(decided(view(unknown), replace(LOCAL, running={E: RUNS}))[0], Take)


@pytest.mark.rows("IS-7", "W-IS-5")
def test_an_own_export_that_could_not_be_taken_again_is_left_to_others() -> None:
    assert decided(view(), replace(LOCAL, refused={E})) == [GiveUp(E, view().exports[E])]


@pytest.mark.rows("IS-7")
def test_a_disk_that_was_stopped_is_given_up() -> None:
    stopped = DISK.model_copy(update={"started": False})
    assert decided(view(disk=stopped), replace(LOCAL, running={E: RUNS})) == [GiveUp(E, view().exports[E])]


def test_a_withdrawing_node_gives_up_what_it_holds_and_takes_nothing() -> None:
    assert isinstance(decided(view(), replace(LOCAL, running={E: RUNS}, withdrawing=True))[0], GiveUp)
    free = SERVING.model_copy(update={"client": ""})
    assert decided(view(free, session=None, gateways="a"), replace(LOCAL, withdrawing=True)) == []


def test_a_command_to_give_up_counts_for_its_epoch_only() -> None:
    local = replace(LOCAL, running={E: RUNS})
    assert isinstance(decided(view(), replace(local, unwanted={E: Epoch(1, 3)}))[0], GiveUp)
    assert decided(view(), replace(local, unwanted={E: Epoch(1, 2)})) == []


@pytest.mark.rows("W-PA-21")
def test_a_description_or_a_key_that_is_gone_does_not_end_service() -> None:
    running = replace(LOCAL, running={E: RUNS})
    assert decided(view(disk=None), running) == []
    assert decided(View(), running) == []


@pytest.mark.rows("IS-3", "IS-7")
def test_what_runs_here_but_is_anothers_is_dropped() -> None:
    assert decided(view(session=OTHER), replace(LOCAL, running={E: RUNS})) == [Drop(E)]


def test_a_free_export_that_still_names_our_client_is_adopted() -> None:
    held = view(session=None).exports[E]
    assert decided(view(session=None), replace(LOCAL, running={E: RUNS})) == [Adopt(E, held, RUNS, DISK)]


def test_a_free_export_whose_client_is_unknown_is_adopted_only_with_its_description() -> None:
    unknown = SERVING.model_copy(update={"client": UNKNOWN_CLIENT})
    running = replace(LOCAL, running={E: RUNS})
    assert isinstance(decided(view(unknown, session=None), running)[0], Adopt)
    assert decided(view(unknown, session=None, disk=None), running) == []


def test_a_free_export_that_another_client_served_since_is_dropped() -> None:
    since = SERVING.model_copy(update={"client": "c9"})
    assert decided(view(since, session=None), replace(LOCAL, running={E: RUNS})) == [Drop(E)]


@pytest.mark.rows("IS-7")
def test_a_free_export_is_taken_by_exactly_the_node_it_is_placed_on() -> None:
    free = view(session=None)
    takers = [node for node in "ab" if decided(free, Local(node=node, consul_session=f"s-{node}"))]
    assert takers == [free_placed(free, {})[E]]


def test_a_command_to_take_a_free_export_overrides_placement_for_its_epoch_only() -> None:
    free = view(session=None)
    loser = "a" if free_placed(free, {})[E] == "b" else "b"
    local = Local(node=loser, consul_session="s")
    assert isinstance(decided(free, replace(local, wanted={E: Epoch(1, 3)}))[0], Take)
    assert decided(free, replace(local, wanted={E: Epoch(1, 9)})) == []


def test_a_node_without_its_gateway_key_takes_nothing() -> None:
    assert decided(view(session=None, gateways="a"), replace(LOCAL, member=False)) == []


def test_an_export_with_an_action_under_way_is_left_alone() -> None:
    assert decided(view(), replace(LOCAL, busy={E})) == []


@pytest.mark.rows("W-PA-13")
def test_an_export_left_free_for_the_grace_period_goes_to_the_next_choice() -> None:
    free = view(session=None)
    first = free_placed(free, {})[E]
    waiting = wait_on({}, {E: first}, now=10.0, grace_s=2.0)
    assert wait_on(waiting, {E: first}, now=11.0, grace_s=2.0) == {E: Waiting(10.0)}
    later = wait_on(waiting, {E: first}, now=12.0, grace_s=2.0)
    assert later == {E: Waiting(12.0, frozenset({first}))}
    assert free_placed(free, {E: later[E].passed_over})[E] != first


def test_siblings_of_a_shared_disk_are_not_fenced_by_each_other() -> None:
    one, two = ExportId("d1", 1), ExportId("d1", 2)
    paths = tuple(DISK.paths[0].model_copy(update={"index": index}) for index in (1, 2))
    seen = view_of(
        {"d1": DISK.model_copy(update={"access": Access.SHARED, "paths": paths})},
        {one: Held(SERVING, MINE, 1), two: Held(SERVING.model_copy(update={"client": "c2"}), None, 1)},
    )
    assert seen.siblings_clients(two) == {"c1"}
    assert seen.siblings_clients(one) == frozenset()


def test_a_key_that_cannot_be_read_is_left_out_and_the_rest_is_seen() -> None:
    seen = parse(
        Listing(
            (
                Entry("disks/d1", DISK.model_dump_json().encode(), 1),
                Entry("disks/d2", b"{", 1),
                Entry("exports/d1/0", SERVING.model_dump_json().encode(), 5, MINE),
                Entry("exports/d1/x", SERVING.model_dump_json().encode(), 5, MINE),
                Entry("nodes/a", Gateway(name="a").model_dump_json().encode(), 1, MINE),
                Entry("nodes/b", Gateway(name="b").model_dump_json().encode(), 1, None),
                Entry("leaders/service", b"anything", 1),
            ),
            9,
        )
    )
    assert (set(seen.disks), set(seen.exports), set(seen.gateways)) == ({"d1"}, {E}, {"a"})
    assert (set(seen.held_by(MINE)), seen.loads) == ({E}, {"a": 1})


def test_an_export_key_that_no_path_of_the_disk_belongs_to_is_taken_by_nobody() -> None:
    stray = ExportId("d1", 7)
    seen = view_of({"d1": DISK}, {stray: Held(SERVING.model_copy(update={"client": ""}), None, 7)}, {"a": Gateway(name="a")})
    assert decided(seen, replace(LOCAL, wanted={stray: Epoch(1, 3)})) == []


@pytest.mark.rows("W-IS-5")
def test_a_key_held_for_a_disk_that_is_gone_is_given_back_when_nothing_runs() -> None:
    seen = view(disk=None)
    assert decided(seen, LOCAL) == [GiveUp(E, seen.exports[E])]


def test_who_is_connected_is_published_when_it_has_changed() -> None:
    now = (Connection("iqn.host", "10.0.0.9", 4000, "10.0.0.5"),)
    local = replace(LOCAL, running={E: RUNS}, connections={E: now})
    assert decided(view(), local) == [Publish(E, view().exports[E], now)]
    same = view(SERVING.model_copy(update={"connections": now}))
    assert decided(same, local) == []


def test_siblings_whose_clients_are_unknown_are_taken_in_turn_so_that_none_fences_another() -> None:
    one, two = ExportId("d1", 1), ExportId("d1", 2)
    paths = tuple(DISK.paths[0].model_copy(update={"index": index}) for index in (1, 2))
    shared = DISK.model_copy(update={"access": Access.SHARED, "paths": paths})
    unknown = SERVING.model_copy(update={"client": UNKNOWN_CLIENT})

    def seen(first: Held) -> View:
        return view_of({"d1": shared}, {one: first, two: Held(unknown, None, 1)}, {"a": Gateway(name="a")})

    assert [action.export for action in decide(seen(Held(unknown, None, 1)), LOCAL, {one: "a", two: "a"})] == [one]
    assert decide(seen(Held(unknown, OTHER, 1)), LOCAL, {two: "a"}) == []
    assert [action.export for action in decide(seen(Held(SERVING, OTHER, 1)), LOCAL, {two: "a"})] == [two]


CUT = replace(LOCAL, cut_off=["eth0"])
NEAR = Gateway(name="b", interfaces=("eth0",))


def beside(other: Gateway, seen: View) -> View:
    """The view with a second gateway that says of itself what is given, and this one as it is published while it is cut off."""
    here = Gateway(name="a", interfaces=("eth0",), front=Front(cut_off=("eth0",)))
    return view_of(seen.disks, seen.exports, {"a": here, "b": other})


def test_what_serves_where_no_initiator_can_reach_it_is_given_up_while_somebody_else_can_serve() -> None:
    seen = beside(NEAR, view())
    assert decided(seen, replace(CUT, running={E: RUNS})) == [GiveUp(E, seen.exports[E])]
    assert decided(seen, CUT) == [GiveUp(E, seen.exports[E])], "it is not started again first"
    assert (
        decided(beside(NEAR.model_copy(update={"front": Front(cut_off=("eth0",))}), view()), replace(CUT, running={E: RUNS}))
        == []
    )


def test_a_node_that_is_cut_off_takes_nothing_and_makes_nothing_ready() -> None:
    free = beside(NEAR, view(Export(generation=1), session=None))
    busy = {ExportId("d2", 0): Held(SERVING.model_copy(update={"node": "b"}), OTHER, 1)}
    free = view_of(free.disks, dict(free.exports) | busy, free.gateways)  # so that the fewest exports are here
    assert free_placed(free, {}) == {E: "b"}
    asked = replace(CUT, wanted={E: free.exports[E].export.epoch})
    assert list(decide(free, asked, {E: "a"})) == []
    theirs = beside(NEAR, view(session=OTHER))
    assert decided(theirs, replace(CUT, wanted={E: theirs.exports[E].export.epoch})) == []


LOST = replace(LOCAL, store=Store(cut_off=True))
ANSWERED = NEAR.model_copy(update={"store": Store(answers=True)})


def without_store(other: Gateway, seen: View) -> View:
    """The view with a second gateway, and this one as it is published while the image store answers others only."""
    here = Gateway(name="a", interfaces=("eth0",), store=LOST.store)
    return view_of(seen.disks, seen.exports, {"a": here, "b": other})


def test_what_serves_without_an_image_store_is_given_up_while_somebody_else_can_serve() -> None:
    seen = without_store(ANSWERED, view())
    assert decided(seen, replace(LOST, running={E: RUNS})) == [GiveUp(E, seen.exports[E])]
    assert decided(seen, LOST) == [GiveUp(E, seen.exports[E])], "it is not started again first"
    handing = replace(LOST, running={E: RUNS}, handing={E: Handing(SERVING.epoch, "b", "o1")})
    assert decided(seen, handing) == [GiveUp(E, seen.exports[E])], "it could not drain"
    half = SERVING.model_copy(update={"phase": ExportPhase.TAKING})
    handed = without_store(ANSWERED, view(half))
    assert decided(handed, replace(LOST, running={E: replace(RUNS, gate_open=False)})) == [GiveUp(E, handed.exports[E])]
    for no_better in (
        NEAR,
        ANSWERED.model_copy(update={"refused": {str(E): "why"}}),
        ANSWERED.model_copy(update={"store": LOST.store}),
    ):
        assert decided(without_store(no_better, view()), replace(LOST, running={E: RUNS})) == [], no_better


def test_a_node_without_an_image_store_takes_nothing_and_makes_nothing_ready() -> None:
    free = without_store(ANSWERED, view(Export(generation=1), session=None))
    assert free_placed(free, {}) == {E: "b"}
    asked = replace(LOST, wanted={E: free.exports[E].export.epoch})
    assert list(decide(free, asked, {E: "a"})) == []
    alone = view(Export(generation=1), session=None, gateways="a")
    assert list(decide(alone, LOST, {E: "a"})) == [], "whoever takes must fence with it"
    theirs = without_store(ANSWERED, view(session=OTHER))
    assert decided(theirs, replace(LOST, wanted={E: theirs.exports[E].export.epoch})) == []


def test_what_stands_ready_on_a_node_without_an_image_store_is_dropped() -> None:
    seen = without_store(ANSWERED, view(session=OTHER))
    ready = replace(RUNS, epoch=SERVING.epoch.following, gate_open=False)
    local = replace(LOST, running={E: ready}, wanted={E: SERVING.epoch})
    assert decided(seen, replace(local, store=Store(answers=True))) == []
    assert decided(seen, local) == [Drop(E)]
    assert decided(without_store(NEAR, view(session=OTHER)), local) == [Drop(E)], "whoever else could serve it"


def test_what_runs_on_a_node_without_an_image_store_is_not_adopted_while_others_can_fence_and_take_it() -> None:
    free = without_store(ANSWERED, view(session=None))
    assert decided(free, replace(LOST, running={E: RUNS})) == [Drop(E)]
    assert free_placed(free, {}) == {E: "b"}
    alone = view(session=None, gateways="a")
    assert isinstance(decided(alone, replace(LOST, running={E: RUNS}))[0], Adopt)


def test_a_view_takes_what_is_unchanged_from_the_one_before_and_nothing_else() -> None:
    def entry(disk_id: str, node: str, *, index: int = 5, session: str | None = "s") -> Entry:
        return Entry(f"exports/{disk_id}/0", Export(generation=1, node=node).model_dump_json().encode(), index, session)

    before = parse(Listing((entry("a", "n1"), entry("b", "n1"), entry("c", "n1"), entry("d", "n1")), 5))
    after = parse(Listing((entry("a", "n1"), entry("b", "n2"), entry("c", "n1", session=None)), 6), before)
    a, b, c, d = (ExportId(disk_id, 0) for disk_id in "abcd")
    assert after.exports[a].export is before.exports[a].export
    assert after.exports[b].export.node == "n2", "an index alone does not tell: it goes back when the store was made anew"
    assert after.exports[c].consul_session is None
    assert d not in after.exports


def test_who_stands_ready_for_a_sibling_is_not_fenced_either() -> None:
    one, two = ExportId("d1", 1), ExportId("d1", 2)
    ready = {str(one): Prepared(generation=1, counter=3, client="p1"), "d2/0": Prepared(generation=1, counter=1, client="p2")}
    gateways = {"b": Gateway(name="b", prepared=ready)}
    seen = view_of({}, {one: Held(SERVING, MINE, 1), two: Held(SERVING, None, 1)}, gateways)
    assert seen.siblings_clients(two) == {"c1", "p1"}
    assert seen.siblings_clients(one) == frozenset()


def test_an_export_of_which_nothing_is_known_is_kept_while_it_serves_and_given_up_otherwise() -> None:
    unknown = replace(view(), disks={})
    assert decided(unknown, replace(LOCAL, running={E: RUNS})) == []
    closed = replace(LOCAL, running={E: replace(RUNS, gate_open=False)})
    assert decided(unknown, closed) == [GiveUp(E, unknown.exports[E])]


DISKS = ("d1", "d2")
EXPORTS = [ExportId(disk_id, index) for disk_id in DISKS for index in (1, 2)]


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Entry]:
    """Keys as gateways and a conductor may have left them: of two disks with two paths each, and of three gateways."""
    found = {}
    for name, session in (("a", MINE), ("b", OTHER), ("c", "session-c")):
        ready = Prepared(generation=1, counter=3, client="c2")
        prepared = {str(export): ready for export in EXPORTS if draw(st.booleans())} if name != "a" else {}
        front = Front(cut_off=draw(st.sampled_from([(), ("eth0",)])))
        value = Gateway(name=name, interfaces=("eth0",), prepared=prepared, front=front)
        found[f"nodes/{name}"] = Entry(f"nodes/{name}", value.model_dump_json().encode(), 1, session)
    for disk_id in DISKS:
        if draw(st.integers(0, 9)):
            found[f"disks/{disk_id}"] = draw(disk_entries(disk_id))
    for export in EXPORTS:
        if draw(st.integers(0, 9)):
            found[export.key] = draw(export_entries(export))
    return found


@st.composite
def disk_entries(draw: st.DrawFn, disk_id: str) -> Entry:
    paths = tuple(Path(index=n, address=f"10.0.{n}.5", prefix_len=24, interface="eth0", subnet="s") for n in (1, 2))
    some = {"id": disk_id, "access": Access.SHARED, "paths": paths}
    drawn = {"started": draw(st.booleans()), "revision": draw(st.integers(1, 2))}
    return Entry(f"disks/{disk_id}", DISK.model_copy(update=some | drawn).model_dump_json().encode(), draw(st.integers(2, 99)))


@st.composite
def export_entries(draw: st.DrawFn, export: ExportId) -> Entry:
    session = draw(st.sampled_from([MINE, MINE, MINE, OTHER, OTHER, OTHER, None]))  # one that is free names none, mostly
    value = Export(
        generation=1,
        counter=3,
        node="a" if session == MINE else "b",
        client=draw(st.sampled_from(["c1", "c2", UNKNOWN_CLIENT])),
        phase=draw(st.sampled_from([ExportPhase.SERVING, ExportPhase.TAKING, ExportPhase.LEFT])),
        revision=draw(st.integers(1, 2)),
    )
    return Entry(export.key, value.model_dump_json().encode(), draw(st.integers(2, 99)), session)


@st.composite
def locals_of(draw: st.DrawFn) -> Local:
    some = st.sets(st.sampled_from(EXPORTS))
    runs = {export: replace(RUNS, export=export, gate_open=draw(st.booleans())) for export in draw(some)}
    return Local(
        node="a",
        consul_session=MINE,
        running=runs,
        busy=draw(some),
        sick=draw(some),
        refused=draw(some),
        wanted=dict.fromkeys(draw(some), Epoch(1, 3)),
        unwanted=dict.fromkeys(draw(some), Epoch(1, 3)),
        handing=dict.fromkeys(draw(some), Handing(Epoch(1, 3), "b", "o")),
        cut_off=draw(st.sampled_from([(), ("eth0",)])),
        withdrawing=draw(st.booleans()),
    )


@given(before=entries(), local=locals_of(), data=st.data())
def test_a_key_that_changed_changes_what_is_done_about_the_exports_it_names_and_no_other(
    before: dict[str, Entry], local: Local, data: st.DataObject
) -> None:
    export = data.draw(st.sampled_from(EXPORTS))
    changed = data.draw(st.one_of(export_entries(export), disk_entries(export.disk_id)))
    old = parse(Listing(tuple(before.values()), 1))
    new = parse(Listing(tuple((before | {changed.key: changed}).values()), 2), old)
    names = named(new, [changed.key])
    if names is None:
        return
    was = {action.export: action for action in decide(old, local, free_placed(old, {}))}
    now = {action.export: action for action in decide(new, local, free_placed(new, {}))}
    others = set(EXPORTS) - set(names)
    assert {one: was.get(one) for one in others} == {one: now.get(one) for one in others}
    assert list(decide(new, local, {}, names)) == [now[one] for one in sorted(names) if one in now]


@pytest.mark.parametrize("key", ["nodes/b", "marks", "disks/unknown", "exports/d1/00", "changes/conductor/x"])
def test_a_key_that_may_concern_any_export_names_none(key: str) -> None:
    assert named(view(), [E.key, "disks/d1"]) == [E]
    assert named(view(), [E.key, key]) is None


def test_while_an_export_waits_to_be_taken_a_change_may_concern_it_whatever_it_is() -> None:
    two = ExportId("d2", 0)
    both = {E: Held(SERVING, MINE, 7), two: Held(SERVING, None, 7)}
    disks = {"d1": DISK, "d2": DISK.model_copy(update={"id": "d2"})}
    assert named(view_of(disks, both), [E.key]) is None
    disks["d2"] = disks["d2"].model_copy(update={"started": False})
    assert named(view_of(disks, both), [E.key]) == [E]
