"""What a worker was told, by threads that do not wait for each other."""

import threading
from collections.abc import Collection
from typing import cast

import pytest

from iscsi_worker.intents import Intents
from iscsi_worker.view import Held, View
from iscsi_worker.watch import Watch
from sanderling.clock import SystemClock
from sanderling.model.exports import Epoch, Export, ExportId
from sanderling.model.operations import Cause
from sanderling.settings import Worker
from tests.unit.views import view_of

E = ExportId("d", 0)
VIEW = view_of({}, {E: Held(Export(generation=1, counter=1), "theirs", 1)})


class Idle:
    """A watch that knows one export."""

    def look(self, *_: str) -> View:
        return VIEW

    def attend(self, key: str, *, for_s: float) -> None:
        pass

    def neglect(self, *, but: Collection[str]) -> None:
        pass


class Watching(Idle):
    """A watch in which a command arrives in the very moment that it is told what to attend to no more."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.command = threading.Thread(daemon=True)

    def attend(self, key: str, *, for_s: float) -> None:
        assert for_s > 0
        self.said.append(key)

    def neglect(self, *, but: Collection[str]) -> None:
        assert not but
        self.command.start()
        self.command.join(0.2)
        self.said.append("neglect")


@pytest.mark.parametrize("command", ["want", "hand_on"])
def test_a_command_that_arrives_while_the_loop_settles_is_attended_to_all_the_same(command: str) -> None:
    watching = Watching()
    intents = Intents(Worker(), cast(Watch, watching), wake=lambda: None, clock=SystemClock())

    def arrive() -> None:
        if command == "want":
            intents.want(E, Epoch(1, 1), cause=Cause())
        else:
            intents.hand_on(E, Epoch(1, 1), destination="b", cause=Cause(operation_id="o"))

    watching.command = threading.Thread(target=arrive, daemon=True)
    intents.settle(VIEW)
    watching.command.join(10)
    assert watching.said == ["neglect", E.key if command == "want" else "nodes/b"]


@pytest.mark.parametrize("command", ["want", "hand_on", "unwant"])
def test_a_command_for_an_epoch_that_the_loop_has_yet_to_see_is_kept_until_that_is_over(command: str) -> None:
    """Others have moved the export and told nobody; the command looked, the loop's view is of before."""
    intents = Intents(Worker(), cast(Watch, Idle()), wake=lambda: None, clock=SystemClock())
    if command == "want":
        intents.want(E, Epoch(1, 1), cause=Cause())
    elif command == "unwant":
        intents.unwant(E, Epoch(1, 1), cause=Cause())
    else:
        intents.hand_on(E, Epoch(1, 1), destination="b", cause=Cause(operation_id="o"))

    def is_kept() -> bool:
        told = intents.told()
        return E in told.wanted or E in told.unwanted or E in told.handing

    for counter, kept in ((0, True), (1, True), (2, False)):
        intents.settle(view_of({}, {E: Held(Export(generation=1, counter=counter), "theirs", 1)}))
        assert is_kept() is kept
