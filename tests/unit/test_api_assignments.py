"""/v1/assignments: what is planned is what is done, only while it holds, and every refusal says what to mend."""

import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sanderling.records import events, gaps
from sanderling.records.tokens import Role
from tests.unit.api_app import Api, running
from tests.unit.api_site import Site

PLAN = "/v1/assignments?dry_run=true"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


@pytest.fixture
def site(api: Api) -> Site:
    return placed(api)


def placed(api: Api) -> Site:
    """Two gateways, one of which serves everything: an exclusive disk with two paths, and two with one."""
    built = Site(api, "node-a", "node-b")
    built.disk("db", "node-a", paths=2)
    built.disk("log", "node-a")
    built.disk("web", "node-a")
    return built


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def field(answer: Any) -> str:
    assert problem(answer) == (422, "invalid-input"), answer.text
    return str(answer.json()["errors"][0]["field"])


@pytest.mark.rows("PA-1", "PA-22", "W-PA-24")
def test_a_dry_run_shows_the_moves_in_order_what_each_risks_and_what_comes_of_them(site: Site) -> None:
    before = site.api.tables()
    plan = site.post(PLAN, {"planner": "average"}, status=200)
    assert [(move["from"], move["to"]) for move in plan["moves"]] == [("node-a", "node-b")]
    assert (plan["before"]["exports"], plan["after"]["exports"]) == ({"node-a": 3, "node-b": 0}, {"node-a": 2, "node-b": 1})
    assert plan["after"]["spread"] == 1
    assert plan["score"] == {"ok": True, "worst": None, "losses": {}, "unserved": {"count": 0, "exports": []}}
    assert plan["moves"][0]["disk"] in plan["moves"][0]["risk"]
    assert plan["moves"][0]["expected_gap_s"] is None
    now = site.api.tables()
    assert now.pop("plans") != before.pop("plans")
    assert now == before


@pytest.mark.rows("PA-21")
def test_a_plan_is_applied_by_its_id_and_moves_what_it_showed(site: Site) -> None:
    plan = site.post(PLAN, {"planner": "average"}, status=200)
    operation = site.post("/v1/assignments", {"plan_id": plan["plan_id"]})
    assert (operation["kind"], operation["resource"]) == ("paths.assign", f"/v1/assignments/{operation['id']}")
    shown = site.get(operation["resource"])
    assert shown["counts"] == {"pending": 1, "moving": 0, "succeeded": 0, "failed": 0, "cancelled": 0}
    assert [(m["disk"], m["to"]) for m in plan["moves"]] == [(m["disk"], m["to"]) for m in shown["moves"]]


def test_paths_are_moved_without_a_plan_before_too(site: Site) -> None:
    answer = site.api.client.post("/v1/assignments", json={"planner": "average"})
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/v1/operations/{answer.json()['id']}")
    assert len(site.moves(answer.json()["id"])) == 1


@pytest.mark.rows("PA-2", "PA-6", "PA-25")
def test_chosen_paths_go_to_the_chosen_gateway_and_what_moves_together_is_one_entry_that_says_so(site: Site) -> None:
    first, second = site.address("db", 1), site.address("db", 2)
    plan = site.post(PLAN, {"planner": "manual", "paths": [first], "gateway": "node-b"}, status=200)
    move = plan["moves"][0]
    assert (len(plan["moves"]), move["paths"], move["together"], move["to"]) == (1, [first, second], True, "node-b")
    assert plan["notes"] == [f"disk db is exclusive, its paths move together: {second} too"]
    both = site.post(PLAN, {"planner": "manual", "paths": [first, second], "gateway": "node-b"}, status=200)
    assert (both["moves"], both["notes"]) == (plan["moves"], [])


@pytest.mark.rows("PA-4", "PA-5")
def test_each_chosen_path_is_on_record_from_the_start_as_the_list_of_paths_has_it(site: Site) -> None:
    listed = {path["address"]: path for path in site.get("/v1/paths")["paths"]}
    chosen = [site.address("web"), site.address("log")]
    operation = site.post("/v1/assignments", {"planner": "manual", "paths": chosen, "gateway": "node-b"})
    shown = site.get(operation["resource"])
    assert (shown["requested_by"], shown["started_at"]) == ("a-admin", None)
    entries = {move["paths"][0]: (move["from"], move["disk"], move["disk_id"], move["to"]) for move in shown["moves"]}
    assert entries == {
        address: (listed[address]["gateway"], listed[address]["disk"], listed[address]["disk_id"], "node-b") for address in chosen
    }


