"""G-1: a plan does what it showed while what it was made from holds, and is refused with the difference otherwise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as st

from api import situations
from sanderling.model.balance import Layout
from sanderling.model.exports import ExportId
from sanderling.records import plans
from tests.unit.api_app import running
from tests.unit.api_site import Site

GATEWAYS = ("node-a", "node-b", "node-c")
EXPORTS = (("db", 0), ("log", 0), ("web", 0), ("big", 1), ("big", 2))
DISKS = ("db", "log", "web", "big")


@dataclass(frozen=True)
class State:
    """Who serves which of EXPORTS, which gateways are drained, and where disks are pinned."""

    owners: tuple[str | None, ...]
    drained: frozenset[str]
    pins: Mapping[str, str]


STATES = st.builds(
    State,
    owners=st.tuples(*[st.sampled_from([*GATEWAYS, None]) for _ in EXPORTS]),
    drained=st.frozensets(st.sampled_from(GATEWAYS), max_size=1),
    pins=st.dictionaries(st.sampled_from(DISKS), st.sampled_from(GATEWAYS), max_size=2),
)


@st.composite
def changed(draw: st.DrawFn, state: State) -> State:
    """The state, or one that differs from it in a fact or two."""
    owners = list(state.owners)
    for number in draw(st.lists(st.integers(0, len(EXPORTS) - 1), max_size=2)):
        owners[number] = draw(st.sampled_from([*GATEWAYS, None]))
    state = replace(state, owners=tuple(owners))
    other = draw(STATES)
    parts = draw(st.sets(st.sampled_from(["drained", "pins"]), max_size=1))
    return replace(state, **{part: getattr(other, part) for part in parts})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("api")) as api:
        built = Site(api, *GATEWAYS)
        for name in ("db", "log", "web"):
            built.disk(name, "node-a")
        built.disk("big", "node-a", "node-b", access="shared")
        yield built


def arrange(site: Site, state: State) -> None:
    for (disk, index), owner in zip(EXPORTS, state.owners, strict=True):
        site.serve(disk, owner, index=index)
    for gateway in GATEWAYS:
        site.drain(gateway, is_drained=gateway in state.drained)
    for disk in DISKS:
        site.mark(disk, pin=state.pins.get(disk))


def differences(site: Site, was: State, now: State) -> set[tuple[str, str]]:
    found = {
        ("export", f"{site.disk_ids[disk]}/{index}")
        for (disk, index), before, after in zip(EXPORTS, was.owners, now.owners, strict=True)
        if before != after
    }
    found |= {("drain", gateway) for gateway in was.drained ^ now.drained}
    return found | {("pin", site.disk_ids[disk]) for disk in DISKS if was.pins.get(disk) != now.pins.get(disk)}


@pytest.mark.rows("W-PA-19", "W-PA-24")
@trying(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_plan_is_applied_as_it_was_shown_or_refused_by_exactly_what_has_changed(site: Site, data: st.DataObject) -> None:
    was = data.draw(STATES)
    arrange(site, was)
    plan = site.post("/v1/assignments?dry_run=true", {"planner": "average"}, status=200)
    now = data.draw(changed(was))
    arrange(site, now)
    answer = site.api.client.post("/v1/assignments", json={"plan_id": plan["plan_id"]})
    expected = differences(site, was, now)
    if expected:
        assert answer.status_code == 409
        told = answer.json()["changes"]
        assert {(one["what"], one.get("export") or one.get("gateway") or one["disk_id"]) for one in told} == expected
        arrange(site, was)
        answer = site.api.client.post("/v1/assignments", json={"plan_id": plan["plan_id"]})
    if not plan["moves"]:
        assert (answer.status_code, answer.json()["moves"]) == (200, [])
        return
    assert answer.status_code == 202
    moves = [(m.position, m.disk_id, m.index, m.source or None, m.destination) for m in site.moves(answer.json()["id"])]
    assert moves == [(m["position"], m["disk_id"], m["index"], m["from"], m["to"]) for m in plan["moves"]]
    site.post(f"/v1/assignments/{answer.json()['id']}/cancel")


EXPORT_IDS = st.builds(ExportId, st.sampled_from(["one", "two", "three"]), st.integers(0, 3))
NAMES = st.sampled_from(GATEWAYS)
LAYOUTS = st.builds(
    Layout,
    owners=st.dictionaries(EXPORT_IDS, st.none() | NAMES, max_size=8),
    gateways=st.frozensets(NAMES),
    drained=st.frozensets(NAMES),
    pins=st.dictionaries(st.sampled_from(["one", "two"]), NAMES),
    avoid=st.dictionaries(st.sampled_from(["one", "two"]), st.frozensets(NAMES, min_size=1)),
)


@given(was=LAYOUTS, now=LAYOUTS)
def test_two_layouts_have_no_difference_just_when_they_are_the_same(was: Layout, now: Layout) -> None:
    assert (situations.changes(was, now) == []) == (was == now)
    assert situations.changes(was, was) == []


@trying(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS)
def test_a_layout_is_read_back_as_it_was_kept(site: Site, layout: Layout) -> None:
    now = site.api.clock.wall()
    with site.api.records.begin() as session:
        plan_id = plans.insert(session, request={}, layout=layout, moves=(), now=now, keep_s=60)
        session.flush()
        session.expire_all()
        assert plans.get(session, plan_id, now=now, keep_s=60).layout == layout
