"""The life cycles of an operation, its steps and a disk: every pair of state and event is either a move or refused by name."""

from enum import StrEnum
from typing import Any

import pytest

from sanderling.errors import TransitionRefused
from sanderling.model.disks import DISKS, DiskEvent, DiskState
from sanderling.model.machine import Machine
from sanderling.model.moves import MOVES, MoveEvent, MoveState
from sanderling.model.operations import OPERATIONS, STEPS, OperationEvent, OperationState, StepEvent, StepState

TABLES: list[tuple[Machine[Any, Any], type[StrEnum], type[StrEnum]]] = [
    (OPERATIONS, OperationState, OperationEvent),
    (STEPS, StepState, StepEvent),
    (DISKS, DiskState, DiskEvent),
    (MOVES, MoveState, MoveEvent),
]
PAIRS = [(machine, state, event) for machine, states, events in TABLES for state in states for event in events]


@pytest.mark.rows("PA-9")
@pytest.mark.parametrize(("machine", "state", "event"), PAIRS, ids=lambda value: str(getattr(value, "noun", value)))
def test_every_pair_is_a_move_of_the_table_or_refused_by_name(machine: Machine[Any, Any], state: Any, event: Any) -> None:
    moves = {(before, what): after for before, what, after in machine.table}
    if (state, event) in moves:
        assert machine.next(state, event) == moves[state, event]
        return
    with pytest.raises(TransitionRefused) as refused:
        machine.next(state, event)
    assert refused.value.context["allowed"] == sorted(what for before, what in moves if before == state)


@pytest.mark.rows("W-PA-12")
@pytest.mark.parametrize("state", [OperationState(rest) for rest in OPERATIONS.rest])
def test_an_operation_that_has_ended_never_moves_again(state: OperationState) -> None:
    assert not [event for event in OperationEvent if OPERATIONS.allows(state, event)]


@pytest.mark.parametrize("state", list(OperationState))
def test_every_operation_can_reach_an_end(state: OperationState) -> None:
    reached, frontier = {state}, [state]
    while frontier:
        here = frontier.pop()
        for before, _, after in OPERATIONS.table:
            if before == here and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached & OPERATIONS.rest
