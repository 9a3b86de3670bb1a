"""Paths, subnets, gateways, leaders, operations, events, health: what is read, and what is said when it cannot be known."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab.parts.daemons import waited
from sanderling.errors import Problem, Unavailable
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from sanderling.model.leaders import Leader, leader_key
from sanderling.records import events
from tests.unit.api_app import Api, running


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


def gateway(api: Api, name: str) -> str:
    consul_session = api.coordination.open_session(name, check_ttl_s=60)
    value = Gateway(name=name, interfaces=("eth1",), refused={"d/0": "no interface eth9"})
    assert api.coordination.acquire(value.key, value.model_dump_json().encode(), consul_session=consul_session)
    return consul_session


def export(api: Api, consul_session: str, node: str, disk_id: str, index: int) -> None:
    value = Export(generation=1, counter=1, node=node, phase=ExportPhase.SERVING)
    key = ExportId(disk_id, index).key
    assert api.coordination.acquire(key, value.model_dump_json().encode(), consul_session=consul_session)


def test_paths_are_listed_in_pages_with_the_gateway_that_has_them(api: Api) -> None:
    one, two = api.disk("one", paths=2, access="shared"), api.disk("two", paths=2)
    export(api, gateway(api, "node-a"), "node-a", one["resource_id"], 2)
    export(api, gateway(api, "node-b"), "node-b", two["resource_id"], 0)
    found, link = [], "/v1/paths?limit=3"
    while link:
        page = api.client.get(link).json()
        found += [(p["disk"], p["index"], p["gateway"], p["status"]) for p in page["paths"]]
        link = page["next"]
    assert found == [
        ("one", 1, None, "stopped"),
        ("one", 2, "node-a", "serving"),
        ("two", 1, "node-b", "serving"),
        ("two", 2, "node-b", "serving"),
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("disk=two", [("two", 1), ("two", 2)]),
        ("address=10.2.0.1", [("one", 2)]),
        ("gateway=node-b", [("two", 1), ("two", 2)]),
        ("gateway=node-b&limit=1", [("two", 1)]),
        ("gateway=node-z", []),
    ],
)
def test_paths_are_filtered(api: Api, query: str, expected: list[tuple[str, int]]) -> None:
    api.disk("one", paths=2)
    two = api.disk("two", paths=2)
    export(api, gateway(api, "node-b"), "node-b", two["resource_id"], 0)
    assert [(p["disk"], p["index"]) for p in api.client.get(f"/v1/paths?{query}").json()["paths"]] == expected


def test_without_coordination_paths_are_unknown_and_a_question_about_gateways_cannot_be_answered(api: Api) -> None:
    api.disk("one")
    api.coordination.down = True
    assert [p["status"] for p in api.client.get("/v1/paths").json()["paths"]] == ["unknown"]
    for link in ("/v1/paths?gateway=node-a", "/v1/gateways", "/v1/gateways/node-a", "/v1/leaders", "/v1/leaders/statistics"):
        answer = api.client.get(link)
        assert (answer.status_code, answer.json()["type"], answer.json()["dependency"]) == (
            503,
            "/problems/unavailable",
            "coordination",
        )


@pytest.mark.rows("W-PA-21")
def test_a_value_that_cannot_be_read_makes_one_path_unknown_and_no_list_fail(api: Api) -> None:
    operation = api.disk("one")
    api.coordination.put(ExportId(operation["resource_id"], 0).key, b"nonsense")
    assert [p["status"] for p in api.client.get("/v1/paths").json()["paths"]] == ["unknown"]


def test_live_gateways_are_listed_with_what_they_hold_and_what_they_refused(api: Api) -> None:
    operation = api.disk("one")
    held = gateway(api, "node-b")
    gone = gateway(api, "node-a")
    export(api, held, "node-b", operation["resource_id"], 0)
    assert [g["name"] for g in api.client.get("/v1/gateways").json()["gateways"]] == ["node-a", "node-b"]
    api.coordination.close_session(gone)
    assert [g["name"] for g in api.client.get("/v1/gateways").json()["gateways"]] == ["node-b"]
    shown = api.client.get("/v1/gateways/node-b").json()
    assert shown["exports"] == [f"{operation['resource_id']}/0"]
    assert shown["refused"] == {"d/0": "no interface eth9"}


def test_a_gateway_whose_value_cannot_be_read_is_left_out_and_no_list_fails(api: Api) -> None:
    gateway(api, "node-b")
    other = api.coordination.open_session("node-a", check_ttl_s=60)
    assert api.coordination.acquire("nodes/node-a", b"nonsense", consul_session=other)
    answer = api.client.get("/v1/gateways")
    assert (answer.status_code, [g["name"] for g in answer.json()["gateways"]]) == (200, ["node-b"])
    assert api.client.get("/v1/gateways/node-b").status_code == 200


@pytest.mark.rows("W-LE-10")
def test_nobody_leads_is_told_from_cannot_know(api: Api) -> None:
    assert api.client.get("/v1/leaders").json() == {"leaders": []}
    assert api.client.get("/v1/leaders/statistics").json() == {"service": "statistics", "leader": None}
    leader = Leader(node="node-a", term=3, since=api.clock.wall())
    consul_session = api.coordination.open_session("l", check_ttl_s=60)
    assert api.coordination.acquire(leader_key("statistics"), leader.to_value(), consul_session=consul_session)
    assert api.client.get("/v1/leaders/statistics").json()["leader"]["node"] == "node-a"
    api.coordination.close_session(consul_session)
    assert api.client.get("/v1/leaders").json() == {"leaders": [{"service": "statistics", "leader": None}]}
    api.coordination.down = True
    assert api.client.get("/v1/leaders/statistics").status_code == 503


def test_a_subnet_without_a_pool_hands_out_every_hosts_address(api: Api) -> None:
    for cidr, first, last in (
        ("10.7.0.0/29", "10.7.0.1", "10.7.0.6"),
        ("10.8.0.0/31", "10.8.0.0", "10.8.0.1"),
        ("fd00::/125", "fd00::1", "fd00::7"),
    ):
        name = f"s{first.replace('.', '-').replace(':', '-')}"
        made = api.client.post("/v1/subnets", json={"name": name, "cidr": cidr, "interface": "eth2"})
        assert made.status_code == 201
        assert api.client.get(made.headers["Location"]).json() == made.json()
        assert (made.json()["pool_first"], made.json()["pool_last"]) == (first, last)


def test_only_the_pool_is_handed_out(api: Api) -> None:
    pool = {"pool_first": "10.7.0.3", "pool_last": "10.7.0.4"}
    assert api.client.post("/v1/subnets", json={"name": "s", "cidr": "10.7.0.0/24", "interface": "e", **pool}).status_code == 201
    answers = [api.client.post("/v1/disks", json={"name": f"d{n}", "size_bytes": 512, "subnets": ["s"]}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 409]
    addresses = [p["address"] for p in api.client.get("/v1/paths").json()["paths"]]
    assert addresses == ["10.7.0.3", "10.7.0.4"]


def test_a_subnet_is_removed_only_when_no_path_uses_it(api: Api) -> None:
    api.disk("db", subnets=["left"])
    refused = api.client.delete("/v1/subnets/left")
    assert (refused.status_code, refused.json()["type"], refused.json()["disk"]) == (409, "/problems/in-use", "db")
    assert api.client.delete("/v1/subnets/right").status_code == 204
    assert [s["name"] for s in api.client.get("/v1/subnets").json()["subnets"]] == ["left"]


@pytest.mark.rows("W-PA-22")
def test_operations_are_listed_newest_first_in_pages_and_filtered(api: Api) -> None:
    asked = [api.disk(f"d{n}")["id"] for n in range(3)]
    found, link = [], "/v1/operations?limit=2"
    while link:
        page = api.client.get(link).json()
        found += [operation["id"] for operation in page["operations"]]
        link = page["next"]
    assert found == asked[::-1]
    one = api.client.get(f"/v1/operations/{asked[0]}").json()
    by_disk = api.client.get(f"/v1/operations?resource_id={one['resource_id']}").json()["operations"]
    assert [operation["id"] for operation in by_disk] == [asked[0]]
    assert api.client.get("/v1/operations?state=failed").json()["operations"] == []


@pytest.mark.rows("W-PA-24")
def test_an_operation_that_nobody_has_begun_is_cancelled_at_once_and_its_disk_is_gone(api: Api) -> None:
    operation = api.disk("db")
    cancelled = api.client.post(f"/v1/operations/{operation['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert api.client.get("/v1/disks/db").status_code == 404
    assert api.disk("db", addresses=["10.1.0.1"])


@pytest.mark.rows("W-PA-23")
def test_the_history_is_read_in_pages_and_outlives_what_it_is_about(api: Api) -> None:
    operation = api.disk("db")
    api.client.post(f"/v1/operations/{operation['id']}/cancel")
    kinds, after = [], 0
    while True:
        page = api.client.get(f"/v1/events?after={after}&limit=2&resource_id={operation['resource_id']}").json()
        if not page["events"]:
            break
        kinds += [event["kind"] for event in page["events"]]
        assert page["last"] == page["events"][-1]["id"]
        after = page["last"]
    assert kinds == ["disk.creating", "operation.pending", "operation.cancelled", "disk.deleted"]


def test_pages_of_the_history_are_followed_by_their_links_and_know_no_marker(api: Api) -> None:
    operation = api.disk("db")
    api.client.post(f"/v1/operations/{operation['id']}/cancel")
    kinds, link = [], f"/v1/events?after=0&limit=2&resource_id={operation['resource_id']}"
    while link:
        page = api.client.get(link).json()
        kinds += [event["kind"] for event in page["events"]]
        link = page["next"]
    assert kinds == ["disk.creating", "operation.pending", "operation.cancelled", "disk.deleted"]
    refused = api.client.get("/v1/events?after=0&marker=7")
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "marker")


def test_the_streams_of_a_process_are_bounded(tmp_path: Path) -> None:
    with running(tmp_path, subscribers_max=1) as api:
        feed = api.app.state.context.feed
        feed._wakes.add(lambda: None)
        answer = api.client.get("/v1/events")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/exhausted")
        assert api.client.get("/v1/events?after=0").status_code == 200


def test_a_stream_does_not_begin_at_what_is_no_event(api: Api) -> None:
    for given in ("x", "-1", "²", str(2**64)):
        answer = api.client.get("/v1/events", headers={"Last-Event-ID": given.encode()})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Last-Event-ID")


def test_news_from_another_process_makes_the_feed_look(tmp_path: Path) -> None:
    with running(tmp_path, events_interval_s=600.0) as api:
        feed, woken = api.app.state.context.feed, threading.Event()
        feed._wakes.add(woken.set)
        for look in (feed.look, api.news.listeners[0]):
            woken.clear()
            with api.records.begin() as session:
                events.append(session, "test.happened", at=api.clock.wall(), actor="another process")
            look()
            waited(woken.is_set, within_s=10, what="streams are woken")


def test_a_process_says_that_it_lives_and_which_part_it_cannot_reach(api: Api) -> None:
    assert api.client.get("/readyz").json()["ready"] is True
    api.coordination.down = api.images.down = True
    assert api.client.get("/healthz").status_code == 200
    answer = api.client.get("/readyz")
    assert answer.status_code == 503
    assert {name: part["ready"] for name, part in answer.json()["parts"].items()} == {
        "records": True,
        "coordination": False,
        "images": False,
    }


def test_metrics_count_requests_by_route_and_show_the_outbox(api: Api) -> None:
    api.bus.fault = Unavailable("the broker is away")
    api.disk("db")
    api.client.get("/v1/disks/db")
    api.client.get("/v1/disks/unheard-of")
    text = api.client.get("/metrics").text
    assert 'sanderling_http_requests_total{method="GET",route="/v1/disks/{disk}",status="404"} 1.0' in text
    assert "sanderling_outbox_waiting 1.0" in text
    assert 'sanderling_disks{state="creating"} 1.0' in text
    assert "unheard-of" not in text


def test_every_problem_has_a_page(api: Api) -> None:
    for code in Problem.by_code:
        page = api.client.get(f"/problems/{code}")
        assert page.status_code == 200
        assert code in page.text


def test_the_openapi_document_names_the_problems_of_every_operation(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    create = document["paths"]["/v1/disks"]["post"]["responses"]
    assert set(create) >= {"202", "400", "401", "403", "409", "412", "413", "422", "500", "503"}
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ProblemDocument"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_openapi_document_says_which_routes_need_no_token(api: Api) -> None:
    anonymous = {"Authorization": ""}
    for path, methods in api.client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            asked = api.client.request(method, path.replace("{code}", "not-found"), headers=anonymous)
            assert (asked.status_code == 401) == bool(operation["security"]), f"{method} {path}"
