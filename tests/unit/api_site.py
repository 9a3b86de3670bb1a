"""A site behind the API, for tests: gateways that live, disks they serve, and what a conductor makes of an assignment."""

from typing import Any

from sanderling.model.disks import DiskEvent
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from sanderling.model.moves import Move, MoveEvent, MoveState
from sanderling.model.operations import OperationEvent
from sanderling.records import assignments, disks, marks, moves, operations
from sanderling.settings import Conductor
from tests.unit.api_app import Api


class Site:
    """Disks and gateways by name. Every change is what the part that is meant would write."""

    def __init__(self, api: Api, *gateways: str) -> None:
        self.api = api
        self.disk_ids: dict[str, str] = {}
        self._sessions: dict[str, str] = {}
        for name in gateways:
            self.arrive(name)

    def arrive(self, name: str, **said: Any) -> None:
        """A gateway comes up, or says something new of itself."""
        coordination = self.api.coordination
        if name not in self._sessions:
            self._sessions[name] = coordination.open_session(name, check_ttl_s=3600)
        value = Gateway(name=name, **{"interfaces": ("eth1",), **said})
        assert coordination.acquire(value.key, value.model_dump_json().encode(), consul_session=self._sessions[name])

    def leave(self, name: str) -> None:
        """A gateway ends in order, without what it served."""
        coordination, consul_session = self.api.coordination, self._sessions.pop(name)
        for entry in coordination.list("").entries:
            if entry.consul_session == consul_session:
                coordination.release(entry.key, entry.value, consul_session=consul_session)
        coordination.close_session(consul_session)

    def disk(self, name: str, *owners: str | None, access: str = "exclusive", started: bool = True, paths: int = 0) -> str:
        """A disk whose exports these gateways serve, one each: the one of an exclusive disk, or the paths of a shared one."""
        shared = access == "shared"
        operation = self.api.disk(name, started=started, access=access, paths=paths or (len(owners) if shared else 1))
        now, disk_id = self.api.clock.wall(), str(operation["resource_id"])
        with self.api.records.begin() as session:
            claimed = operations.claim(session, operation["id"], conductor="c", now=now, ttl_s=60)
            assert claimed is not None
            operations.end(session, claimed.id, OperationEvent.SUCCEED, claim_epoch=claimed.claim_epoch, now=now)
            event = DiskEvent.STARTED if started else DiskEvent.CREATED
            disks.apply(session, disk_id, event, now=now, actor="c", operation_id=claimed.id, started=started)
        self.disk_ids[name] = disk_id
        for number, owner in enumerate(owners):
            self.serve(name, owner, index=number + 1 if shared else 0)
        return disk_id

    def serve(self, disk: str, owner: str | None, *, index: int = 0) -> None:
        """From now on that gateway serves the export, or nobody."""
        coordination, export = self.api.coordination, ExportId(self.disk_ids[disk], index)
        entry = coordination.get(export.key)
        before = Export.model_validate_json(entry.value) if entry else Export(generation=1)
        if entry is not None and entry.consul_session is not None:
            assert coordination.release(export.key, entry.value, consul_session=entry.consul_session)
        if owner is None:
            left = before.model_copy(update={"phase": ExportPhase.LEFT})
            assert coordination.put(export.key, left.model_dump_json().encode())
            return
        value = Export(generation=1, counter=before.counter + 1, node=owner, phase=ExportPhase.SERVING)
        assert coordination.acquire(export.key, value.model_dump_json().encode(), consul_session=self._sessions[owner])

    def drain(self, gateway: str, *, is_drained: bool = True) -> None:
        with self.api.records.begin() as session:
            now = self.api.clock.wall()
            marks.drain(session, gateway, is_drained=is_drained, now=now, actor="c", operation_id="o")

    def mark(self, disk: str, *, pin: str | None = None, avoid: tuple[str, ...] = ()) -> None:
        with self.api.records.begin() as session:
            now, disk_id = self.api.clock.wall(), self.disk_ids[disk]
            marks.mark_disk(session, disk_id, pin=pin, avoid=frozenset(avoid), now=now, actor="c", operation_id="o")

    def stop(self, disk: str) -> None:
        with self.api.records.begin() as session:
            now, disk_id = self.api.clock.wall(), self.disk_ids[disk]
            for event in (DiskEvent.STOP, DiskEvent.STOPPED):
                disks.apply(session, disk_id, event, now=now, actor="c", operation_id=None, started=False)

    def delete(self, disk: str) -> None:
        self.stop(disk)
        with self.api.records.begin() as session:
            now, disk_id = self.api.clock.wall(), self.disk_ids.pop(disk)
            disks.apply(session, disk_id, DiskEvent.DELETE, now=now, actor="c", operation_id=None)
            disks.forget(session, disk_id, now=now, actor="c", operation_id=None)

    def moves(self, operation_id: str) -> list[Move]:
        with self.api.records.read() as session:
            return moves.of(session, operation_id)

    def begin(self, operation_id: str, position: int) -> None:
        """A conductor begins one of the moves."""
        with self.api.records.begin() as session:
            now = self.api.clock.wall()
            moves.apply(session, operation_id, position, MoveEvent.START, now=now, actor="c")

    def finish(self, operation_id: str, *, fails: tuple[int, ...] = ()) -> None:
        """A conductor and workers carry every move out, but those in these positions, and the operation ends."""
        now = self.api.clock.wall()
        for move in self.moves(operation_id):
            if move.position not in fails:
                self.serve(move.disk_name, move.destination, index=move.index)
        with self.api.records.begin() as session:
            claimed = operations.claim(session, operation_id, conductor="c", now=now, ttl_s=60)
            assert claimed is not None
            for move in moves.of(session, operation_id):
                if move.state is MoveState.PENDING:
                    moves.apply(session, operation_id, move.position, MoveEvent.START, now=now, actor="c")
                outcome = MoveEvent.FAIL if move.position in fails else MoveEvent.SUCCEED
                moves.apply(session, operation_id, move.position, outcome, now=now, actor="c")
            end = OperationEvent.FAIL if fails else OperationEvent.SUCCEED
            operations.end(session, operation_id, end, claim_epoch=claimed.claim_epoch, now=now)

    def measured(self, *gaps_s: float) -> None:
        """Moves that are over, with their gaps."""
        one = Move(position=0, disk_id="d", disk_name="d", index=0, addresses=(), source="node-a", destination="node-b")
        asked = [one.model_copy(update={"position": at, "index": at}) for at in range(len(gaps_s))]
        with self.api.records.begin() as session:
            now = self.api.clock.wall()
            operation = assignments.submit(session, moves=asked, conductor=Conductor(), requested_by="c", now=now)
            session.flush()
            for move, gap_s in zip(asked, gaps_s, strict=True):
                moves.apply(session, operation.id, move.position, MoveEvent.START, now=now, actor="c")
                ends = {"source": move.source, "destination": move.destination, "operation_id": operation.id}
                moves.note_gap(session, move.export, gap_s=gap_s, **ends)
            operations.request_cancel(session, operation.id, actor="c", now=now)

    def post(self, path: str, body: dict[str, Any] | None = None, *, status: int = 202) -> dict[str, Any]:
        """The answer's body, when it comes with that status."""
        answer = self.api.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.client.get(path)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get_text(self, path: str) -> str:
        answer = self.api.client.get(path)
        assert answer.status_code == 200, answer.text
        return str(answer.text)

    def address(self, disk: str, index: int = 1) -> str:
        paths = self.get(f"/v1/disks/{disk}")["paths"]
        return next(str(path["address"]) for path in paths if path["index"] == index)