@pytest.mark.rows("PA-17")
def test_what_is_under_way_or_not_started_cannot_be_assigned(site: Site) -> None:
    site.disk("cold", started=False)
    first = site.post("/v1/assignments", {"planner": "average"})
    name = site.moves(first["id"])[0].disk_name
    site.begin(first["id"], 0)
    elsewhere = site.post(PLAN, {"planner": "manual", "paths": [site.address(name)], "gateway": "node-b"}, status=200)
    assert problem(site.api.client.post("/v1/assignments", json={"plan_id": elsewhere["plan_id"]})) == (409, "busy")
    site.finish(first["id"])
    assert problem(site.api.client.post("/v1/assignments", json={"plan_id": elsewhere["plan_id"]})) == (409, "plan-outdated")
    site.drain("node-a")
    candidates = {move["disk"] for move in site.post(PLAN, {"planner": "average"}, status=200)["moves"]}
    assert candidates == {"db", "log", "web"} - {name}


@pytest.mark.rows("PA-24")
def test_chosen_paths_without_a_gateway_are_placed_as_well_as_possible(site: Site) -> None:
    plan = site.post(PLAN, {"planner": "average", "paths": [site.address("web")]}, status=200)
    assert [(move["disk"], move["to"]) for move in plan["moves"]] == [("web", "node-b")]


def test_paths_of_a_shared_disk_move_one_by_one(site: Site) -> None:
    site.disk("big", "node-a", "node-b", access="shared")
    plan = site.post(PLAN, {"planner": "manual", "paths": [site.address("big", 1)], "gateway": "node-b"}, status=200)
    assert [(move["disk"], move["index"], move["together"]) for move in plan["moves"]] == [("big", 1, False)]
    assert "1 other path" in plan["moves"][0]["risk"]


@pytest.mark.rows("PA-20", "W-PA-6", "W-PA-26")
@pytest.mark.parametrize(
    "asked",
    [
        {"planner": "average"},
        {"planner": "average", "paths": ["10.1.0.1"]},
        {"planner": "manual", "paths": ["10.1.0.1"], "gateway": "node-a"},
    ],
)
def test_nothing_to_do_is_said_at_once_and_leaves_nothing_behind(api: Api, asked: dict[str, Any]) -> None:
    site = Site(api, "node-a", "node-b")
    site.disk("db", "node-a")
    done = site.post("/v1/assignments", asked, status=200)
    assert (done["moves"], done["dry_run"]) == ([], False)
    assert "nothing to do" in done["notes"][-1]
    plan = site.post(PLAN, asked, status=200)
    again = site.post("/v1/assignments", {"plan_id": plan["plan_id"]}, status=200)
    assert (plan["moves"], again["moves"], again["plan_id"]) == ([], [], plan["plan_id"])
    assert site.get("/v1/assignments") == {"assignments": [], "next": None}


def test_what_is_there_already_is_left_out_and_said(site: Site) -> None:
    site.serve("web", "node-b")
    wanted = [site.address("web"), site.address("log")]
    plan = site.post(PLAN, {"planner": "manual", "paths": wanted, "gateway": "node-b"}, status=200)
    assert [move["disk"] for move in plan["moves"]] == ["log"]
    assert plan["notes"] == [f"disk web: {wanted[0]} is on node-b already"]


@pytest.mark.rows("W-PA-6")
def test_a_plan_that_cannot_help_says_so_and_not_that_all_is_well(site: Site) -> None:
    site.serve("db", None)
    site.mark("db", avoid=("node-a", "node-b"))
    plan = site.post(PLAN, {"planner": "average", "paths": [site.address("db"), site.address("db", 2)]}, status=200)
    assert plan["notes"] == [
        "1 export stays where nobody should serve, the first of disk db: every gateway that is in use is to be avoided or cut off"
    ]
    for name in ("node-a", "node-b"):
        site.leave(name)
    done = site.post("/v1/assignments", {"planner": "average"}, status=200)
    assert "3 exports stay" in done["notes"][0]
    assert "no gateway is in use" in done["notes"][0]


