"""Operations that wait for others on their disk: in order, begun one after another, and nothing but wishes until then."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sanderling.model.disks import Access, DiskEvent
from sanderling.model.operations import Operation, OperationEvent, OperationKind, OperationState
from sanderling.records import disks, operations, turns
from sanderling.settings import Conductor
from tests.unit.api_app import GIB, Api, running
from tests.unit.api_site import Site

OWN = Conductor()
TTL_S = 3600.0


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path, queue_max=3) as served:
        yield served


@pytest.fixture
def disk_id(api: Api) -> str:
    """A started disk, db, that is served by node-a and at which nothing is at work."""
    return Site(api, "node-a").disk("db", "node-a")


def asked(api: Api, method: str, path: str, *, status: int = 202, **body: Any) -> dict[str, Any]:
    answer = api.client.request(method, f"/v1/disks/db{path}", json=body or None)
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    return told


def renamed(api: Api, name: str, *, status: int = 202) -> dict[str, Any]:
    return asked(api, "PATCH", "", status=status, name=name)


def snapped(api: Api, name: str, *, status: int = 202) -> dict[str, Any]:
    return asked(api, "POST", "/snapshots", status=status, name=name)


def due(api: Api) -> list[str]:
    with api.records.read() as session:
        return operations.due(session, now=api.clock.wall(), ttl_s=TTL_S, limit=99)


def taken(api: Api, operation: dict[str, Any]) -> Operation | None:
    """What a conductor does that is told of the operation; None when its turn has not come or it was refused."""
    now = api.clock.wall()
    with api.records.begin() as session:
        turns.begin(session, operation["id"], own=OWN, now=now, actor="c")
        return operations.claim(session, operation["id"], conductor="c", now=now, ttl_s=TTL_S)


def ended(api: Api, operation: Operation, *events: DiskEvent, started: bool | None = None) -> None:
    """A conductor brings it to its success, with what that does to the disk."""
    now = api.clock.wall()
    with api.records.begin() as session:
        for event in events:
            disks.apply(session, operation.resource_id, event, now=now, actor="c", operation_id=operation.id, started=started)
        operations.end(session, operation.id, OperationEvent.SUCCEED, claim_epoch=operation.claim_epoch, now=now)


def shown(api: Api, operation: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = api.client.get(f"/v1/operations/{operation['id']}").json()
    return found


def test_what_is_asked_of_a_busy_disk_waits_and_is_told_its_place_and_for_whom(api: Api, disk_id: str) -> None:
    first = asked(api, "POST", "/stop")
    before = api.client.get("/v1/disks/db").json()
    second, third = asked(api, "POST", "/start"), asked(api, "POST", "/stop")
    assert "position" not in first
    assert [(one["state"], one["position"], one["waits_for"]) for one in (second, third)] == [
        ("queued", 1, first["id"]),
        ("queued", 2, second["id"]),
    ]
    assert second["notes"] == [f"queued: it begins when operation {first['id']} (disk.stop) has ended, as number 1 in line"]
    assert api.client.get("/v1/disks/db").json() == before
    assert due(api) == [first["id"]]


def test_the_next_in_line_begins_when_the_one_before_has_ended_and_not_sooner(api: Api, disk_id: str) -> None:
    first, second, third = asked(api, "POST", "/stop"), asked(api, "POST", "/start"), snapped(api, "a")
    assert taken(api, second) is None
    stop = taken(api, first)
    assert stop is not None
    assert due(api) == []
    ended(api, stop, DiskEvent.STOPPED, started=False)
    assert due(api) == [second["id"]]
    assert taken(api, third) is None
    start = taken(api, second)
    assert start is not None
    assert start.params["was"] == "stopped"
    assert api.client.get("/v1/disks/db").json()["state"] == "starting"
    assert due(api) == []
    ended(api, start, DiskEvent.STARTED, started=True)
    snapshot = taken(api, third)
    assert snapshot is not None
    assert [step.name for step in snapshot.steps] == ["create_snapshot"]
    assert [shown(api, one)["state"] for one in (first, second, third)] == ["succeeded", "succeeded", "running"]


def test_the_line_is_bounded_and_one_too_many_is_told_to_come_back(api: Api, disk_id: str) -> None:
    snapped(api, "at-work")
    for name in ("a", "b", "c"):
        snapped(api, name)
    before = api.tables()
    refused = api.client.post("/v1/disks/db/snapshots", json={"name": "d"})
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-requests")
    assert int(refused.headers["Retry-After"]) > 0
    assert api.tables() == before


def test_of_many_at_once_each_has_a_place_of_its_own_and_the_bound_holds(tmp_path: Path) -> None:
    with running(tmp_path, queue_max=20) as api:
        Site(api, "node-a").disk("db", "node-a")
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: api.client.post("/v1/disks/db/snapshots", json={"name": f"s{n}"}), range(50)))
        assert Counter(answer.status_code for answer in answers) == {202: 21, 429: 29}
        accepted = [answer.json() for answer in answers if answer.status_code == 202]
        assert sorted(one.get("position", 0) for one in accepted) == list(range(21))
        order = [one["id"] for one in sorted(accepted, key=lambda one: one.get("position", 0))]
        began = []
        while found := due(api):
            (operation_id,) = found
            began.append(operation_id)
            operation = taken(api, {"id": operation_id})
            assert operation is not None
            ended(api, operation)
        assert began == order


def test_one_that_waits_is_cancelled_at_once_and_the_disk_stays_what_it_is(api: Api, disk_id: str) -> None:
    stop = taken(api, asked(api, "POST", "/stop"))
    assert stop is not None
    second, third = asked(api, "POST", "/start"), asked(api, "POST", "/stop")
    before = api.client.get("/v1/disks/db").json()
    assert api.client.post(f"/v1/operations/{second['id']}/cancel").json()["state"] == "cancelled"
    assert api.client.get("/v1/disks/db").json() == before
    ended(api, stop, DiskEvent.STOPPED, started=False)
    assert due(api) == [third["id"]]
    assert taken(api, third) is None
    refused = shown(api, third)
    assert (refused["state"], refused["problem"]["type"]) == ("failed", "/problems/transition-refused")
    assert "nothing of it has been done" in refused["problem"]["fix"]
    assert api.client.get("/v1/disks/db").json()["state"] == "stopped"
    assert due(api) == []


def test_when_the_one_at_work_is_cancelled_before_it_began_the_next_comes(api: Api, disk_id: str) -> None:
    first, second = snapped(api, "a"), asked(api, "POST", "/stop")
    api.client.post(f"/v1/operations/{first['id']}/cancel")
    assert due(api) == [second["id"]]
    assert taken(api, second) is not None


def test_what_would_not_be_possible_after_those_before_it_is_refused_at_once(api: Api, disk_id: str) -> None:
    asked(api, "POST", "/stop")
    assert asked(api, "POST", "/stop", status=409)["type"] == "/problems/transition-refused"
    asked(api, "POST", "/start")
    asked(api, "DELETE", "?force=true&confirm=db")
    refused = asked(api, "POST", "/start", status=409)
    assert refused["detail"] == "after 3 operations that come before it the disk is deleted, and cannot start then"


def test_what_would_not_be_possible_in_a_line_that_is_full_is_not_to_be_tried_again(tmp_path: Path) -> None:
    with running(tmp_path, queue_max=1) as api:
        Site(api, "node-a").disk("db", "node-a")
        asked(api, "POST", "/stop")
        asked(api, "DELETE", "?force=true&confirm=db")
        assert asked(api, "POST", "/start", status=409)["type"] == "/problems/transition-refused"
        asked(api, "DELETE", "?force=true&confirm=db", status=409)


def test_what_must_be_looked_at_before_it_begins_does_not_wait(api: Api, disk_id: str) -> None:
    first = snapped(api, "a")
    for refused in (snapped(api, "a", status=409), asked(api, "DELETE", "", status=409)):
        assert (refused["type"], refused["operation_id"]) == ("/problems/busy", first["id"])


def test_a_change_that_waited_is_made_of_the_disk_as_it_is_by_then(api: Api, disk_id: str) -> None:
    stop = taken(api, asked(api, "POST", "/stop"))
    assert stop is not None
    change = asked(api, "PATCH", "", name="archive", size_bytes=2 * GIB)
    assert api.client.get("/v1/disks/db").json()["size_bytes"] == GIB
    ended(api, stop, DiskEvent.STOPPED, started=False)
    begun = taken(api, change)
    assert begun is not None
    assert [step.name for step in begun.steps] == ["grow_image", "describe_changed", "settle"]  # nobody to tell: it is stopped
    assert begun.params["before"] == {"name": "db", "size_bytes": GIB}
    assert api.client.get("/v1/disks/archive").json()["size_bytes"] == 2 * GIB


def test_a_change_that_others_have_made_impossible_meanwhile_fails_and_changes_nothing(api: Api, disk_id: str) -> None:
    first = taken(api, snapped(api, "a"))
    assert first is not None
    change = renamed(api, "archive")
    api.disk("archive")
    ended(api, first)
    before = api.client.get("/v1/disks/db").json()
    assert taken(api, change) is None
    assert (shown(api, change)["state"], shown(api, change)["problem"]["type"]) == ("failed", "/problems/conflict")
    assert api.client.get("/v1/disks/db").json() == before


def test_nothing_waits_for_a_disk_that_is_gone(api: Api, disk_id: str) -> None:
    create = api.disk("new")
    second = api.client.post("/v1/disks/new/stop").json()
    api.client.post(f"/v1/operations/{create['id']}/cancel")
    assert taken(api, second) is None
    problem = shown(api, second)["problem"]
    assert problem["type"] == "/problems/not-found"
    assert problem["detail"].startswith("disk new is gone")


def test_a_dry_run_says_that_it_would_wait_and_changes_nothing(api: Api, disk_id: str) -> None:
    first = asked(api, "POST", "/stop")
    before = api.tables()
    told = asked(api, "POST", "/start?dry_run=true", status=200)
    assert told["notes"] == [f"queued: it begins when operation {first['id']} (disk.stop) has ended, as number 1 in line"]
    assert api.tables() == before


def test_a_repeat_with_its_key_is_the_same_operation_in_line(api: Api, disk_id: str) -> None:
    asked(api, "POST", "/stop")
    key = {"Idempotency-Key": "k"}
    answers = [api.client.post("/v1/disks/db/start", headers=key).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert (answers[0]["state"], answers[0]["position"]) == ("queued", 1)


def test_why_it_waits_is_explained(api: Api, disk_id: str) -> None:
    first = asked(api, "POST", "/stop")
    asked(api, "POST", "/start")
    third = asked(api, "POST", "/stop")
    found = api.client.get(f"/v1/operations/{third['id']}/explain").json()
    (wait,) = found["waits_for"]
    assert wait["cause"] == "queued"
    assert wait["detail"] == f"it is number 2 in line on db, where operation {first['id']} (disk.stop) is at work"


def test_assignments_and_confirmed_drains_wait_for_one_another(tmp_path: Path) -> None:
    with running(tmp_path) as api:
        site = Site(api, "node-a", "node-b")
        site.disk("db", "node-a")
        site.disk("log", "node-a")
        first = api.client.post("/v1/assignments", json={"planner": "average"}).json()
        drains = [api.client.post("/v1/gateways/node-b/drain", json={"confirm": "node-b"}) for _ in range(2)]
        assert [(answer.status_code, answer.json()["state"], answer.json()["position"]) for answer in drains] == [
            (202, "queued", 1),
            (202, "queued", 2),
        ]
        undrain = api.client.post("/v1/gateways/node-b/undrain")
        assert undrain.json()["operation_id"] == drains[0].json()["id"]
        site.finish(first["id"])
        begun = taken(api, drains[0].json())
        assert begun is not None
        assert begun.kind is OperationKind.DRAIN_GATEWAY
        with api.records.begin() as session:
            operations.end(session, begun.id, OperationEvent.SUCCEED, claim_epoch=begun.claim_epoch, now=api.clock.wall())
        again = taken(api, drains[1].json())
        assert again is not None
        assert again.state is OperationState.RUNNING


def test_marks_wait_for_what_is_at_work_on_their_disk(api: Api, disk_id: str) -> None:
    first = taken(api, snapped(api, "a"))
    assert first is not None
    marked = asked(api, "PUT", "/marks", pin="node-a")
    assert marked["state"] == "queued"
    ended(api, first)
    assert taken(api, marked) is not None


def test_a_snapshot_is_not_taken_of_what_several_gateways_serve_when_its_turn_comes(api: Api) -> None:
    Site(api, "node-a", "node-b").disk("db", "node-a", "node-b", access=Access.SHARED.value)
    first = asked(api, "PATCH", "", allow_any=True)
    queued = snapped(api, "a")
    change = taken(api, first)
    assert change is not None
    ended(api, change)
    assert taken(api, queued) is None
    assert shown(api, queued)["problem"]["type"] == "/problems/in-use"
