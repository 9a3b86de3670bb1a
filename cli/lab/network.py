"""The lab's network: nodes and an initiator as network namespaces on two bridges, whose cables a test can pull.

`back` (a /24 of 10.77.0.0/16) carries the bus, Consul and Ceph; `front` (a /24 of 10.78.0.0/16) carries iSCSI. Both bridges stand
in the namespace of the real parts; the root namespace reaches `back` over a cable of its own. Names carry the pid and start time
of the run that made them, so that what a killed run left behind is found and removed by the next.
"""

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

from cli.lab.parts.daemons import run, start_time, waited

Side = Literal["back", "front"]
SIDES: tuple[Side, ...] = ("back", "front")

_NAMES = Path("/run/netns")
_INTERFACES = Path("/sys/class/net")
_LOCK = Path("/run/sanderling-lab.lock")
_SLICES = range(1, 250)


def version() -> str:
    """The kernel's and iproute2's own words."""
    return f"Linux {os.uname().release}, {run(['ip', '-V']).strip().removeprefix('ip utility, ')}"


class Network:
    """`nodes` have eth0 on `back` and eth1 on `front`; the initiator has eth0, on `front` alone. Use as a context manager.

    Several may exist at once, also of several runs: each takes a free slice (the third byte of its addresses).
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = tuple(nodes)
        self._slice = 0
        self._made = False

    @property
    def parts(self) -> str:
        """The namespace with the bridges, for the real parts."""
        return self.netns("parts")

    @property
    def initiator(self) -> str:
        """The initiator's namespace."""
        return self.netns("initiator")

    def netns(self, node: str) -> str:
        """The name of the node's namespace."""
        return f"san-{self._slice}-{os.getpid()}-{start_time(os.getpid())}-{node}"

    @property
    def parts_address(self) -> str:
        return f"10.77.{self._slice}.1"

    @property
    def extra_parts_addresses(self) -> tuple[str, ...]:
        """More addresses on `back` in the namespace of the parts, for parts that come in several."""
        return tuple(f"10.77.{self._slice}.{2 + number}" for number in range(3))

    def address(self, node: str, side: Side) -> str:
        """The node's own address on that side."""
        return f"10.{_second(side)}.{self._slice}.{11 + self.nodes.index(node)}"

    @property
    def initiator_address(self) -> str:
        return f"10.78.{self._slice}.10"

    @property
    def front_cidr(self) -> str:
        return f"10.78.{self._slice}.0/24"

    @property
    def front_pool(self) -> tuple[str, str]:
        """First and last of the addresses that are nobody's own: for path addresses."""
        return f"10.78.{self._slice}.100", f"10.78.{self._slice}.250"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Make everything; what a dead run left is removed first."""
        with _locked():
            remove_left_behind()
            taken = {int(name.split("-")[1]) for name in _ours()}
            self._slice = next(number for number in _SLICES if number not in taken)
            run(["ip", "netns", "add", self.parts])
        self._made = True
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove every namespace; whatever a test left running in one is killed."""
        if self._made:
            _remove_root(str(self._slice))
            for name in ("stranger", "initiator", *self.nodes, "parts"):
                _remove(self.netns(name))
            self._made = False

    def cut(self, node: str, *, sides: Sequence[Side] = SIDES) -> None:
        """Pull the node's cables on these sides: nothing passes in either direction until `mend`."""
        for side in sides:
            self._in_parts("link", "set", self._port(node, side), "down")

    def mend(self, node: str, *, sides: Sequence[Side] = SIDES) -> None:
        for side in sides:
            self._in_parts("link", "set", self._port(node, side), "up")

    @contextlib.contextmanager
    def stranger(self, address: str) -> Iterator[str]:
        """A machine on `front` that uses this address without asking; the name of its namespace."""
        run(["ip", "netns", "add", self.netns("stranger")])
        try:
            self._cable("stranger", "front", self.netns("stranger"), "eth0", address)
            yield self.netns("stranger")
        finally:
            _remove(self.netns("stranger"))

    def mac(self, netns: str, interface: str) -> str:
        """The hardware address of an interface, for whoever watches who announces what."""
        return run(["cat", f"/sys/class/net/{interface}/address"], netns=netns).strip()

    def _build(self) -> None:
        self._in_parts("link", "set", "lo", "up")
        for side in SIDES:
            self._in_parts("link", "add", side, "type", "bridge", "forward_delay", "0", "stp_state", "0")
            self._in_parts("link", "set", side, "up")
        for address in (self.parts_address, *self.extra_parts_addresses):
            self._in_parts("address", "add", f"{address}/24", "dev", "back")
        for node in self.nodes:
            run(["ip", "netns", "add", self.netns(node)])
            for number, side in enumerate(SIDES):
                self._cable(self._port(node, side), side, self.netns(node), f"eth{number}", self.address(node, side))
        run(["ip", "netns", "add", self.initiator])
        self._cable("initiator", "front", self.initiator, "eth0", self.initiator_address)
        root = f"san-{self._slice}"
        self._in_parts("link", "add", "root", "type", "veth", "peer", "name", root, "netns", "1")
        self._in_parts("link", "set", "root", "master", "back", "up")
        run(["ip", "address", "add", f"10.77.{self._slice}.254/24", "dev", root])
        run(["ip", "link", "set", root, "up"])

    def _cable(self, port: str, side: Side, netns: str, interface: str, address: str) -> None:
        self._in_parts("link", "add", port, "type", "veth", "peer", "name", interface, "netns", netns)
        self._in_parts("link", "set", port, "master", side, "up")
        inside = ["ip", "-n", netns]
        run([*inside, "link", "set", "lo", "up"])
        run([*inside, "address", "add", f"{address}/24", "dev", interface])
        run([*inside, "link", "set", interface, "up"])

    def _port(self, node: str, side: Side) -> str:
        return f"{side}{self.nodes.index(node)}"

    def _in_parts(self, *words: str) -> None:
        run(["ip", "-n", self.parts, *words])


def remove_left_behind() -> list[str]:
    """Remove the namespaces of runs that are dead, with the processes in them; their names."""
    dead = [name for name in _ours() if start_time(int(name.split("-")[2])) != name.split("-")[3]]
    for number in {name.split("-")[1] for name in dead}:
        _remove_root(number)
    for name in dead:
        _remove(name)
    return dead


def _remove_root(slice_number: str) -> None:
    """Now: with the namespace at its other end it would go only when the kernel comes to it."""
    if (_INTERFACES / f"san-{slice_number}").exists():
        run(["ip", "link", "delete", f"san-{slice_number}"])


def _second(side: Side) -> int:
    return {"back": 77, "front": 78}[side]


def _ours() -> list[str]:
    return sorted(path.name for path in _NAMES.glob("san-*-*-*-*")) if _NAMES.exists() else []


def _remove(netns: str) -> None:
    if not (_NAMES / netns).exists():
        return

    def empty() -> bool:
        pids = [int(pid) for pid in run(["ip", "netns", "pids", netns]).split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return not any(start_time(pid) for pid in pids)

    waited(empty, within_s=10, what=f"the processes in {netns} end")
    run(["ip", "netns", "delete", netns])


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
