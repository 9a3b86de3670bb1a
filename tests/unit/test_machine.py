"""Life cycles: every table walked pair by pair, and a table with a hole refused when it is imported."""

from enum import StrEnum
from typing import Any

import pytest

from sanderling.errors import TransitionRefused
from sanderling.model.disks import DISKS, DiskEvent
from sanderling.model.machine import Machine
from sanderling.model.operations import OPERATIONS, STEPS, OperationEvent, StepEvent

EVENTS: list[tuple[Machine[Any, Any], type[StrEnum]]] = [(DISKS, DiskEvent), (OPERATIONS, OperationEvent), (STEPS, StepEvent)]
PAIRS = [
    pytest.param(machine, state, event, id=f"{machine.noun}-{state}-{event}")
    for machine, events in EVENTS
    for state in type(machine.start)
    for event in events
]


@pytest.mark.parametrize(("machine", "state", "event"), PAIRS)
def test_an_event_moves_as_the_table_says_or_is_refused_by_name(
    machine: Machine[Any, Any], state: StrEnum, event: StrEnum
) -> None:
    wanted = [after for before, on, after in machine.table if (before, on) == (state, event)]
    assert machine.allows(state, event) == bool(wanted)
    if wanted:
        assert machine.next(state, event) == wanted[0]
        return
    with pytest.raises(TransitionRefused) as refused:
        machine.next(state, event)
    assert refused.value.context["state"] == str(state)
    assert refused.value.context["event"] == str(event)
    assert refused.value.context["allowed"] == sorted(on for before, on, _ in machine.table if before == state)


@pytest.mark.parametrize(("machine", "events"), EVENTS, ids=lambda value: getattr(value, "noun", ""))
def test_no_event_is_without_use(machine: Machine[Any, Any], events: type[StrEnum]) -> None:
    assert {on for _, on, _ in machine.table} == set(events)


def test_an_operation_that_has_ended_stays_as_it_ended() -> None:
    for state in OPERATIONS.rest:
        assert not [event for event in OperationEvent if OPERATIONS.allows(state, event)]


class _Light(StrEnum):
    RED = "red"
    GREEN = "green"
    BROKEN = "broken"


class _Change(StrEnum):
    GO = "go"
    HALT = "halt"
    BREAK = "break"


_WHOLE = [
    (_Light.RED, _Change.GO, _Light.GREEN),
    (_Light.GREEN, _Change.HALT, _Light.RED),
    (_Light.GREEN, _Change.BREAK, _Light.BROKEN),
]


def test_a_table_without_a_hole_is_accepted_and_drawn() -> None:
    drawn = Machine("light", start=_Light.RED, rest={_Light.BROKEN}, table=_WHOLE).diagram()
    assert drawn.splitlines() == [
        "stateDiagram-v2",
        "    [*] --> red",
        "    red --> green: go",
        "    green --> red: halt",
        "    green --> broken: break",
        "    broken --> [*]",
    ]


@pytest.mark.parametrize(
    ("rest", "table", "complaint"),
    [
        ({_Light.BROKEN}, _WHOLE[:2], r"light: never reached: .*broken"),
        (set(), _WHOLE, r"light: no way out of .*broken"),
        ({_Light.BROKEN}, [*_WHOLE, (_Light.RED, _Change.GO, _Light.RED)], r"light: \(red, go\) is given twice"),
    ],
    ids=["never reached", "no way out", "given twice"],
)
def test_a_table_with_a_hole_is_refused_at_import(
    rest: set[_Light], table: list[tuple[_Light, _Change, _Light]], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        Machine("light", start=_Light.RED, rest=rest, table=table)
