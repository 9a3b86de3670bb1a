"""Draining, marks, what-if and the N-1 score: what would come of it is said before it is done."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sanderling.records import events
from sanderling.records.tokens import Role
from tests.unit.api_app import Api, running
from tests.unit.api_site import Site
from tests.unit.test_api_assignments import field, problem


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


@pytest.fixture
def site(api: Api) -> Site:
    """Three gateways with a disk each."""
    built = Site(api, "node-a", "node-b", "node-c")
    for name, owner in (("db", "node-a"), ("log", "node-b"), ("web", "node-c")):
        built.disk(name, owner)
    return built


def test_a_drain_is_shown_before_it_is_done(site: Site) -> None:
    before = site.api.tables()
    plan = site.post("/v1/gateways/node-a/drain?dry_run=true", status=200)
    assert [(move["disk"], move["from"]) for move in plan["moves"]] == [("db", "node-a")]
    assert plan["after"]["exports"]["node-a"] == 0
    assert (plan["needs_confirm"], plan["unplaced"], plan["exposed"]) == (False, [], [])
    assert site.api.tables() == before


def test_a_drain_that_leaves_everything_safe_needs_no_confirmation(site: Site) -> None:
    operation = site.post("/v1/gateways/node-a/drain")
    assert (operation["kind"], operation["resource_name"]) == ("gateway.drain", "node-a")
    assert [step["name"] for step in operation["steps"]] == ["mark", "plan_drain", "move_paths", "check_empty"]
    assert site.get(operation["resource"])["id"] == operation["id"]


def test_a_drain_that_one_more_loss_would_turn_into_an_outage_must_be_confirmed_and_says_which_disks(site: Site) -> None:
    site.drain("node-c")
    site.serve("web", "node-b")
    for body in (None, {}, {"confirm": None}):
        answer = site.api.client.post("/v1/gateways/node-a/drain", json=body)
        assert problem(answer) == (409, "confirmation-needed")
    told = answer.json()
    assert (told["confirm"], told["unplaced"]) == ("node-a", [])
    assert sorted(one["disk"] for one in told["exposed"]) == ["db", "log", "web"]
    assert all(name in told["detail"] for name in ("db", "log", "web"))
    plan = site.post("/v1/gateways/node-a/drain?dry_run=true", status=200)
    assert (plan["needs_confirm"], plan["score"]["ok"], plan["score"]["worst"]) == (True, False, "node-b")
    assert field(site.api.client.post("/v1/gateways/node-a/drain", json={"confirm": "node-b"})) == "confirm"
    site.post("/v1/gateways/node-a/drain", {"confirm": "node-a"})


def test_only_what_the_drain_itself_exposes_counts(api: Api) -> None:
    site = Site(api, "node-a", "node-b", "node-c")
    site.disk("db", "node-a")
    site.disk("tied", "node-b")
    site.mark("tied", avoid=("node-a", "node-c"))
    assert site.get("/v1/score")["ok"] is False
    site.post("/v1/gateways/node-a/drain")


def test_a_disk_that_avoids_every_other_gateway_would_stay_and_is_named(site: Site) -> None:
    site.mark("db", avoid=("node-b", "node-c"))
    answer = site.api.client.post("/v1/gateways/node-a/drain")
    assert problem(answer) == (409, "confirmation-needed")
    assert [one["disk"] for one in answer.json()["unplaced"]] == ["db"]
    plan = site.post("/v1/gateways/node-a/drain?dry_run=true", status=200)
    assert (plan["needs_confirm"], plan["moves"]) == (True, [])


def test_the_last_gateway_is_not_drained_unconfirmed(api: Api) -> None:
    site = Site(api, "node-a")
    site.disk("db", "node-a")
    answer = site.api.client.post("/v1/gateways/node-a/drain")
    assert (problem(answer), [one["disk"] for one in answer.json()["unplaced"]]) == ((409, "confirmation-needed"), ["db"])


def test_a_gateway_that_is_offline_can_be_drained_and_stays_in_the_list(site: Site) -> None:
    site.leave("node-c")
    site.serve("web", "node-a")
    site.post("/v1/gateways/node-c/drain")
    assert [g["name"] for g in site.get("/v1/gateways")["gateways"]] == ["node-a", "node-b"]
    site.drain("node-c")
    shown = {g["name"]: (g["live"], g["drained"]) for g in site.get("/v1/gateways")["gateways"]}
    assert shown == {"node-a": (True, False), "node-b": (True, False), "node-c": (False, True)}


@pytest.mark.parametrize("verb", ["drain", "undrain"])
def test_a_gateway_that_was_never_there_is_not_drained(site: Site, verb: str) -> None:
    assert problem(site.api.client.post(f"/v1/gateways/node-z/{verb}")) == (404, "not-found")


def test_an_undrain_is_an_operation_and_one_of_a_gateway_in_use_is_nothing_to_do(site: Site) -> None:
    done = site.post("/v1/gateways/node-a/undrain", status=200)
    assert "nothing to do" in done["notes"][0]
    site.arrive("node-a", front={"cut_off": ("eth1",)})
    assert "nothing to do" in site.post("/v1/gateways/node-a/undrain", status=200)["notes"][0]
    site.drain("node-a")
    assert site.post("/v1/gateways/node-a/undrain?dry_run=true", status=200)["drained"] is True
    operation = site.post("/v1/gateways/node-a/undrain")
    assert (operation["kind"], operation["resource"]) == ("gateway.undrain", "/v1/gateways/node-a")
    assert problem(site.api.client.post("/v1/gateways/node-a/undrain")) == (409, "busy")


@pytest.mark.parametrize("is_marked", [False, True])
def test_an_undrain_while_that_gateway_is_being_drained_is_told_of_the_drain(site: Site, is_marked: bool) -> None:
    operation = site.post("/v1/gateways/node-a/drain")
    site.drain("node-a", is_drained=is_marked)
    for link in ("/v1/gateways/node-a/undrain", "/v1/gateways/node-a/undrain?dry_run=true"):
        answer = site.api.client.post(link)
        assert (problem(answer), answer.json()["operation_id"]) == ((409, "busy"), operation["id"])
        assert f"operation {operation['id']} (gateway.drain) on node-a has not ended" in answer.json()["detail"]
    assert "nothing to do" in site.post("/v1/gateways/node-b/undrain", status=200)["notes"][0]
    site.post(f"/v1/assignments/{operation['id']}/cancel")
    site.post("/v1/gateways/node-a/undrain", status=202 if is_marked else 200)


def test_a_drain_while_that_gateway_is_being_undrained_is_told_of_the_undrain(site: Site) -> None:
    site.drain("node-a")
    operation = site.post("/v1/gateways/node-a/undrain")
    answer = site.api.client.post("/v1/gateways/node-a/drain")
    assert (problem(answer), answer.json()["operation_id"]) == ((409, "busy"), operation["id"])
    assert f"operation {operation['id']} (gateway.undrain) on node-a has not ended" in answer.json()["detail"]
    site.post("/v1/gateways/node-b/drain", {"confirm": "node-b"})
    site.post(f"/v1/operations/{operation['id']}/cancel")
    answer = site.api.client.post("/v1/gateways/node-a/drain")
    assert "(gateway.drain) on node-b has not ended" in answer.json()["detail"]


def test_a_repeated_drain_with_the_same_key_is_the_same_operation(site: Site) -> None:
    headers = {"Idempotency-Key": "k"}
    asked = [site.api.client.post("/v1/gateways/node-a/drain", headers=headers).json() for _ in range(2)]
    assert asked[0]["id"] == asked[1]["id"]


@pytest.mark.rows("PA-54")
def test_gateways_show_how_much_they_serve_and_whom_they_cannot_reach(api: Api) -> None:
    site = Site(api, "node-a", "node-b")
    site.disk("db", "node-a", paths=2)
    site.disk("big", "node-a", "node-b", access="shared")
    claimed = {"10.1.0.1": "02:00:00:00:00:01"}
    front = {"unreachable": {"eth1": ("node-b",)}, "cut_off": ("eth1",), "claimed": claimed}
    site.arrive("node-a", front=front, store={"answers": False, "cut_off": True})
    shown = {gateway["name"]: gateway for gateway in site.get("/v1/gateways")["gateways"]}
    assert (shown["node-a"]["counts"], shown["node-b"]["counts"]) == ({"exports": 2, "paths": 3}, {"exports": 1, "paths": 1})
    assert (shown["node-a"]["unreachable"], shown["node-a"]["cut_off"]) == ({"eth1": ["node-b"]}, ["eth1"])
    assert (shown["node-a"]["claimed"], shown["node-b"]["claimed"]) == (claimed, {})
    assert shown["node-a"]["image_store"] == {"answers": False, "cut_off": True}
    site.leave("node-b")
    assert [gateway["name"] for gateway in site.get("/v1/gateways")["gateways"]] == ["node-a"]


def test_what_a_loss_would_do_is_told(site: Site) -> None:
    told = site.get("/v1/whatif?lose=node-a&lose=node-b")
    assert told["lose"] == ["node-a", "node-b"]
    assert {(move["disk"], move["to"]) for move in told["moves"]["first"]} == {("db", "node-c"), ("log", "node-c")}
    assert (told["after"]["exports"], told["unserved"]["count"]) == ({"node-c": 3}, 0)
    everything = site.get("/v1/whatif?lose=node-a&lose=node-b&lose=node-c")
    assert (everything["unserved"]["count"], everything["moves"]["count"]) == (3, 0)
    assert {one["reason"] for one in everything["unserved"]["exports"]} == {"no gateway"}


def test_a_loss_of_what_does_not_live_is_refused_by_its_name(site: Site) -> None:
    assert field(site.api.client.get("/v1/whatif?lose=node-a&lose=node-z")) == "lose[1]"
    assert field(site.api.client.get("/v1/whatif")) == "lose"
    assert field(site.api.client.get("/v1/score?lose=node-a")) == "lose"
    assert field(site.api.client.get("/v1/paths?disk=a&disk=b")) == "disk"


def test_the_score_names_the_gateway_whose_loss_hurts_most(site: Site) -> None:
    assert site.get("/v1/score") == {"ok": True, "worst": None, "losses": {}, "unserved": {"count": 0, "exports": []}}
    site.mark("db", avoid=("node-b", "node-c"))
    score = site.get("/v1/score")
    assert (score["ok"], score["worst"]) == (False, "node-a")
    assert score["losses"]["node-a"]["exports"][0]["disk"] == "db"


def test_marks_are_set_whole_by_an_operation_and_shown_with_the_disk(site: Site) -> None:
    put = site.api.client.put("/v1/disks/db/marks", json={"pin": "node-a", "avoid": ["node-c"]})
    assert (put.status_code, put.json()["kind"], put.json()["resource"]) == (202, "disk.mark", f"/v1/disks/{site.disk_ids['db']}")
    assert put.headers["Location"] == f"/v1/operations/{put.json()['id']}"
    assert site.get("/v1/disks/db")["marks"] == {"pin": None, "avoid": []}
    site.mark("db", pin="node-a", avoid=("node-c",))
    assert site.get("/v1/disks/db")["marks"] == {"pin": "node-a", "avoid": ["node-c"]}


def test_marks_that_are_so_already_are_nothing_to_do(site: Site) -> None:
    site.mark("db", pin="node-a")
    same = site.api.client.put("/v1/disks/db/marks", json={"pin": "node-a"})
    assert (same.status_code, same.json()["notes"]) == (200, ["nothing to do: the disk is marked so already"])
    dry = site.api.client.put("/v1/disks/db/marks?dry_run=true", json={"avoid": ["node-a", "node-b", "node-c"]})
    assert (dry.status_code, dry.json()["was"]) == (200, {"pin": "node-a", "avoid": []})
    assert "every gateway that could be used is avoided" in dry.json()["notes"][0]
    assert site.get("/v1/disks/db")["marks"] == {"pin": "node-a", "avoid": []}


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"pin": "node-z"}, "pin"),
        ({"avoid": ["node-a", "node-z"]}, "avoid[1]"),
        ({"avoid": ["node-a", "node-a"]}, "avoid"),
        ({"pin": "node-a", "avoid": ["node-a"]}, "pin"),
        ({"pins": "node-a"}, "pins"),
        ({"pin": ""}, "pin"),
    ],
)
def test_wrong_marks_are_refused_by_their_field(site: Site, body: dict[str, object], wrong: str) -> None:
    assert field(site.api.client.put("/v1/disks/db/marks", json=body)) == wrong


def test_marks_that_somebody_else_has_changed_meanwhile_are_not_overwritten(site: Site) -> None:
    seen = site.api.client.get("/v1/disks/db").headers["ETag"]
    site.mark("db", pin="node-b")
    answer = site.api.client.put("/v1/disks/db/marks", json={"pin": "node-a"}, headers={"If-Match": seen})
    assert problem(answer) == (412, "precondition-failed")
    now = site.api.client.get("/v1/disks/db").headers["ETag"]
    assert site.api.client.put("/v1/disks/db/marks", json={"pin": "node-a"}, headers={"If-Match": now}).status_code == 202


@pytest.mark.parametrize("role", [Role.READER, Role.OPERATOR])
def test_a_reader_neither_drains_nor_marks(site: Site, role: Role) -> None:
    headers = {"Authorization": f"Bearer {site.api.secrets[role]}"}
    client, may = site.api.client, role is Role.OPERATOR
    assert client.post("/v1/gateways/node-a/drain?dry_run=true", headers=headers).status_code == (200 if may else 403)
    assert client.post("/v1/gateways/node-a/undrain", headers=headers).status_code == (200 if may else 403)
    assert client.put("/v1/disks/db/marks", json={"pin": "node-a"}, headers=headers).status_code == (202 if may else 403)


def test_metrics_tell_the_gaps_the_score_and_what_each_gateway_serves(site: Site) -> None:
    now = site.api.clock.wall()
    site.measured(0.02, 0.04, 0.9)
    with site.api.records.begin() as session:
        for kind, gap_s in (("failover", 3.5), ("restart", 0.3), ("move", 7.0)):
            events.append(session, "export.served", at=now, actor="node-a", data={"gap_s": gap_s, "kind": kind})
    text = site.get_text("/metrics")
    assert 'sanderling_gap_seconds{kind="move",share="0.5"} 0.04' in text
    assert 'sanderling_gap_seconds{kind="move",share="1"} 0.9' in text
    assert 'sanderling_gap_seconds{kind="failover",share="0.99"} 3.5' in text
    assert 'sanderling_gap_seconds{kind="restart",share="0.99"} 0.3' in text
    assert 'sanderling_gateway_exports{gateway="node-a"} 1.0' in text
    assert "sanderling_unserved_after_one_loss 0.0" in text
    site.mark("db", avoid=("node-b", "node-c"))
    assert "sanderling_unserved_after_one_loss 1.0" in site.get_text("/metrics")
    for name in ("node-a", "node-b", "node-c"):
        site.leave(name)
    assert "sanderling_unserved_after_one_loss 3.0" in site.get_text("/metrics")
    score = site.get("/v1/score")
    assert (score["ok"], score["losses"], score["unserved"]["count"]) == (False, {}, 3)
    site.api.coordination.down = True
    text = site.get_text("/metrics")
    assert "sanderling_gateway_exports{" not in text
    assert "sanderling_unserved_after_one_loss NaN" in text
