"""A life cycle as a table that is checked when it is imported."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Generic, TypeVar

from sanderling.errors import TransitionRefused

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class Machine(Generic[S, E]):
    """States, events and the moves between them.

    Refuses at import a state that is never reached, a state that is not a rest and has no way out, and a pair given twice.
    """

    def __init__(self, noun: str, *, start: S, rest: Iterable[S], table: Iterable[tuple[S, E, S]]) -> None:
        self.noun, self.start, self.rest = noun, start, frozenset(rest)
        self.table = tuple(table)
        self._next: dict[tuple[S, E], S] = {}
        for state, event, after in self.table:
            assert (state, event) not in self._next, f"{noun}: ({state}, {event}) is given twice"
            self._next[state, event] = after
        states = frozenset(type(start))
        reached = {start} | {after for _, _, after in self.table}
        assert states <= reached, f"{noun}: never reached: {sorted(states - reached)}"
        stuck = states - self.rest - {state for state, _, _ in self.table}
        assert not stuck, f"{noun}: no way out of {sorted(stuck)}"

    def next(self, state: S, event: E) -> S:
        """The state after `event`; `TransitionRefused` names the state, the event and what is allowed."""
        try:
            return self._next[state, event]
        except KeyError:
            allowed = sorted(e for s, e in self._next if s == state)
            raise TransitionRefused(
                f"a {self.noun} that is {state} cannot {event}", state=str(state), event=str(event), allowed=allowed
            ) from None

    def allows(self, state: S, event: E) -> bool:
        return (state, event) in self._next

    def diagram(self) -> str:
        """The table as a Mermaid state diagram, for the documentation."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.start}"]
        lines += [f"    {state} --> {after}: {event}" for state, event, after in self.table]
        ends = [s for s in self.rest if not any(state == s for state, _, _ in self.table)]
        return "\n".join([*lines, *(f"    {s} --> [*]" for s in sorted(ends))])
