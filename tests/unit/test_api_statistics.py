"""What was measured, over HTTP and at the command line."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from sanderling.model.statistics import Figures, Sample, slot
from sanderling.records import statistics
from tests.unit.api_app import Api, listening, running

CLUSTER: Figures = {
    "total_bytes": 1 << 40,
    "free_bytes": None,
    "used_bytes": 3 << 30,
    "gateways": 1,
    "exports": 1,
    "exports_served": 1,
    "connections": 2,
}
GATEWAY: Figures = {"live": True, "withdrawing": False, "exports": 1, "connections": 2}
EXPORT: Figures = {"gateway": "a", "phase": "serving", "connections": 2}
SLOTS = 5


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """With a disk "vol", and samples of the last few slots."""
    with running(tmp_path) as served:
        disk_id = served.disk("vol")["resource_id"]
        at = slot(served.clock.wall(), 10)
        for number in range(SLOTS):
            each = at - timedelta(seconds=10 * number)
            with served.records.begin() as session:
                statistics.record(
                    session,
                    [
                        Sample(each, "cluster", CLUSTER),
                        Sample(each, "gateway/a", GATEWAY),
                        Sample(each, f"export/{disk_id}/0", EXPORT),
                    ],
                )
        yield served


def get(api: Api, **params: Any) -> Any:
    return api.client.get("/v1/statistics", params=params)


def test_samples_come_oldest_first_page_by_page(api: Api) -> None:
    seen, page = [], get(api, limit=4).json()
    while True:
        seen += [(row["at"], row["resource"]) for row in page["statistics"]]
        if not page["next"]:
            break
        page = api.client.get(page["next"]).json()
    assert len(seen) == len(set(seen)) == 3 * SLOTS
    assert seen == sorted(seen)


def test_samples_are_asked_for_by_what_they_are_of(api: Api) -> None:
    assert {row["resource"] for row in get(api, resource="gateway/").json()["statistics"]} == {"gateway/a"}
    of_disk = get(api, resource="disk/vol").json()["statistics"]
    assert [(row["disk"], row["figures"]) for row in of_disk] == [("vol", EXPORT)] * SLOTS
    assert get(api, resource="disk/none").status_code == 404


def test_what_is_asked_for_in_a_way_that_means_nothing_is_refused(api: Api) -> None:
    for params, field in (
        ({"resource": "pool"}, "resource"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"marker": "nonsense"}, "marker"),
        ({"marker": "2026-01-01T00:00:00 cluster"}, "marker"),
        ({"limit": 100_000}, "limit"),
        ({"resolution": "finest"}, "resolution"),
        ({"since": "yesterday"}, "since"),
    ):
        answer = get(api, **params)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_utc_does_not_reach_is_refused_by_its_name(api: Api, at: str) -> None:
    for field, value in (("since", at), ("marker", f"{at} x")):
        answer = api.client.get("/v1/statistics", params={field: value})
        assert answer.status_code == 422, answer.text
        errors = answer.json()["errors"]
        assert [error["field"] for error in errors] == [field]
        assert errors[0]["rule"]
        assert errors[0]["fix"]
    assert "years 1 to 9999" in api.client.get("/v1/statistics", params={"since": at}).json()["detail"]


def test_what_is_before_since_is_left_out(api: Api) -> None:
    since = api.clock.wall() + timedelta(seconds=60)
    assert get(api, since=since.isoformat()).json()["statistics"] == []


def test_averages_are_apart_from_what_they_are_made_of(api: Api) -> None:
    with api.records.begin() as session:
        statistics.thin(session, coarse_s=300, now=api.clock.wall() + timedelta(seconds=600))
    found = get(api, resolution="coarse").json()["statistics"]
    assert {row["resource"] for row in found} == {"cluster", "gateway/a"}


def test_the_command_line_shows_what_is_now_and_the_course_of_a_disk(api: Api, tmp_path: Path) -> None:
    with listening(api, tmp_path / "client.json") as file:
        env = {"SANDERLING_CLIENT": str(file)}
        now = CliRunner().invoke(app, ["statistics"], env=env)
        course = CliRunner().invoke(app, ["statistics", "--disk", "vol"], env=env)
        as_json = CliRunner().invoke(app, ["statistics", "--gateway", "a", "--json"], env=env)
    assert len(now.output.strip().split("\n")) == 3
    assert "3 GiB" in now.output
    assert len(course.output.strip().split("\n")) == 1 + SLOTS
    assert [row["figures"] for row in json.loads(as_json.output)] == [GATEWAY] * SLOTS
