"""/v1/disks: what is accepted is written whole, what is refused leaves nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.lab.parts.daemons import waited
from sanderling.clock import SystemClock
from sanderling.errors import TooLarge, Unavailable
from sanderling.model.disks import DiskEvent
from sanderling.model.exports import Connection, Export, ExportId, ExportPhase
from sanderling.model.operations import OperationEvent
from sanderling.records import disks, operations
from tests.unit.api_app import GIB, Api, running


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


def finish(api: Api, operation: dict[str, Any], event: DiskEvent, *, started: bool) -> None:
    """Do what a conductor would: end the operation well and move the disk."""
    now = api.clock.wall()
    with api.records.begin() as session:
        claimed = operations.claim(session, operation["id"], conductor="c", now=now, ttl_s=60)
        assert claimed is not None
        operations.end(session, claimed.id, OperationEvent.SUCCEED, claim_epoch=claimed.claim_epoch, now=now)
        disks.apply(session, claimed.resource_id, event, now=now, actor="c", operation_id=claimed.id, started=started)


def made(api: Api, name: str, *, started: bool, **wanted: Any) -> dict[str, Any]:
    operation = api.disk(name, started=started, **wanted)
    finish(api, operation, DiskEvent.STARTED if started else DiskEvent.CREATED, started=started)
    return operation


def serve(api: Api, disk_id: str, node: str, *connections: Connection) -> str:
    """Do what a worker would: lock the disk's export and say that it serves; its consul session."""
    consul_session = api.coordination.open_session(node, check_ttl_s=60)
    value = Export(generation=1, counter=1, node=node, phase=ExportPhase.SERVING, revision=1, connections=connections)
    assert api.coordination.acquire(ExportId(disk_id, 0).key, value.model_dump_json().encode(), consul_session=consul_session)
    return consul_session


def waiting(api: Api) -> list[operations.Outgoing]:
    with api.records.read() as session:  # a session of its own each time: one session sees one moment
        return operations.outbox(session, limit=9)


@pytest.mark.rows("MC-8", "W-MC-7")
def test_a_new_disk_is_accepted_with_the_operation_that_makes_it(api: Api) -> None:
    answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB, "paths": 2, "allow_any": True})
    operation = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/operations/{operation['id']}"
    assert api.client.get(answer.headers["Location"]).json()["state"] == "pending"
    assert operation["notes"] == []
    shown = api.client.get("/v1/disks/db").json()
    assert (shown["state"], shown["size_bytes"], shown["iqn"]) == ("creating", GIB, "iqn.2026-11.io.sanderling:db")
    assert shown == api.client.get(f"/v1/disks/{shown['id']}").json()


@pytest.mark.rows("PA-12")
def test_paths_count_from_one_and_siblings_of_an_exclusive_disk_get_different_subnets(api: Api) -> None:
    api.disk("db", paths=2)
    paths = api.client.get("/v1/disks/db").json()["paths"]
    assert [(p["index"], p["subnet"], p["address"]) for p in paths] == [(1, "left", "10.1.0.1"), (2, "right", "10.2.0.1")]


def test_addresses_that_are_given_are_used_in_their_order(api: Api) -> None:
    api.disk("db", addresses=["10.2.0.9", "10.1.0.9"])
    paths = api.client.get("/v1/disks/db").json()["paths"]
    assert [(p["address"], p["subnet"]) for p in paths] == [("10.2.0.9", "right"), ("10.1.0.9", "left")]


def test_a_disk_that_nobody_may_log_in_to_is_made_and_said_to_be_so(api: Api) -> None:
    assert "no initiator may log in" in api.disk("db")["notes"][0]


def test_twenty_requests_at_once_never_get_one_address_twice(api: Api) -> None:
    def ask(number: int) -> int:
        body = {"name": f"d{number}", "size_bytes": GIB, "subnets": ["left"]}
        status: int = api.client.post("/v1/disks", json=body).status_code
        return status

    with ThreadPoolExecutor(20) as pool:
        statuses = sorted(pool.map(ask, range(20)))
    assert statuses == [202] * 14 + [409] * 6
    addresses = [p["address"] for p in api.client.get("/v1/paths").json()["paths"]]
    assert len(set(addresses)) == len(addresses) == 14


def test_a_full_subnet_is_a_problem_and_leaves_nothing_half_made(api: Api) -> None:
    for number in range(14):
        api.disk(f"d{number}", subnets=["left"])
    before = api.tables()
    answer = api.client.post("/v1/disks", json={"name": "more", "size_bytes": GIB, "subnets": ["left"]})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/exhausted")
    assert api.tables() == before


