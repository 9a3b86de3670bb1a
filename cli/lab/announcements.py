"""Who says on the front network that a path's address is its own, heard by an initiator: one node after another, never two.

A node announces an address by gratuitous ARP when it takes it, and its kernel answers whoever asks for as long as it has it.
"""

import contextlib
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sanderling.clock import SystemClock

CLOCK = SystemClock()
ETH_P_ARP: Final = 0x0806
BEFORE_ITS_GATE_S: Final = 2.0  # an owner announces all its addresses before it lets operations through
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_TURN_S = 0.2


@dataclass(frozen=True, slots=True, order=True)
class Announcement:
    """At this moment the machine with this hardware address said, to everybody or to us, that the address is its own."""

    at: float
    address: str
    mac: str


@dataclass(frozen=True, slots=True, order=True)
class Gate:
    """At this moment the node opened, or closed, the gate for operations that come by way of the address."""

    at: float
    address: str
    node: str


@dataclass(frozen=True, slots=True)
class Late:
    """An announcement by a node that another had followed as owner of the address, so long before.

    `in_order` says that it had closed its gate first: then it knew.
    """

    address: str
    node: str
    owner: str
    after_s: float
    in_order: bool = False

    def __str__(self) -> str:
        return f"{self.node} announced {self.address} {self.after_s:.2f} s after {self.owner} had begun to serve it"


class Listener:
    """From `start` to `stop`. Hears what reaches one interface."""

    def __init__(self) -> None:
        self._heard: list[Announcement] = []
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def heard(self) -> Sequence[Announcement]:
        """All so far, in order of time."""
        return tuple(self._heard)

    def start(self, interface: str) -> None:
        """Listen in the namespace of the calling thread."""
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
        self._socket.bind((interface, ETH_P_ARP))
        self._socket.settimeout(_TURN_S)
        self._thread = threading.Thread(target=self._listen, args=(self._socket,), name="announcements", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None and self._socket is not None:
            self._thread.join(5 * _TURN_S)
            self._socket.close()

    def _listen(self, heard: socket.socket) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                frame = heard.recv(128)
                if (said := announced(frame, CLOCK.monotonic())) is not None:
                    self._heard.append(said)


def announced(frame: bytes, at: float) -> Announcement | None:
    """What the frame says; None when it only asks for somebody, or is nothing of the kind."""
    if len(frame) < _FRAME.size:
        return None
    _, _, kind, _, _, _, _, operation, mac, sender, _, sought = _FRAME.unpack(frame[: _FRAME.size])
    if kind != ETH_P_ARP or not (operation == 2 or (operation == 1 and sender == sought)):
        return None
    return Announcement(at, socket.inet_ntoa(sender), mac.hex(":"))


def gates(logs: Mapping[str, Iterable[Mapping[str, Any]]], disks: Iterable[Mapping[str, Any]], *, event: str) -> list[Gate]:
    """Who opened or closed the gate of each of these disks' addresses when, from the workers' logs by node."""
    addresses: dict[str, list[str]] = defaultdict(list)
    for disk in disks:
        for path in disk["paths"]:
            addresses[f"{disk['id']}/{path['index'] if disk['access'] == 'shared' else 0}"].append(path["address"])
    return sorted(
        Gate(float(entry["at"]), address, node)
        for node, entries in logs.items()
        for entry in entries
        if entry.get("event") == event
        for address in addresses.get(str(entry["export"]), ())
    )


def late(
    heard: Iterable[Announcement], opened: Iterable[Gate], nodes: Mapping[str, str], *, closed: Iterable[Gate] = ()
) -> list[Late]:
    """Every announcement by a node that was not the owner any more, nor about to be; `nodes` are names by hardware address.

    What a stranger says is none.
    """
    by_address: dict[str, list[Gate]] = defaultdict(list)
    for each in sorted(opened):
        by_address[each.address].append(each)
    found, given_up = [], list(closed)
    for one in heard:
        node = nodes.get(one.mac)
        before = [each for each in by_address[one.address] if each.at <= one.at]
        after = [each for each in by_address[one.address] if each.at > one.at]
        about_to = bool(after) and after[0].node == node and after[0].at - one.at <= BEFORE_ITS_GATE_S
        if node is None or not before or before[-1].node == node or about_to:
            continue
        since = next(each.at for number, each in enumerate(before) if all(later.node != node for later in before[number:]))
        served = max((each.at for each in before if each.node == node), default=0.0)
        in_order = any(each.address == one.address and each.node == node and served < each.at <= since for each in given_up)
        found.append(Late(one.address, node, before[-1].node, one.at - since, in_order))
    return found