def test_a_plan_names_what_is_served_where_it_is_to_be_avoided_and_has_nowhere_to_go(site: Site) -> None:
    site.disk("extra", "node-b")
    site.disk("more", "node-b")
    site.mark("db", avoid=("node-a", "node-b"))
    plan = site.post(PLAN, {"planner": "average", "paths": [site.address("db")]}, status=200)
    stays = (
        "1 export stays where nobody should serve, the first of disk db: every gateway that is in use is to be avoided or cut off"
    )
    assert stays in plan["notes"]
    assert not any("nothing to do" in note for note in plan["notes"])
    site.mark("db", avoid=("node-b",))
    assert "nothing to do" in site.post(PLAN, {"planner": "average", "paths": [site.address("log")]}, status=200)["notes"][-1]


def test_a_move_against_a_pin_is_done_and_said(site: Site) -> None:
    site.mark("web", pin="node-a")
    plan = site.post(PLAN, {"planner": "manual", "paths": [site.address("web")], "gateway": "node-b"}, status=200)
    assert plan["notes"] == ["disk web is pinned to node-a: balancing may move it back"]
    assert len(plan["moves"]) == 1


@pytest.mark.rows("W-PA-9")
def test_of_many_assignments_at_once_one_is_taken_and_the_others_are_told_which(site: Site) -> None:
    plan = site.post(PLAN, {"planner": "average"}, status=200)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: site.api.client.post("/v1/assignments", json={"plan_id": plan["plan_id"]}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
    taken = next(answer.json()["id"] for answer in answers if answer.status_code == 202)
    assert {answer.json()["operation_id"] for answer in answers if answer.status_code == 409} == {taken}
    assert len(site.get("/v1/assignments")["assignments"]) == 1


CHANGES: list[tuple[Callable[[Site], object], dict[str, Any]]] = [
    (lambda site: site.serve("web", "node-b"), {"what": "export", "was": "node-a", "is": "node-b"}),
    (lambda site: site.serve("db", None), {"what": "export", "was": "node-a", "is": "nobody"}),
    (lambda site: site.stop("log"), {"what": "export", "was": "node-a", "is": "not started"}),
    (lambda site: site.disk("new", None), {"what": "export", "was": "not started", "is": "nobody"}),
    (lambda site: site.leave("node-b"), {"what": "gateway", "gateway": "node-b", "was": "online", "is": "offline"}),
    (lambda site: site.arrive("node-c"), {"what": "gateway", "gateway": "node-c", "was": "offline", "is": "online"}),
    (
        lambda site: site.arrive("node-b", withdrawing=True),
        {"what": "gateway", "gateway": "node-b", "was": "online", "is": "offline"},
    ),
    (lambda site: site.drain("node-b"), {"what": "drain", "gateway": "node-b", "was": "in use", "is": "out of use"}),
    (lambda site: site.mark("db", pin="node-a"), {"what": "pin", "was": None, "is": "node-a"}),
    (lambda site: site.mark("db", avoid=("node-b",)), {"what": "avoid", "was": None, "is": ["node-b"]}),
]


@pytest.mark.rows("W-PA-19")
@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[str(expected) for _, expected in CHANGES])
def test_a_plan_is_refused_with_the_difference_once_what_it_was_made_from_has_changed(
    site: Site, change: Callable[[Site], object], expected: dict[str, Any]
) -> None:
    plan = site.post(PLAN, {"planner": "average"}, status=200)
    change(site)
    before = site.get("/v1/assignments")
    for link in ("/v1/assignments", PLAN):
        answer = site.api.client.post(link, json={"plan_id": plan["plan_id"]})
        assert problem(answer) == (409, "plan-outdated")
        assert [expected.items() <= found.items() for found in answer.json()["changes"]] == [True]
        assert f"was {expected['was']} and is {expected['is']}; plan again" in answer.json()["detail"]
    assert site.get("/v1/assignments") == before