def test_an_address_of_another_disk_is_refused_by_naming_it(api: Api) -> None:
    api.disk("db", addresses=["10.1.0.5"])
    before = api.tables()
    answer = api.client.post("/v1/disks", json={"name": "two", "size_bytes": GIB, "addresses": ["10.2.0.5", "10.1.0.5"]})
    assert answer.status_code == 409
    assert (answer.json()["field"], answer.json()["disk"]) == ("addresses[1]", "db")
    assert api.tables() == before


@pytest.mark.parametrize("wanted", [{"name": "db"}, {"name": "two", "iqn": "iqn.2026-11.io.sanderling:db"}])
def test_a_name_or_an_iqn_that_is_taken_is_refused(api: Api, wanted: dict[str, Any]) -> None:
    api.disk("db")
    answer = api.client.post("/v1/disks", json={"size_bytes": GIB, **wanted})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")


def test_a_disk_whose_name_is_still_in_the_iqn_of_another_gets_an_iqn_of_its_own(api: Api) -> None:
    held = "iqn.2026-11.io.sanderling:db"
    assert api.client.post("/v1/disks", json={"name": "other", "size_bytes": GIB, "iqn": held}).status_code == 202
    answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB})
    assert answer.status_code == 202, answer.text
    made = api.client.get("/v1/disks/db").json()
    assert made["iqn"] == f"{held}-{made['id'][:8]}"


def test_a_disk_larger_than_the_pool_is_refused(api: Api) -> None:
    answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": api.images.capacity_bytes + 512})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "size_bytes"
    assert "larger than the pool" in answer.json()["detail"]


def test_a_pool_that_has_grown_is_asked_again_before_a_disk_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, capacity_age_s=3600.0) as api:
        api.disk("one")
        api.images.capacity_bytes *= 2
        answer = api.client.post("/v1/disks", json={"name": "two", "size_bytes": api.images.capacity_bytes})
        assert answer.status_code == 202, answer.text


@pytest.mark.rows("W-PA-24")
def test_a_dry_run_returns_the_plan_with_its_addresses_and_changes_nothing(api: Api) -> None:
    made(api, "old", started=True)
    before = api.tables()
    answer = api.client.post("/v1/disks?dry_run=true", json={"name": "db", "size_bytes": GIB, "paths": 2})
    assert answer.status_code == 200
    assert answer.json()["plan"]["steps"]
    assert [p["address"] for p in answer.json()["disk"]["paths"]] == ["10.2.0.1", "10.1.0.2"]
    gone = api.client.delete("/v1/disks/old?dry_run=true&force=true&confirm=old")
    assert gone.status_code == 200
    assert any("all data of disk old" in risk for risk in gone.json()["plan"]["at_risk"])
    assert api.tables() == before
    assert len(api.bus.cast_ids) <= 1


def test_a_dry_run_refuses_what_the_real_thing_would(api: Api) -> None:
    api.disk("db")
    assert api.client.post("/v1/disks?dry_run=true", json={"name": "db", "size_bytes": GIB}).status_code == 409
    assert api.client.post("/v1/disks/db/start?dry_run=true").json()["type"] == "/problems/transition-refused"
    assert api.client.delete("/v1/disks/db?dry_run=true").json()["type"] == "/problems/busy"


def test_a_repeated_request_with_its_key_gets_the_same_operation(api: Api) -> None:
    body, key = {"name": "db", "size_bytes": GIB}, {"Idempotency-Key": "k1"}
    first = api.client.post("/v1/disks", json=body, headers=key)
    api.images.down = True  # nothing is checked again
    again = api.client.post("/v1/disks", json=body, headers=key)
    assert (again.status_code, again.headers["Location"]) == (202, first.headers["Location"])
    assert len(api.client.get("/v1/operations").json()["operations"]) == 1


def test_a_key_that_was_used_for_another_request_is_refused(api: Api) -> None:
    key = {"Idempotency-Key": "k1"}
    api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB}, headers=key)
    answer = api.client.post("/v1/disks", json={"name": "db2", "size_bytes": GIB}, headers=key)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/idempotency-mismatch")


def test_one_key_in_twenty_requests_at_once_is_one_operation(api: Api) -> None:
    def ask(_: int) -> tuple[int, str]:
        answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB}, headers={"Idempotency-Key": "k"})
        return answer.status_code, answer.headers.get("Location", "")

    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(ask, range(20)))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 202
    assert len(api.client.get("/v1/operations").json()["operations"]) == 1


