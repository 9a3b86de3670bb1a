"""The lab's ear for announcements: what it takes for one, and which of them come from a node that is not the owner any more."""

import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from cli.lab.announcements import Announcement, Gate, Late, announced, gates, late
from cli.lab.lab import Lab
from cli.lab.results import Round
from cli.lab.runner import LAST_OF_THE_OLD, check_announcements
from sanderling.settings import Worker

MAC, ADDRESS = bytes.fromhex("02000000000a"), "10.0.0.100"
NODES = {"02:00:00:00:00:0a": "n1", "02:00:00:00:00:0b": "n2"}


def frame(operation: int, *, sender: str = ADDRESS, sought: str = ADDRESS, kind: int = 0x0806) -> bytes:
    head = b"\xff" * 6 + MAC + struct.pack("!HHHBBH", kind, 1, 0x0800, 6, 4, operation)
    return head + MAC + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(sought)


@pytest.mark.parametrize("said", [frame(1), frame(2), frame(2, sought="10.0.0.10"), frame(2) + bytes(18)])
def test_a_gratuitous_request_and_every_answer_announce(said: bytes) -> None:
    assert announced(said, 7.0) == Announcement(7.0, ADDRESS, "02:00:00:00:00:0a")


@pytest.mark.parametrize("said", [frame(1, sought="10.0.0.10"), frame(2, kind=0x0800), frame(2)[:30], b""])
def test_whoever_only_asks_announces_nothing(said: bytes) -> None:
    assert announced(said, 7.0) is None


def heard(at: float, node: str, *, address: str = ADDRESS) -> Announcement:
    return Announcement(at, address, next((mac for mac, name in NODES.items() if name == node), "02:00:00:00:00:ff"))


def opened(at: float, node: str, *, address: str = ADDRESS) -> Gate:
    return Gate(at, address, node)


@pytest.mark.parametrize(
    ("said", "owners"),
    [
        ([heard(0.5, "n1"), heard(1.5, "n1")], [opened(1, "n1")]),
        ([heard(1.5, "n1"), heard(4.9, "n2"), heard(5.1, "n2")], [opened(1, "n1"), opened(5, "n2")]),
        ([heard(1.5, "n1"), heard(5.1, "n2"), heard(8.9, "n1"), heard(9.5, "n1")], [*map(opened, (1, 5, 9), ("n1", "n2", "n1"))]),
        ([heard(9, "a stranger")], [opened(1, "n1")]),
        ([heard(9, "n1", address="10.0.0.101")], [opened(1, "n2")]),
        ([heard(9, "n1")], []),
        ([heard(9, "n1")], [opened(1, "n1"), opened(2, "n1")]),
    ],
    ids=[
        "before its gate",
        "one after another",
        "there and back",
        "a stranger",
        "another address",
        "never served",
        "started again",
    ],
)
def test_owners_that_announce_one_after_another_are_in_order(said: list[Announcement], owners: list[Gate]) -> None:
    assert late(said, owners, NODES) == []


@pytest.mark.parametrize(
    ("said", "owners", "after_s"),
    [
        (heard(9, "n1"), [opened(1, "n1"), opened(5, "n2")], 4.0),
        (heard(9, "n1"), [opened(1, "n1"), opened(5, "n2"), opened(7, "n2")], 4.0),
        (heard(9, "n1"), [opened(1, "n1"), opened(5, "n2"), opened(20, "n1")], 4.0),
        (heard(9, "n1"), [opened(5, "n2")], 4.0),
    ],
    ids=["the old owner", "whose heir was started again", "long before it has it again", "who never had it"],
)
def test_an_announcement_by_another_than_the_owner_is_found(said: Announcement, owners: list[Gate], after_s: float) -> None:
    assert late([said], owners, NODES) == [Late(ADDRESS, "n1", "n2", after_s)]


def test_the_owners_are_those_whose_gates_were_opened() -> None:
    disks: list[dict[str, Any]] = [
        {"id": "d", "access": "exclusive", "paths": [{"address": ADDRESS, "index": 0}, {"address": "10.0.0.101", "index": 1}]},
        {"id": "s", "access": "shared", "paths": [{"address": "10.0.0.102", "index": 0}, {"address": "10.0.0.103", "index": 1}]},
    ]
    entries: list[dict[str, Any]] = [
        {"event": "gate opened", "export": export, "at": 2.0} for export in ("d/0", "s/1", "other/0")
    ]
    logs = {"n1": [*entries, {"event": "gate closed", "export": "d/0", "at": 3.0}]}
    assert gates(logs, disks, event="gate opened") == [
        Gate(2.0, address, "n1") for address in (ADDRESS, "10.0.0.101", "10.0.0.103")
    ]


def test_who_closed_its_gate_before_another_opened_its_own_gave_the_address_up_in_order() -> None:
    owners = [opened(1, "n1"), opened(5, "n2")]
    for closed, in_order in (
        (opened(4, "n1"), True),
        (opened(4, "n2"), False),
        (opened(6, "n1"), False),
        (opened(0, "n1"), False),
    ):
        assert late([heard(9, "n1")], owners, NODES, closed=[closed]) == [Late(ADDRESS, "n1", "n2", 4.0, in_order)]


@pytest.mark.parametrize(
    ("after_s", "in_order", "found"),
    [(5.9, True, []), (6.1, True, ["F13"]), (6.1, False, []), (10.9, False, []), (11.1, False, ["F13"])],
)
def test_an_old_owners_last_word_is_measured_and_may_not_come_late(
    tmp_path: Path, after_s: float, found: list[str], *, in_order: bool
) -> None:
    lab, this = Lab(tmp_path), Round(1)
    own = Worker(lease_s=5.0, address_lifetime_s=5)
    check_announcements(lab, [Late(ADDRESS, "n1", "n2", each, in_order) for each in (0.1, after_s)], this, own)
    assert [each.checker for each in lab.findings] == found
    assert this.measured_s == {LAST_OF_THE_OLD: after_s}


def test_who_is_silent_in_time_is_not_measured(tmp_path: Path) -> None:
    this = Round(1)
    check_announcements(Lab(tmp_path), [], this, Worker())
    assert this.measured_s == {}
