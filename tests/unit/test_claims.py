"""What a node does about others that answer for the addresses it serves."""

from collections.abc import Callable, Collection
from typing import Any

import pytest

from iscsi_worker.addresses.memory import Memory
from iscsi_worker.claims import ASKED_MOST, Claims
from iscsi_worker.view import Held, View
from sanderling.clock import ManualClock
from sanderling.model.disks import Disk, Path
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from tests.unit.views import view_of

MAC = "02:00:00:00:00:99"
ADDRESS = "10.0.0.1"


class Rival:
    """Answers for some addresses; what it was asked is kept. `between` happens after the first answer."""

    def __init__(self) -> None:
        self.claims: set[str] = set()
        self.asked: list[set[str]] = []
        self.between: Callable[[], object] = lambda: None

    def answers(self, interface: str, addresses: Collection[str]) -> dict[str, str]:
        assert interface == "eth0"
        self.asked.append(set(addresses))
        answers = dict.fromkeys(self.claims & set(addresses), MAC)
        self.between()
        return answers


class Node:
    def __init__(self) -> None:
        self.rival, self.addresses = Rival(), Memory(ManualClock())
        self.certain = True
        self.view: View | None = None
        self.claims = Claims(
            "here",
            self.rival,
            self.addresses,
            view=lambda: self.view,
            certain=lambda: self.certain,
            clock=ManualClock(),
        )

    def lend(self, *addresses: str) -> None:
        for address in addresses:
            self.addresses.add(address, prefix_len=24, interface="eth0", lifetime_s=3600)

    def turn(self, view: View) -> None:
        self.view = view
        self.claims.turn()


def view(
    *addresses: str, node: str = "here", phase: ExportPhase = ExportPhase.SERVING, locked: bool = True, counter: int = 1
) -> View:
    paths = tuple(
        Path(index=number, address=address, prefix_len=24, interface="eth0", subnet="s")
        for number, address in enumerate(addresses, start=1)
    )
    disk = Disk(id="d1", name="one", iqn="iqn.x:one", size_bytes=512, started=True, paths=paths)
    held = Held(Export(generation=1, counter=counter, node=node, phase=phase), "session" if locked else None, 1)
    return view_of({"d1": disk}, {ExportId("d1", 0): held}, {"here": Gateway(name="here")})


def test_a_claim_is_known_and_answered_at_once_and_forgotten_when_it_ends() -> None:
    node = Node()
    node.lend(ADDRESS)
    node.turn(view(ADDRESS))
    assert (node.claims.claimed, node.addresses.announced[ADDRESS]) == ({}, 0)
    node.rival.claims = {ADDRESS}
    node.turn(view(ADDRESS))
    assert (node.claims.claimed, node.addresses.announced[ADDRESS]) == ({ADDRESS: MAC}, 1)
    node.rival.claims = set()
    node.turn(view(ADDRESS))
    assert (node.claims.claimed, node.addresses.announced[ADDRESS]) == ({}, 1)


@pytest.mark.parametrize("becomes", [{"node": "there", "counter": 2}, {"counter": 2}, {"locked": False}], ids=str)
def test_an_export_that_is_moving_is_claimed_by_nobody(becomes: dict[str, Any]) -> None:
    node = Node()
    node.lend(ADDRESS)
    node.rival.claims = {ADDRESS}
    node.rival.between = lambda: setattr(node, "view", view(ADDRESS, **becomes))
    node.turn(view(ADDRESS))
    assert (node.claims.claimed, node.addresses.announced[ADDRESS]) == ({}, 0)


def test_a_node_that_answers_only_until_it_has_ended_claims_nothing() -> None:
    node = Node()
    node.lend(ADDRESS)
    node.rival.claims = {ADDRESS}
    node.rival.between = node.rival.claims.clear
    node.turn(view(ADDRESS))
    assert (node.claims.claimed, node.addresses.announced[ADDRESS]) == ({}, 0)


def test_only_what_is_served_here_is_asked_about_and_spoken_for() -> None:
    node = Node()
    node.lend(ADDRESS)
    node.rival.claims = {ADDRESS}
    for _ in range(3):
        node.turn(view(ADDRESS, node="elsewhere"))
        node.turn(view(ADDRESS, phase=ExportPhase.GIVING_UP))
        node.turn(view(ADDRESS, locked=False))
        node.turn(view("fd00::1"))
    assert node.rival.asked == []
    assert node.addresses.announced[ADDRESS] == 0


def test_a_node_that_may_have_been_replaced_does_not_speak_up_against_its_heir() -> None:
    node = Node()
    node.lend(ADDRESS)
    node.rival.claims, node.certain = {ADDRESS}, False
    for _ in range(3):
        node.turn(view(ADDRESS))
    assert (node.claims.claimed, node.addresses.announced[ADDRESS]) == ({ADDRESS: MAC}, 0)


def test_an_address_that_has_just_gone_is_no_failure() -> None:
    node = Node()
    node.rival.claims = {ADDRESS}
    for _ in range(3):
        node.turn(view(ADDRESS))
    assert node.addresses.announced[ADDRESS] == 0


def test_of_many_addresses_some_are_asked_about_each_turn_and_all_in_the_end() -> None:
    node, many = Node(), [f"10.0.1.{number}" for number in range(1, 61)]
    for _ in range(4):
        node.turn(view(*many))
    assert {len(asked) for asked in node.rival.asked} == {ASKED_MOST}
    assert set().union(*node.rival.asked) == set(many)
