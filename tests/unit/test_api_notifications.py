"""Notification rules over HTTP and at the command line: a URL goes in once and never comes out."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from sanderling.errors import Problem
from sanderling.model.notifications import DEFAULT_KINDS
from sanderling.records import events
from sanderling.secrets import Keyring
from sanderling.settings import Secrets
from tests.unit.api_app import Api, listening, running

URL = "jsons://user:canary-secret@hooks.example/canary-path?+X-Key=canary-header"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as served:
        yield served


@pytest.fixture
def client_file(api: Api, tmp_path: Path) -> Iterator[Path]:
    with listening(api, tmp_path / "client.json") as file:
        yield file


def run(client_file: Path, *argv: str, url: str = "", stdin: str = "") -> Result:
    env = {"SANDERLING_CLIENT": str(client_file), "SANDERLING_NOTIFICATION_URL": url}
    return CliRunner().invoke(app, ["notification", *argv], env=env, input=stdin)


def create(api: Api, **body: Any) -> Any:
    return api.client.post("/v1/notifications", json={"name": "mine", "url": URL, **body})


def test_a_rule_is_made_listed_shown_and_taken_away_without_its_url(api: Api) -> None:
    made = create(api)
    assert (made.status_code, made.headers["Location"]) == (201, "/v1/notifications/mine")
    assert made.json()["receiver"] == "jsons://hooks.example"
    assert made.json()["kinds"] == list(DEFAULT_KINDS)
    answers = [made, api.client.get("/v1/notifications"), api.client.get("/v1/notifications/mine"), create(api)]
    assert answers[1].json()["notifications"] == [answers[2].json()]
    assert answers[3].status_code == 409
    assert not [answer.text for answer in answers if "canary" in answer.text]
    assert "canary" not in str(api.tables())
    assert api.client.delete("/v1/notifications/mine").status_code == 204
    assert api.client.get("/v1/notifications/mine").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "file:///canary"}, "url"),
        ({"url": "jsons://u:canary@127.0.0.1/"}, "url"),
        ({"url": "x" * 3000}, "url"),
        ({"url": "json://u:canary@[::1"}, "url"),
        ({"url": "json://u:canary@host:99999999/"}, "url"),
        ({"url": "mailto://u:canary@host:port?to=a@b.c"}, "url"),
        ({"url": "jsons://h/\x00canary"}, "url"),
        ({"url": 7}, "url"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["UPPER"]}, "kinds[0]"),
        ({"kinds": ["a b"]}, "kinds[0]"),
        ({"kinds": ["disk.*", "notification.*"]}, "kinds[1]"),
        ({"kinds": ["*"] * 33}, "kinds"),
        ({"name": "Not A Name"}, "name"),
        ({"more": 1}, "more"),
    ],
)
def test_what_breaks_a_rule_is_named_and_a_url_is_not_repeated(api: Api, body: dict[str, Any], field: str) -> None:
    answer = create(api, **body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert "canary" not in answer.text


def test_without_a_key_to_seal_with_no_rule_is_made(api: Api) -> None:
    api.app.state.context = replace(api.app.state.context, keyring=Keyring(Secrets()))
    answer = create(api)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/secret-unreadable")
    assert "key_file" in answer.json()["detail"]


def test_a_test_message_is_an_event_for_that_rule(api: Api) -> None:
    create(api)
    asked = api.client.post("/v1/notifications/mine/test")
    assert asked.status_code == 202
    with api.records.read() as session:
        event = events.get(session, asked.json()["event"])
    assert event is not None
    assert (event.kind, event.resource_id) == ("notification.test", "mine")
    assert asked.json()["notification"]["behind"] == 1
    assert api.client.post("/v1/notifications/none/test").status_code == 404


def test_the_command_line_reads_the_url_from_where_nobody_sees_it(client_file: Path) -> None:
    made = run(client_file, "create", "one", "--kind", "alert.*", stdin=f"{URL}\n")
    assert made.output == "Rule one tells jsons://hooks.example of alert.*.\n"
    assert run(client_file, "create", "two", url=URL).exit_code == 0
    listed = run(client_file, "list")
    assert "one" in listed.output
    assert "two" in listed.output
    shown = run(client_file, "show", "one", "--json")
    assert json.loads(shown.output)["kinds"] == ["alert.*"]
    assert "is on its way" in run(client_file, "test", "one").output
    assert "removed" in run(client_file, "delete", "one").output
    with pytest.raises(Problem, match="url: is empty"):
        CliRunner().invoke(
            app,
            ["notification", "create", "x"],
            env={"SANDERLING_CLIENT": str(client_file), "SANDERLING_NOTIFICATION_URL": ""},
            input="",
            catch_exceptions=False,
        )