def test_a_disk_moves_through_start_stop_and_delete(api: Api) -> None:
    made(api, "db", started=False)
    for action, state, event, started in (
        ("start", "starting", DiskEvent.STARTED, True),
        ("stop", "stopping", DiskEvent.STOPPED, False),
    ):
        answer = api.client.post(f"/v1/disks/db/{action}")
        assert answer.status_code == 202
        assert api.client.get("/v1/disks/db").json()["state"] == state
        finish(api, answer.json(), event, started=started)
    assert api.client.delete("/v1/disks/db").status_code == 202
    assert api.client.get("/v1/disks/db").json()["state"] == "deleting"


@pytest.mark.rows("W-PA-6")
def test_what_the_table_of_states_does_not_have_is_refused(api: Api) -> None:
    made(api, "db", started=False)
    answer = api.client.post("/v1/disks/db/stop")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/transition-refused")
    assert answer.json()["allowed"] == ["change", "delete", "roll_back", "snapshot", "start"]


@pytest.mark.rows("W-PA-9")
@pytest.mark.parametrize(("queue_max", "refusal"), [(0, "busy"), (8, "transition-refused")])
def test_of_twenty_starts_of_one_disk_at_once_one_is_accepted(tmp_path: Path, queue_max: int, refusal: str) -> None:
    with running(tmp_path, queue_max=queue_max) as api:
        made(api, "db", started=False)
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: api.client.post("/v1/disks/db/start"), range(20)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 19
    assert {answer.json()["type"] for answer in answers if answer.status_code == 409} == {f"/problems/{refusal}"}


def test_a_disk_with_an_open_operation_is_busy_and_names_it_where_none_may_wait(tmp_path: Path) -> None:
    with running(tmp_path, queue_max=0) as api:
        operation = api.disk("db")
        for answer in (api.client.post("/v1/disks/db/start"), api.client.delete("/v1/disks/db")):
            assert (answer.status_code, answer.json()["type"]) == (409, "/problems/busy")
            assert answer.json()["operation_id"] == operation["id"]


def test_a_started_disk_is_deleted_only_by_force_and_with_its_name(api: Api) -> None:
    made(api, "db", started=True)
    refused = api.client.delete("/v1/disks/db")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/in-use")
    for confirm in ("", "&confirm=dc"):
        unconfirmed = api.client.delete(f"/v1/disks/db?force=true{confirm}")
        assert (unconfirmed.status_code, unconfirmed.json()["errors"][0]["field"]) == (422, "confirm")
    assert api.client.get("/v1/disks/db").json()["state"] == "started"
    accepted = api.client.delete("/v1/disks/db?force=true&confirm=db")
    assert accepted.status_code == 202
    assert "await_released" in [step["name"] for step in accepted.json()["steps"]]


def test_a_disk_with_connections_is_deleted_only_by_force(api: Api) -> None:
    operation = made(api, "db", started=False)
    serve(api, operation["resource_id"], "node-a", Connection("iqn.1993-08.org.debian:01:x", "10.1.0.99", 40000, "10.1.0.1"))
    refused = api.client.delete("/v1/disks/db")
    assert (refused.status_code, refused.json()["initiators"]) == (409, ["iqn.1993-08.org.debian:01:x"])
    assert api.client.delete("/v1/disks/db?force=true&confirm=db").status_code == 202


def test_a_failed_disk_is_deleted_without_force_unless_it_may_be_served(api: Api) -> None:
    for name, started in (("broken", False), ("wanted", True), ("held", False)):
        operation = api.disk(name)
        finish(api, operation, DiskEvent.FAIL, started=started)
        if name == "held":
            serve(api, operation["resource_id"], "node-a")
    for name in ("wanted", "held"):
        refused = api.client.delete(f"/v1/disks/{name}")
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/in-use")
    assert api.client.delete("/v1/disks/broken").status_code == 202


def test_deleting_asks_coordination_and_says_so_when_it_is_away(api: Api) -> None:
    made(api, "db", started=False)
    api.coordination.down = True
    answer = api.client.delete("/v1/disks/db")
    assert (answer.status_code, answer.json()["dependency"]) == (503, "coordination")
    assert api.client.get("/v1/disks/db").json()["state"] == "stopped"


