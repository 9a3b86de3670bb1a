"""When paths are spread anew by themselves: not before things are steady, not without end, and by one conductor at a time."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conductor import balancer
from conductor.balancer import Balancer
from sanderling.errors import Busy
from sanderling.model import balance
from sanderling.model.balance import Layout, PlannedMove
from sanderling.model.disks import Disk, DiskState
from sanderling.model.exports import ExportId
from sanderling.model.moves import Move, MoveState
from sanderling.model.operations import OperationState
from sanderling.records import assignments, operations
from sanderling.records import moves as recorded
from sanderling.settings import Conductor, Settings
from tests.fleet import Fleet
from tests.house import SETTINGS, House

OWN = Conductor(balance_cool_down_s=30, balance_moves_max=5)


def layout(*owners: str | None, gateways: Iterable[str] = ("g1", "g2"), **more: Any) -> Layout:
    """Each disk with one export, served by these in turn."""
    return Layout({ExportId(f"d{n}", 0): owner for n, owner in enumerate(owners)}, frozenset(gateways), **more)


def decided(
    seen: Layout, *, lately: Sequence[Move] = (), busy: Iterable[str] = (), since: float = 0.0, now: float = 30.0
) -> Sequence[PlannedMove]:
    steady = replace(balancer.watch(None, seen, now=since), since=since)
    return balancer.decide(seen, steady, lately, busy_disks=frozenset(busy), now=now, own=OWN)


def lately(number: int, state: MoveState = MoveState.SUCCEEDED) -> Move:
    return Move(
        position=number, disk_id=f"d{number}", disk_name="", index=0, addresses=(), source="g1", destination="g2", state=state
    )


UNEVEN = layout("g1", "g1", "g1", "g1")


def test_paths_are_spread_once_things_have_been_steady() -> None:
    assert decided(UNEVEN, now=29.9) == ()
    assert len(decided(UNEVEN, now=30.0)) == 2


def test_what_is_even_is_left_alone() -> None:
    assert not decided(layout("g1", "g2", "g1"))


@pytest.mark.parametrize(
    "after",
    [
        layout("g1", gateways=("g1",)),
        layout("g1", gateways=("g1", "g2", "g3")),
        layout("g1", drained=frozenset({"g2"})),
        layout("g1", pins={"d0": "g1"}),
        layout("g1", avoid={"d0": frozenset({"g2"})}),
    ],
)
def test_a_gateway_or_mark_that_comes_or_goes_begins_the_wait_anew(after: Layout) -> None:
    before = balancer.watch(None, layout("g1"), now=0.0)
    assert balancer.watch(before, layout("g2"), now=10.0) == before
    assert balancer.watch(before, after, now=10.0).since == 10.0


def test_moves_are_counted_over_a_span_of_time() -> None:
    uneven = layout(*["g1"] * 40)
    assert len(decided(uneven)) == OWN.balance_moves_max
    assert len(decided(uneven, lately=[lately(40 + n) for n in range(3)])) == OWN.balance_moves_max - 3
    assert decided(uneven, lately=[lately(40 + n) for n in range(9)]) == ()


def test_what_nobody_serves_or_has_an_operation_is_left_to_others() -> None:
    moved = decided(layout("g1", "g1", None, "g1", "g1"), busy=["d0", "d1"])
    assert {move.export.disk_id for move in moved} <= {"d3", "d4"}
    assert moved


@pytest.mark.parametrize("end", [MoveState.FAILED, MoveState.CANCELLED])
def test_a_move_that_failed_or_was_cancelled_lately_is_not_tried_again(end: MoveState) -> None:
    moved = decided(UNEVEN, lately=[lately(n, end) for n in range(3)])
    assert [move.export.disk_id for move in moved] == ["d3"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["g1", "g2", "g3", None]), max_size=30), st.sets(st.sampled_from(["g1", "g2", "g3"]), min_size=1))
def test_spreading_comes_to_an_end_where_it_is_even(owners: list[str | None], gateways: set[str]) -> None:
    seen = layout(*owners, gateways=gateways)
    for _ in range(len(owners) + 1):
        moves = decided(seen)
        if not moves:
            break
        assert len(moves) <= OWN.balance_moves_max
        seen = balance.after(seen, moves)
    assert not decided(seen)
    counts = Counter(dict.fromkeys(gateways, 0)) + Counter()
    counts.update(owner for owner in seen.owners.values() if owner is not None)
    assert set(counts) <= gateways
    most = [counts[name] for name in gateways]
    assert max(most) - min(most) <= 1


STEADY = replace(SETTINGS, balance_cool_down_s=0.0)


def turning(house: House, *, own: Conductor = STEADY) -> tuple[Balancer, list[str]]:
    woken: list[str] = []
    configured = Settings(conductor=replace(own, move_settle_s=15))
    return Balancer(configured, house.stores, tell=lambda: None, wake=woken.append), woken


@pytest.fixture
def fleet(house: House) -> Fleet:
    return house.fleet("g1", "g2")


def served(house: House, fleet: Fleet, *owners: str) -> list[Disk]:
    made = [house.disk(name=f"vol-{n}", state=DiskState.STARTED) for n in range(len(owners))]
    for disk, owner in zip(made, owners, strict=True):
        fleet.serve(disk, owner)
    return made


@pytest.mark.rows("W-PA-6")
def test_an_uneven_spread_becomes_an_operation_that_mends_it_and_an_even_one_none(house: House, fleet: Fleet) -> None:
    served(house, fleet, "g1", "g1", "g1", "g1")
    turned, woken = turning(house)
    turned.turn()
    (operation_id,) = woken
    with house.records.read() as session:
        operation = operations.get(session, operation_id)
        assert [(move.source, move.destination) for move in recorded.of(session, operation_id)] == [("g1", "g2")] * 2
    assert (operation.requested_by, operation.resource_id) == ("balancer", "assignments")
    turned.turn()
    assert house.drive(operation).state is OperationState.SUCCEEDED
    turned.turn()
    assert woken == [operation_id]


@pytest.mark.rows("W-PA-9")
def test_of_two_conductors_that_balance_at_once_one_does(house: House, fleet: Fleet) -> None:
    served(house, fleet, "g1", "g1")
    (first, asked), (second, refused) = turning(house), turning(house)
    first.turn()
    second.turn()
    assert (len(asked), refused) == (1, [])


def test_an_operation_that_comes_in_between_is_not_disturbed(house: House, fleet: Fleet) -> None:
    disks = served(house, fleet, "g1", "g1")
    turned, woken = turning(house)
    moves = [Move(position=0, disk_id=disks[0].id, disk_name="", index=0, addresses=(), source="g1", destination="g2")]
    with house.records.begin() as session:
        assignments.submit(session, moves=moves, conductor=SETTINGS, requested_by="alice", now=house.records.now())
    turned.turn()
    assert woken == []
    with pytest.raises(Busy), house.records.begin() as session:
        assignments.submit(session, moves=moves, conductor=SETTINGS, requested_by="balancer", now=house.records.now())


def test_the_moves_of_others_are_not_counted_and_ones_own_are(house: House, fleet: Fleet) -> None:
    served(house, fleet, "g1", "g1", "g1", "g1")
    turned, woken = turning(house, own=replace(STEADY, balance_moves_max=1))
    turned.turn()
    with house.records.read() as session:
        operation = operations.get(session, woken[0])
    assert house.drive(operation).state is OperationState.SUCCEEDED
    turned.turn()
    assert len(woken) == 1


def test_it_can_be_turned_off(house: House) -> None:
    turned, _ = turning(house, own=replace(STEADY, balance="off"))
    turned.start()
    turned.stop()
    assert not turned._thread.is_alive()
    assert turned._steady is None
