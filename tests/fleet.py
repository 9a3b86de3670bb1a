"""Gateways in this process for a conductor's moves: a bus whose commands they answer by changing their keys, as workers do.

Nothing happens but inside `cast`, so a test says what a gateway does at which command: it may lose it, refuse, keep, or die.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpc.messages import ExportCommand, Message
from sanderling.coordination.base import Acquire, Coordination, Release
from sanderling.model.disks import Disk
from sanderling.model.exports import Epoch, Export, ExportId, ExportPhase, Gateway, Kept


@dataclass(slots=True)
class Node:
    """A gateway. `refuses` and `keeps` name what it says no to, each with the reason; `is_deaf` hears no command."""

    name: str
    consul_session: str
    refuses: dict[ExportId, str] = field(default_factory=dict)
    keeps: dict[ExportId, str] = field(default_factory=dict)
    said: Gateway = field(default_factory=lambda: Gateway(name=""))
    wanted: dict[ExportId, Epoch] = field(default_factory=dict)
    handing: dict[ExportId, tuple[Epoch, str]] = field(default_factory=dict)
    is_deaf: bool = False
    is_alive: bool = True


@dataclass(frozen=True, slots=True)
class Sent:
    server: str
    method: str
    command: ExportCommand


class Fleet:
    """`before` is called with each command before it is heard; returning False loses it. `sent` are all that were cast.

    `stops_half_way` are the gateways that take a lock that is handed to them and do not come as far as serving.
    """

    def __init__(self, coordination: Coordination, names: Sequence[str] = ()) -> None:
        self.coordination = coordination
        self.nodes = {name: Node(name, coordination.open_session(name, check_ttl_s=3600)) for name in names}
        self.sent: list[Sent] = []
        self.before: Callable[[Sent], bool] = lambda _: True
        self.stops_half_way: set[str] = set()
        for node in self.nodes.values():
            self.say(node)

    def say(self, node: Node, **changes: Any) -> None:
        """Publish the gateway's key."""
        node.said = node.said.model_copy(update={"name": node.name, **changes})
        assert self.coordination.acquire(node.said.key, _json(node.said), consul_session=node.consul_session)

    def serve(self, disk: Disk, *owners: str) -> list[ExportId]:
        """Its exports, each served by the gateway named for it; publishes the disk too."""
        exports = [ExportId(disk.id, index) for index in disk.export_indexes]
        assert self.coordination.put(f"disks/{disk.id}", disk.model_dump_json().encode())
        for export, name in zip(exports, owners, strict=True):
            value = Export(generation=disk.generation, counter=1, node=name, client=f"c-{name}", phase=ExportPhase.SERVING)
            session = self.nodes[name].consul_session
            assert self.coordination.acquire(export.key, _json(value), consul_session=session)
        return exports

    def value(self, export: ExportId) -> Export:
        entry = self.coordination.get(export.key)
        assert entry is not None
        return Export.model_validate_json(entry.value)

    def owner(self, export: ExportId) -> str:
        """Who serves it now; empty for nobody."""
        entry = self.coordination.get(export.key)
        value = self.value(export)
        return value.node if entry and entry.consul_session and value.phase is ExportPhase.SERVING else ""

    def die(self, name: str) -> None:
        """Killed: its locks are free and still name its client."""
        node = self.nodes[name]
        node.is_alive = False
        self.coordination.close_session(node.consul_session)

    def take(self, name: str, export: ExportId) -> None:
        """What a worker does with a free export that is placed on it."""
        value, node = self.value(export), self.nodes[name]
        taken = {"counter": value.counter + 1, "node": name, "client": f"c-{name}", "phase": ExportPhase.SERVING, "next": ""}
        after = value.model_copy(update=taken)
        assert self.coordination.acquire(export.key, _json(after), consul_session=node.consul_session)

    def cast(self, topic: str, method: str, message: Message, *, server: str | None = None) -> None:
        assert isinstance(message, ExportCommand)
        assert topic == "iscsi_worker"
        sent = Sent(server or "", method, message)
        self.sent.append(sent)
        node = self.nodes[sent.server]
        if not self.before(sent) or node.is_deaf or not node.is_alive:
            return
        export, value = message.export, self.value(message.export)
        if message.epoch != value.epoch:
            return  # an old epoch is refused
        if method == "export.path_host":
            node.wanted[export] = message.epoch
        elif message.destination:
            node.handing[export] = (message.epoch, message.destination)
        self._react(export, message.operation_id)

    def _react(self, export: ExportId, operation_id: str) -> None:
        """What the gateways make of what they were told so far."""
        value = self.value(export)
        entry = self.coordination.get(export.key)
        assert entry is not None
        for node in self.nodes.values():
            if not node.is_alive or node.wanted.get(export) != value.epoch or entry.consul_session == node.consul_session:
                continue
            if export in node.refuses:
                self.say(node, refused={**node.said.refused, str(export): node.refuses[export]})
            elif entry.consul_session is None:
                self.take(node.name, export)
            else:
                self._hand_on(export, value, self.nodes[value.node], node, operation_id)

    def _hand_on(self, export: ExportId, value: Export, source: Node, heir: Node, operation_id: str) -> None:
        if source.handing.get(export) != (value.epoch, heir.name):
            return
        if export in source.keeps:
            kept = Kept(operation_id=operation_id, reason=source.keeps[export])
            del source.handing[export]
            self.say(source, kept={**source.said.kept, str(export): kept})
            return
        changes = {"counter": value.counter + 1, "node": heir.name, "client": f"c-{heir.name}", "next": source.name}
        taking = value.model_copy(update={**changes, "phase": ExportPhase.TAKING})
        release = Release(export.key, _json(value), consul_session=source.consul_session)
        assert self.coordination.txn([release, Acquire(export.key, _json(taking), consul_session=heir.consul_session)])
        if heir.name not in self.stops_half_way:
            serving = taking.model_copy(update={"phase": ExportPhase.SERVING, "next": ""})
            assert self.coordination.acquire(export.key, _json(serving), consul_session=heir.consul_session)


def _json(value: Export | Gateway) -> bytes:
    return value.model_dump_json().encode()
