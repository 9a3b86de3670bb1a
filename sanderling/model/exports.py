"""An export: what one node does for one disk. The unit of ownership, fencing and moving."""

import re
from enum import StrEnum
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

UNKNOWN_CLIENT = "unknown"
_NAMED: Final = re.compile(r"([^/]+)/(0|[1-9][0-9]{0,5})")


class ExportId(NamedTuple):
    """`index` is 0 for an exclusive disk and the path's index for a shared one."""

    disk_id: str
    index: int  # type: ignore[assignment]  # nobody asks this tuple for the place of a value

    @property
    def key(self) -> str:
        return f"exports/{self.disk_id}/{self.index}"

    @classmethod
    def named(cls, text: str) -> "ExportId | None":
        """The export that is called so; None where nothing is: "d/00" is not how we write it, and must not stand for "d/0"."""
        found = _NAMED.fullmatch(text)
        return cls(found[1], int(found[2])) if found else None

    @classmethod
    def from_key(cls, key: str) -> "ExportId | None":
        """The export whose key in coordination this is; None where it is none's, whoever wrote it."""
        noun, _, text = key.partition("/")
        return cls.named(text) if noun == "exports" else None

    def __str__(self) -> str:
        return f"{self.disk_id}/{self.index}"


class Epoch(NamedTuple):
    """Orders the owners of an export, also across a rebuilt coordination store. Compared as a pair."""

    generation: int
    counter: int

    @property
    def following(self) -> "Epoch":
        """That of the next owner."""
        return Epoch(self.generation, self.counter + 1)

    def __str__(self) -> str:
        return f"{self.generation}.{self.counter}"


class ExportPhase(StrEnum):
    """What the owner named in an export's value says of it. `free` was never taken; `left` was given up in order."""

    FREE = "free"
    TAKING = "taking"
    SERVING = "serving"
    GIVING_UP = "giving_up"
    LEFT = "left"


class Connection(NamedTuple):
    """One iSCSI connection: what a tickle needs, and what a person asks for."""

    initiator_iqn: str
    initiator_address: str
    initiator_port: int
    portal_address: str


class Export(BaseModel):
    """The value of `exports/<disk_id>/<index>`. Who holds the key's lock *should* serve; `client` is what to fence.

    `client` is empty only when nothing of this export can be running: before the first taking, and after it was left. A key
    that is made again for a disk that may be served already starts with `client` unknown, so that taking it fences first.
    `next` names the gateway that is to have it, while a move is under way; once the key is free that one is the first choice.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int
    counter: int = 0
    node: str = ""
    client: str = ""
    phase: ExportPhase = ExportPhase.FREE
    revision: int = 0
    connections: tuple[Connection, ...] = ()
    next: str = ""

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.generation, self.counter)

    @property
    def needs_fence(self) -> bool:
        """Whether some process may still be able to write through this export."""
        return self.client != ""


class Prepared(BaseModel):
    """An export's process that stands ready behind a closed gate, to be handed the lock at just this epoch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int
    counter: int
    client: str

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.generation, self.counter)


class Front(BaseModel):
    """What a gateway says of the networks of the paths, by the name of the interface.

    `own` are its own addresses there, with their prefix lengths: where peers probe it while it serves no path. `reachable` and
    `unreachable` name the peers whose portals it could and could not reach, `cut_off` the interfaces on which it has found
    itself cut off: nothing is placed there that any other gateway can serve. `claimed` are addresses it serves that another
    machine answers for as well, with that machine's hardware address.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    own: dict[str, tuple[str, ...]] = {}
    reachable: dict[str, tuple[str, ...]] = {}
    unreachable: dict[str, tuple[str, ...]] = {}
    cut_off: tuple[str, ...] = ()
    claimed: dict[str, str] = {}


class Store(BaseModel):
    """What a gateway says of the image store.

    `answers`: it was read from a moment ago. `cut_off`: this gateway could not read from it while others could, or that is over
    since too short a time to be relied on.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    answers: bool = False
    cut_off: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be served, nor taken, that needs the store."""
        return self.cut_off and not self.answers


class Kept(BaseModel):
    """Why an export that was to be handed on is still where it was, for the operation that asked."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    operation_id: str
    reason: str


class Gateway(BaseModel):
    """The value of `nodes/<name>`: a live worker, locked by its consul session for as long as it lives.

    `refused` names exports this worker failed to take and stands back from, each with the reason; the worker removes an
    entry itself when it is ready to try again. `running` names the exports whose process lets operations through, each with its
    client: after coordination was lost it is what tells who really serves. `prepared` names the exports that it is ready to be
    handed, `kept` those it was told to hand on and serves still, with the reason. `version` is that of its software.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    interfaces: tuple[str, ...] = ()
    refused: dict[str, str] = {}
    running: dict[str, str] = {}
    prepared: dict[str, Prepared] = {}
    kept: dict[str, Kept] = {}
    withdrawing: bool = False
    front: Front = Front()
    store: Store = Store()
    version: str = ""

    @property
    def key(self) -> str:
        return f"nodes/{self.name}"
