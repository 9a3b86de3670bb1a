"""/v1/operations/{operation}/explain over HTTP: what is seen is told, a part that is away is told too, and nothing hangs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from sanderling.model import plans
from sanderling.model.exports import Export, ExportId
from sanderling.records import operations
from sanderling.settings import Conductor
from tests.unit.api_app import Api, listening, running
from tests.unit.api_site import Site


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path, conductor=Conductor(claim_ttl_s=3600), dependency_timeout_s=0.2) as served:
        yield served


def at_work(api: Api, name: str, step: str) -> dict[str, Any]:
    """A new disk's operation, claimed by a conductor that is at that step; its exports have their keys."""
    operation = api.disk(name, allow_any=True)
    now = api.clock.wall()
    with api.records.begin() as session:
        claimed = operations.claim(session, operation["id"], conductor="c1", now=now, ttl_s=3600)
        assert claimed is not None
        for position, one in enumerate(claimed.steps):
            operations.begin_step(session, claimed.id, position, claim_epoch=claimed.claim_epoch, now=now)
            if one.name == step:
                break
            operations.finish_step(session, claimed.id, position, claim_epoch=claimed.claim_epoch, now=now)
    free = Export(generation=1).model_dump_json().encode()
    assert api.coordination.put(ExportId(operation["resource_id"], 0).key, free)
    return operation


def explained(api: Api, operation: dict[str, Any]) -> dict[str, Any]:
    answer = api.client.get(f"/v1/operations/{operation['id']}/explain")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def causes(found: dict[str, Any]) -> list[str]:
    return [wait["cause"] for wait in found["waits_for"]]


def test_an_operation_that_nobody_has_begun_has_no_holder(api: Api) -> None:
    found = explained(api, api.disk("db"))
    assert (found["state"], found["holder"], found["step"]) == ("pending", None, None)
    assert causes(found) == ["conductors_at_work"]


def test_what_the_gateways_say_of_an_export_that_is_not_served_is_told(api: Api) -> None:
    operation = at_work(api, "db", plans.AWAIT_SERVED)
    assert causes(explained(api, operation)) == ["no_gateway"]
    Site(api).arrive("node-a", refused={f"{operation['resource_id']}/0": "no interface eth1"})
    found = explained(api, operation)
    assert found["waits_for"][0]["detail"] == "export 0 (10.1.0.1): refused by node-a: no interface eth1"
    assert (found["holder"]["conductor"], found["holder"]["is_live"]) == ("c1", True)
    assert (found["step"]["name"], found["step"]["attempts"]) == ("await_served", 1)
    assert found["next_deadline"]["at"] == found["step"]["deadline"]


def test_who_has_the_image_open_is_told(api: Api) -> None:
    operation = at_work(api, "db", plans.CREATE_IMAGE)
    now = api.clock.wall()
    with api.records.begin() as session:
        operations.begin_undo(session, operation["id"], claim_epoch=1, now=now, problem=None)
    api.images.openers[f"sanderling-{operation['resource_id']}"] = ("10.9.0.1:0/7",)
    found = explained(api, operation)
    assert found["step"]["is_undoing"]
    assert found["waits_for"][0] == {"cause": "image_open", "detail": "the disk's image is open: 10.9.0.1:0/7"}


def test_a_part_that_is_away_is_the_answer_and_not_a_failure(api: Api) -> None:
    operation = at_work(api, "db", plans.AWAIT_SERVED)
    api.coordination.down = api.images.down = True
    assert causes(explained(api, operation)) == ["coordination_away", "images_away"]


def test_a_part_that_is_silent_holds_the_answer_up_no_longer_than_its_bound(api: Api) -> None:
    operation = at_work(api, "db", plans.AWAIT_SERVED)
    api.coordination.answers.clear()
    found = explained(api, operation)
    assert found["waits_for"][0] == {
        "cause": "coordination_away",
        "detail": "Consul: coordination did not answer within 0.2 s; try again later",
    }


def test_nothing_is_asked_about_an_operation_that_has_ended(api: Api) -> None:
    operation = api.disk("db")
    api.client.post(f"/v1/operations/{operation['id']}/cancel")
    api.coordination.down = api.images.down = True
    found = explained(api, operation)
    assert (found["state"], found["waits_for"]) == ("cancelled", [])


def test_an_operation_that_is_not_there_cannot_be_explained(api: Api) -> None:
    assert api.client.get("/v1/operations/nobody/explain").status_code == 404


def test_the_command_says_who_holds_it_what_it_waits_for_and_what_to_do(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = at_work(api, "db", plans.AWAIT_SERVED)
    with listening(api, tmp_path / "client.json") as file:
        monkeypatch.setenv("SANDERLING_CLIENT", str(file))
        result = CliRunner().invoke(app, ["operation", "explain", operation["id"]])
    assert result.exit_code == 0, result.output
    assert "disk.create of db is at step await_served (5 of 6)" in result.output
    assert "c1 since" in result.output
    assert "- export 0 (10.1.0.1): nobody has taken it, and no gateway is live" in result.output
    assert "Do: Start a worker" in result.output