def test_a_change_with_if_match_is_refused_once_the_disk_has_changed(api: Api) -> None:
    made(api, "db", started=False)
    read = api.client.get("/v1/disks/db").headers["ETag"]
    started = api.client.post("/v1/disks/db/start", headers={"If-Match": read})
    assert started.status_code == 202
    finish(api, started.json(), DiskEvent.STARTED, started=True)
    answer = api.client.post("/v1/disks/db/stop", headers={"If-Match": read})
    assert (answer.status_code, answer.json()["type"]) == (412, "/problems/precondition-failed")
    now = api.client.get("/v1/disks/db").headers["ETag"]
    assert api.client.post("/v1/disks/db/stop", headers={"If-Match": f'"other", {now}'}).status_code == 202


@pytest.mark.rows("PA-13")
def test_a_disk_shows_who_serves_its_paths_or_that_it_is_not_known(api: Api) -> None:
    operation = made(api, "db", started=True, paths=2)
    paths = api.client.get("/v1/disks/db").json()["paths"]
    assert [(p["gateway"], p["status"]) for p in paths] == [(None, "down")] * 2
    owner = serve(api, operation["resource_id"], "node-a")
    paths = api.client.get("/v1/disks/db").json()["paths"]
    assert [(p["gateway"], p["status"]) for p in paths] == [("node-a", "serving")] * 2
    api.coordination.close_session(owner)  # the value still names it; only the lock counts
    paths = api.client.get("/v1/disks/db").json()["paths"]
    assert [(p["gateway"], p["status"]) for p in paths] == [(None, "down")] * 2
    api.coordination.down = True
    shown = api.client.get("/v1/disks/db")
    assert shown.status_code == 200
    assert [(p["gateway"], p["status"]) for p in shown.json()["paths"]] == [(None, "unknown")] * 2
    assert shown.json()["connected"] is None


def test_disks_are_listed_by_name_in_pages_and_filtered(api: Api) -> None:
    for name in ("d3", "d1", "e1", "d2"):
        api.disk(name, access="shared" if name == "d2" else "exclusive")
    names, link = [], "/v1/disks?limit=2&name=d"
    while link:
        page = api.client.get(link).json()
        names.append([disk["name"] for disk in page["disks"]])
        link = page["next"]
    assert names == [["d1", "d2"], ["d3"]]
    assert [d["name"] for d in api.client.get("/v1/disks?access=shared").json()["disks"]] == ["d2"]
    assert api.client.get("/v1/disks?state=started").json()["disks"] == []


@pytest.mark.rows("MC-7")
def test_a_broker_that_is_away_costs_a_delay_and_never_an_answer(api: Api) -> None:
    api.bus.fault = Unavailable("the broker is away")
    operation = api.disk("db")
    waited(api.bus.tried.is_set, within_s=10, what="the outbox tries")
    assert api.bus.cast_ids == []
    api.bus.fault = None
    waited(lambda: api.bus.cast_ids == [operation["id"]], within_s=10, what="the wake-up is cast")
    waited(lambda: not waiting(api), within_s=10, what="the outbox is empty")


@pytest.mark.parametrize("fault", [Unavailable("the broker is away"), TooLarge("not this one"), ZeroDivisionError()])
def test_whatever_goes_wrong_with_a_cast_the_outbox_goes_on(api: Api, fault: Exception) -> None:
    api.bus.fault = fault
    operation = api.disk("db")
    waited(api.bus.tried.is_set, within_s=10, what="the outbox tries")
    api.bus.fault = None
    waited(lambda: api.bus.cast_ids == [operation["id"]], within_s=10, what="the wake-up is cast")


def test_what_is_committed_is_told_to_the_other_processes(api: Api) -> None:
    before = api.news.told
    api.disk("db")
    waited(lambda: api.news.told > before, within_s=10, what="news is told")


def test_the_trace_of_a_request_goes_with_its_operation(api: Api) -> None:
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    answer = api.client.post("/v1/disks", json={"name": "db", "size_bytes": GIB}, headers={"traceparent": trace})
    assert answer.json()["traceparent"] == trace
    other = api.client.post("/v1/disks", json={"name": "d2", "size_bytes": GIB}, headers={"traceparent": "nonsense"})
    assert other.json()["traceparent"] not in {None, "nonsense"}


def test_a_disk_is_answered_while_another_request_waits_for_a_silent_pool(tmp_path: Path) -> None:
    with running(tmp_path, dependency_timeout_s=0.2) as api:
        api.disk("db")
        api.coordination.answers.clear()
        began = SystemClock().monotonic()
        answer = api.client.get("/v1/gateways")
        assert (answer.status_code, answer.json()["dependency"]) == (503, "coordination")
        assert "0.2 s" in answer.json()["detail"]
        assert SystemClock().monotonic() - began < 10
        assert api.client.get("/v1/disks").status_code == 200