def test_a_plan_that_is_too_old_is_refused_and_gone_when_the_next_is_made(tmp_path: Path) -> None:
    with running(tmp_path, plan_keep_s=1.0) as api:
        site = Site(api, "node-a")
        plan = site.post(PLAN, {"planner": "average"}, status=200)
        site.post("/v1/assignments", {"plan_id": plan["plan_id"]}, status=200)
        with api.records.begin() as session:
            session.connection().exec_driver_sql("UPDATE plans SET created_at = '2000-01-01 00:00:00'")
        aged = api.client.post("/v1/assignments", json={"plan_id": plan["plan_id"]})
        assert (problem(aged), aged.json()["plan_id"]) == ((409, "plan-outdated"), plan["plan_id"])
        assert "older than the 1 s" in aged.json()["detail"]
        kept = site.post(PLAN, {"planner": "average"}, status=200)
        assert problem(api.client.post("/v1/assignments", json={"plan_id": plan["plan_id"]})) == (404, "not-found")
        site.post("/v1/assignments", {"plan_id": kept["plan_id"]}, status=200)


@pytest.mark.rows("W-PA-7", "W-PA-18", "W-PA-19")
@pytest.mark.parametrize(
    ("body", "wrong", "said"),
    [
        ({}, "planner", "is required"),
        ({"planner": "best"}, "planner", "best"),
        ({"planner": "manual", "gateway": "node-b"}, "paths", "is required"),
        ({"planner": "manual", "paths": ["10.1.0.1"]}, "gateway", "is required"),
        ({"planner": "average", "gateway": "node-b"}, "gateway", "manual"),
        ({"planner": "average", "plan_id": "x"}, "plan_id", "contradicts"),
        ({"planner": "average", "paths": []}, "paths", "must have at least 1 entry"),
        ({"planner": "average", "paths": ["10.1.0.1; reboot"]}, "paths[0]", "not an IP address"),
        ({"planner": "average", "paths": ["10.1.0.1", "10.9.9.9"]}, "paths[1]", "10.9.9.9 is not the address of any path"),
        ({"planner": "average", "paths": ["10.1.0.1", "10.1.0.1"]}, "paths[1]", "a second time"),
        ({"planner": "manual", "paths": ["10.1.0.1"], "gateway": "node-z"}, "gateway", "no gateway is called node-z"),
        ({"planner": "average", "pahts": []}, "pahts", "not known"),
        ({"planner": 1}, "planner", "string"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(site: Site, body: dict[str, Any], wrong: str, said: str) -> None:
    before = site.api.tables()
    for link in ("/v1/assignments", PLAN):
        answer = site.api.client.post(link, json=body)
        assert field(answer) == wrong
        assert said in answer.json()["errors"][0]["rule"]
        assert answer.json()["errors"][0]["fix"]
    assert site.api.tables() == before


def test_the_requests_that_the_guide_shows_are_understood(site: Site) -> None:
    guide = (Path(__file__).parents[2] / "docs/assignments.md").read_text().replace("\\\n", " ")
    asked = [shlex.split(line) for line in guide.splitlines() if line.startswith("curl ")]
    assert len(asked) == 3
    for words in asked:
        headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
        headers["Authorization"] = site.api.client.headers["Authorization"]
        content = words[words.index("-d") + 1].encode()
        form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl says when nothing else is said
        answer = site.api.client.post(words[-1].removeprefix("$URL"), content=content, headers=form | headers)
        errors = answer.json().get("errors", [])
        assert [error["field"] for error in errors if error["field"] not in {"paths[0]", "gateway"}] == [], answer.text


@pytest.mark.rows("PA-46", "W-PA-19")
def test_every_wrong_path_is_named_at_once(site: Site) -> None:
    site.disk("cold", started=False)
    stopped = site.address("cold")
    answer = site.api.client.post(PLAN, json={"planner": "average", "paths": [stopped, "10.9.9.9", "10.9.9.9"]})
    assert [error["field"] for error in answer.json()["errors"]] == ["paths[0]", "paths[1]", "paths[2]"]
    assert "disk cold, which is stopped" in answer.json()["errors"][0]["rule"]


@pytest.mark.rows("W-PA-19")
@pytest.mark.parametrize(
    ("change", "wrong", "said"),
    [
        (lambda site: site.leave("node-b"), "gateway", "node-b is offline"),
        (lambda site: site.drain("node-b"), "gateway", "node-b is drained"),
        (lambda site: site.arrive("node-b", withdrawing=True), "gateway", "stops"),
        (lambda site: site.mark("log", avoid=("node-b",)), "paths[1]", "disk log avoids node-b"),
        (lambda site: site.arrive("node-b", interfaces=("eth0",)), "paths[0]", "no working interface eth1"),
        (lambda site: site.arrive("node-b", front={"cut_off": ("eth1",)}), "paths[0]", "node-b is cut off on eth1"),
        (lambda site: site.arrive("node-b", store={"cut_off": True}), "gateway", "node-b is cut off from the image store"),
    ],
)
def test_a_gateway_that_cannot_have_the_paths_is_refused_with_the_reason(
    site: Site, change: Callable[[Site], None], wrong: str, said: str
) -> None:
    paths = [site.address("web"), site.address("log")]
    change(site)
    answer = site.api.client.post("/v1/assignments", json={"planner": "manual", "paths": paths, "gateway": "node-b"})
    assert field(answer) == wrong
    assert said in answer.json()["errors"][0]["rule"]


@pytest.mark.rows("PA-15", "PA-23", "W-PA-9")
def test_one_assignment_at_a_time_and_where_none_may_wait_the_second_is_told_which(tmp_path: Path) -> None:
    with running(tmp_path, queue_max=0) as api:
        _second_is_told_which(placed(api))


def _second_is_told_which(site: Site) -> None:
    plan = site.post(PLAN, {"planner": "average"}, status=200)
    first = site.post("/v1/assignments", {"plan_id": plan["plan_id"]})
    site.serve(plan["moves"][0]["disk"], "node-b")
    for body in ({"planner": "average"}, {"plan_id": plan["plan_id"]}):
        answer = site.api.client.post("/v1/assignments", json=body)
        assert (problem(answer), answer.json()["operation_id"]) == ((409, "busy"), first["id"])
    drain = site.api.client.post("/v1/gateways/node-b/drain", json={"confirm": "node-b"})
    assert (problem(drain), drain.json()["operation_id"]) == ((409, "busy"), first["id"])
    assert f"operation {first['id']} (paths.assign) on assignments has not ended" in drain.json()["detail"]
    assert site.post(PLAN, {"planner": "average"}, status=200)["plan_id"]


def test_a_repeat_with_the_same_key_is_the_same_assignment(site: Site) -> None:
    headers = {"Idempotency-Key": "k"}
    asked = [site.api.client.post("/v1/assignments", json={"planner": "average"}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in asked] == [202, 202]
    assert asked[0].json()["id"] == asked[1].json()["id"]


@pytest.mark.rows("W-PA-24")
def test_an_assignment_that_nobody_has_begun_is_cancelled_with_its_moves(site: Site) -> None:
    operation = site.post("/v1/assignments", {"planner": "average"})
    cancelled = site.post(f"/v1/assignments/{operation['id']}/cancel")
    assert (cancelled["state"], cancelled["counts"]["cancelled"], cancelled["counts"]["pending"]) == ("cancelled", 1, 0)
    assert site.post("/v1/assignments", {"planner": "average"})["id"] != operation["id"]


@pytest.mark.rows("W-PA-23", "W-PA-22")
def test_the_history_lists_assignments_and_drains_newest_first_with_their_moves_by_state(site: Site) -> None:
    first = site.post("/v1/assignments", {"planner": "average"})
    site.finish(first["id"])
    second = site.post("/v1/gateways/node-b/drain", {"confirm": "node-b"})
    assert problem(site.api.client.get(f"/v1/assignments/{site.disk_ids['db']}")) == (404, "not-found")
    page = site.get("/v1/assignments?limit=1")
    assert [one["id"] for one in page["assignments"]] == [second["id"]]
    page = site.get(page["next"])
    assert [(one["id"], one["counts"]["succeeded"]) for one in page["assignments"]] == [(first["id"], 1)]
    assert [one["id"] for one in site.get("/v1/assignments?state=succeeded")["assignments"]] == [first["id"]]
    of_disk = site.get("/v1/operations?kind=disk.create")["operations"][0]["id"]
    assert problem(site.api.client.get(f"/v1/assignments/{of_disk}")) == (404, "not-found")


def test_the_moves_of_an_assignment_are_read_in_pages_and_by_state(site: Site) -> None:
    for number in range(4):
        site.disk(f"more-{number}", "node-a")
    operation = site.post("/v1/assignments", {"planner": "average"})
    found, link = [], f"/v1/assignments/{operation['id']}?limit=2"
    while link:
        page = site.get(link)
        found += [move["position"] for move in page["moves"]]
        link = page["next"]
    assert found == [0, 1, 2]
    site.begin(operation["id"], 1)
    moving = site.get(f"/v1/assignments/{operation['id']}?state=moving")
    assert [move["position"] for move in moving["moves"]] == [1]
    assert field(site.api.client.get(f"/v1/assignments/{operation['id']}?marker=x")) == "marker"


@pytest.mark.rows("W-PA-20", "W-PA-23")
def test_the_history_of_a_move_names_its_disk_and_both_gateways(site: Site) -> None:
    operation = site.post("/v1/assignments", {"planner": "average"})
    site.finish(operation["id"])
    move = site.moves(operation["id"])[0]
    history = site.get(f"/v1/events?after=0&resource_id={move.disk_id}")["events"]
    told = [(event["kind"], event["data"]) for event in history if event["kind"].startswith("move.")]
    assert [kind for kind, _ in told] == ["move.moving", "move.succeeded"]
    assert {(data["disk"], data["from"], data["to"]) for _, data in told} == {(move.disk_name, "node-a", "node-b")}


@pytest.mark.rows("PA-47", "W-PA-22")
def test_without_a_running_path_gateways_and_assignments_are_listed_all_the_same(site: Site) -> None:
    operation = site.post("/v1/assignments", {"planner": "average"})
    for name in ("db", "log", "web"):
        site.serve(name, None)
        site.delete(name)
    assert site.get("/v1/paths")["paths"] == []
    assert [gateway["name"] for gateway in site.get("/v1/gateways")["gateways"]] == ["node-a", "node-b"]
    assert [one["state"] for one in site.get("/v1/assignments")["assignments"]] == ["pending"]
    assert site.get(f"/v1/assignments/{operation['id']}")["counts"]["pending"] == 1


def test_the_last_assignment_is_undone_by_its_moves_the_other_way_round(site: Site) -> None:
    first = site.post("/v1/assignments", {"planner": "average"})
    site.finish(first["id"])
    moved = site.moves(first["id"])[0]
    plan = site.post(f"/v1/assignments/{first['id']}/undo?dry_run=true", status=200)
    assert [(move["disk"], move["from"], move["to"]) for move in plan["moves"]] == [(moved.disk_name, "node-b", "node-a")]
    undone = site.post(f"/v1/assignments/{first['id']}/undo")
    site.finish(undone["id"])
    answer = site.api.client.post(f"/v1/assignments/{first['id']}/undo")
    assert (problem(answer), answer.json()["newest"]) == ((409, "transition-refused"), undone["id"])
    again = site.post(f"/v1/assignments/{undone['id']}/undo?dry_run=true", status=200)
    assert [(move["from"], move["to"]) for move in again["moves"]] == [("node-a", "node-b")]
    site.post("/v1/assignments", {"plan_id": again["plan_id"]})


def test_only_what_was_moved_is_moved_back(site: Site) -> None:
    site.disk("more", "node-a")
    first = site.post("/v1/assignments", {"planner": "average"})
    site.finish(first["id"], fails=(0,))
    plan = site.post(f"/v1/assignments/{first['id']}/undo?dry_run=true", status=200)
    assert [move["disk"] for move in plan["moves"]] == [site.moves(first["id"])[1].disk_name]


def test_an_undo_that_is_not_possible_says_why(site: Site) -> None:
    first = site.post("/v1/assignments", {"planner": "average"})
    undo = f"/v1/assignments/{first['id']}/undo"
    assert problem(site.api.client.post(undo + "?dry_run=true")) == (409, "transition-refused")
    assert problem(site.api.client.post(undo)) == (409, "busy")
    site.finish(first["id"])
    name = site.moves(first["id"])[0].disk_name
    obstacles: list[tuple[Callable[[], None], Callable[[], None], str]] = [
        (lambda: site.drain("node-a"), lambda: site.drain("node-a", is_drained=False), "node-a is drained"),
        (lambda: site.mark(name, avoid=("node-a",)), lambda: site.mark(name), "it avoids node-a now"),
        (lambda: site.serve(name, "node-a"), lambda: site.serve(name, "node-b"), "it is on node-a now"),
        (lambda: site.arrive("node-a", withdrawing=True), lambda: site.arrive("node-a"), "node-a is giving up"),
        (lambda: site.stop(name), lambda: None, "not started any more"),
    ]
    for change, mend, said in obstacles:
        change()
        answer = site.api.client.post(undo)
        assert problem(answer) == (409, "transition-refused")
        assert said in answer.json()["detail"]
        assert answer.json()["moves"][0]["disk_id"] == site.disk_ids[name]
        mend()


def test_an_assignment_of_which_nothing_succeeded_cannot_be_undone(site: Site) -> None:
    first = site.post("/v1/assignments", {"planner": "average"})
    site.finish(first["id"], fails=(0,))
    answer = site.api.client.post(f"/v1/assignments/{first['id']}/undo")
    assert problem(answer) == (409, "transition-refused")
    assert "moved nothing" in answer.json()["detail"]


def test_a_plan_tells_the_gap_to_expect_by_the_gaps_there_have_been(site: Site) -> None:
    site.measured(*[0.02] * 98, 0.5, 3.0)
    with site.api.records.begin() as session:
        events.append(session, "export.served", at=site.api.clock.wall(), actor="node-a", data={"client": "c"})
        events.append(session, "export.served", at=site.api.clock.wall(), actor="node-a", data={"gap_s": 4.5, "kind": "failover"})
    plan = site.post(PLAN, {"planner": "average"}, status=200)
    assert plan["moves"][0]["expected_gap_s"] == {"p50": 0.02, "p99": 3.0, "measured": 100}


def test_ordinary_reports_push_no_failover_out_of_what_is_measured(site: Site) -> None:
    with site.api.records.begin() as session:
        for data in ({"gap_s": 4.5, "kind": "failover"}, {"client": "a"}, {"gap_s": 0.1, "kind": "start"}, {}):
            events.append(session, "export.served", at=site.api.clock.wall(), actor="node-a", data=data)
        assert gaps.recent(session, limit=1).failovers == [4.5]


@pytest.mark.rows("PA-3")
@pytest.mark.parametrize(
    ("role", "planned", "read"), [(Role.READER, 403, 200), (Role.OPERATOR, 200, 200), (Role.ADMIN, 200, 200)]
)
def test_who_may_plan_and_who_may_only_look(site: Site, role: Role, planned: int, read: int) -> None:
    headers = {"Authorization": f"Bearer {site.api.secrets[role]}"}
    client = site.api.client
    assert client.post(PLAN, json={"planner": "average"}, headers=headers).status_code == planned
    for link in ("/v1/assignments", "/v1/score", "/v1/whatif?lose=node-a"):
        assert client.get(link, headers=headers).status_code == read


@pytest.mark.rows("PA-3")
def test_a_site_may_let_people_plan_who_may_not_apply_and_others_apply_their_plans(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"assignment:plan": "rule:reader"\n')
    with running(tmp_path, policy_file=str(file)) as api:
        site = Site(api, "node-a", "node-b")
        site.disk("db", "node-a")
        site.disk("log", "node-a")
        headers = {"Authorization": f"Bearer {api.secrets[Role.READER]}"}
        plan = api.client.post(PLAN, json={"planner": "average"}, headers=headers)
        assert plan.status_code == 200
        for link, body in (("/v1/assignments", {"plan_id": plan.json()["plan_id"]}), ("/v1/assignments/x/undo", None)):
            refused = api.client.post(link, json=body, headers=headers)
            assert (problem(refused), refused.json()["rule"]) == ((403, "forbidden"), "assignment:apply")
        assert len(site.moves(site.post("/v1/assignments", {"plan_id": plan.json()["plan_id"]})["id"])) == 1


@pytest.mark.rows("PA-3")
@pytest.mark.parametrize("way", ["operations", "assignments"])
@pytest.mark.parametrize(("ask", "right"), [("assignments", "assignment:apply"), ("gateways/node-a/drain", "gateway:drain")])
def test_who_may_not_ask_for_a_move_may_not_cancel_one_either_in_whatever_way(
    tmp_path: Path, way: str, ask: str, right: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(f'"{right}": "rule:admin"\n')
    with running(tmp_path, policy_file=str(file)) as api:
        site = Site(api, "node-a", "node-b")
        site.disk("db", "node-a")
        site.disk("log", "node-a")
        admin = {"Authorization": f"Bearer {api.secrets[Role.ADMIN]}"}
        body = {"planner": "average"} if ask == "assignments" else {"confirm": "node-a"}
        asked = api.client.post(f"/v1/{ask}", json=body, headers=admin)
        assert asked.status_code == 202, asked.text
        link = f"/v1/{way}/{asked.json()['id']}/cancel"
        operator = {"Authorization": f"Bearer {api.secrets[Role.OPERATOR]}"}
        refused = api.client.post(link, headers=operator)
        assert (problem(refused), refused.json()["rule"]) == ((403, "forbidden"), right)
        assert api.client.post(link, headers=admin).status_code == 202


def test_without_coordination_nothing_is_planned(site: Site) -> None:
    site.api.coordination.down = True
    for link in ("/v1/assignments", PLAN):
        assert problem(site.api.client.post(link, json={"planner": "average"})) == (503, "unavailable")
    assert site.get("/v1/assignments") == {"assignments": [], "next": None}


@pytest.mark.rows("PA-8", "PA-10", "PA-48", "PA-50", "PA-51", "PA-53")
def test_paths_show_where_they_are_going_and_are_filtered_while_they_move(site: Site) -> None:
    path, address = "/v1/paths", site.address("db", 2)
    operation = site.post("/v1/assignments", {"planner": "manual", "paths": [address, site.address("log")], "gateway": "node-b"})
    first = site.moves(operation["id"])[0].disk_name
    site.begin(operation["id"], 0)
    found = site.get(f"{path}?disk_contains=DB")["paths"]
    assert [(p["index"], p["gateway"], p["destination"], p["move"]) for p in found] == [
        (index, "node-a", "node-b", "moving" if first == "db" else "pending") for index in (1, 2)
    ]
    assert [(p["disk"], p["address"]) for p in site.get(f"{path}?address={address}")["paths"]] == [("db", address)]
    site.serve("log", None)
    log = site.get(f"{path}?disk_contains=oG")["paths"][0]
    assert (log["gateway"], log["status"], log["destination"]) == (None, "down", "node-b")
    site.finish(operation["id"])
    assert {(p["destination"], p["move"]) for p in site.get(path)["paths"]} == {(None, None)}


@pytest.mark.rows("PA-52")
def test_paths_show_the_consul_session_that_locks_them(site: Site) -> None:
    site.serve("log", None)
    shown = {p["disk"]: p["consul_session"] for p in site.get("/v1/paths")["paths"]}
    entry = site.api.coordination.get(f"exports/{site.disk_ids['web']}/0")
    assert entry is not None
    assert (shown["web"], shown["log"]) == (entry.consul_session, None)


@pytest.mark.rows("PA-49", "W-PA-21")
def test_keys_that_belong_to_no_disk_or_to_no_export_make_no_list_or_plan_fail(site: Site) -> None:
    for key in ("exports/gone/0", "exports/a/b/c", f"exports/{site.disk_ids['db']}/99", f"exports/{site.disk_ids['db']}/x"):
        assert site.api.coordination.put(key, b"nonsense")
    assert len(site.get("/v1/paths")["paths"]) == 4
    assert len(site.post(PLAN, {"planner": "average"}, status=200)["moves"]) == 1
    assert site.get("/v1/gateways")["gateways"]


@pytest.mark.rows("W-PA-25")
def test_a_plan_for_a_disk_never_moves_another_that_has_its_address_since(site: Site) -> None:
    address = site.address("log")
    plan = site.post(PLAN, {"planner": "manual", "paths": [address], "gateway": "node-b"}, status=200)
    site.delete("log")
    site.disk("other", "node-a")
    assert site.address("other") == address
    answer = site.api.client.post("/v1/assignments", json={"plan_id": plan["plan_id"]})
    assert problem(answer) == (409, "plan-outdated")
