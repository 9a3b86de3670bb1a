"""PATCH /v1/disks and snapshots over HTTP: what is accepted, what is refused, and that no secret comes back."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sanderling import secrets
from sanderling.images.base import Snapshot
from sanderling.model.disks import DiskEvent, image_of
from sanderling.records import events, operations
from sanderling.secrets import Keyring
from sanderling.settings import Secrets
from tests.unit.api_app import GIB, Api, running
from tests.unit.test_api_disks import finish, made

ONE = "iqn.2026-11.io.example:one"
CHAP = {"user": "host", "secret": "one-way-s3cret"}
TAKEN_AT = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    secrets.add(file)
    return file


@pytest.fixture
def api(tmp_path: Path, key_file: Path) -> Iterator[Api]:
    with running(tmp_path, key_file=key_file, default_initiators=f"{ONE}, {ONE}-2") as served:
        yield served


def change(api: Api, disk: str, **body: Any) -> Any:
    return api.client.patch(f"/v1/disks/{disk}", json=body)


def keep(api: Api, disk: str, *snapshots: Snapshot) -> None:
    """The disk's image has these snapshots."""
    api.images.kept[image_of(api.client.get(f"/v1/disks/{disk}").json()["id"])] = snapshots


def test_a_change_is_accepted_with_its_operation_and_shows_at_once(api: Api) -> None:
    made(api, "db", started=True)
    answer = change(api, "db", name="db2", size_bytes=2 * GIB, initiators=[ONE])
    assert answer.status_code == 202, answer.text
    steps = [step["name"] for step in answer.json()["steps"]]
    assert steps == ["grow_image", "describe_changed", "publish_changed", "await_served", "settle"]
    shown = api.client.get("/v1/disks/db2").json()
    assert (shown["size_bytes"], shown["initiators"], shown["state"]) == (2 * GIB, [ONE], "started")


def test_what_is_asked_behind_other_work_is_kept_whole(api: Api) -> None:
    made(api, "db", started=True)
    change(api, "db", initiators=[f"{ONE}-2"])
    queued = change(api, "db", name="db2", initiators=[f"{ONE}-2"]).json()
    assert queued["state"] == "queued"
    with api.records.read() as session:
        asked = operations.get(session, queued["id"]).params["change"]
    assert asked == {"name": "db2", "initiators": [f"{ONE}-2"], "allow_any": False}, "what goes before may turn out otherwise"


def test_what_is_to_be_of_a_certain_version_of_the_disk_does_not_wait_for_what_changes_it(api: Api) -> None:
    made(api, "db", started=True)
    change(api, "db", initiators=[f"{ONE}-2"])
    read = api.client.get("/v1/disks/db").headers["etag"]
    answer = api.client.patch("/v1/disks/db", json={"name": "db2"}, headers={"If-Match": read})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/busy")


def test_a_change_to_what_the_disk_is_already_does_nothing(api: Api) -> None:
    made(api, "db", started=False, allow_any=True)
    before = api.tables()
    answer = change(api, "db", name="db", allow_any=True)
    assert (answer.status_code, answer.json()["notes"]) == (200, ["nothing to do: the disk is so already"])
    assert api.tables() == before


def test_a_dry_run_says_what_is_at_risk_and_changes_nothing(api: Api) -> None:
    made(api, "db", started=True)
    before = api.tables()
    answer = api.client.patch("/v1/disks/db?dry_run=true", json={"initiators": [ONE], "chap": CHAP})
    assert "started again" in answer.json()["plan"]["at_risk"][0]
    assert CHAP["secret"] not in answer.text
    assert answer.json()["disk"]["chap"] == {"user": "host", "mutual_user": None}
    assert api.client.patch("/v1/disks/db?dry_run=true", json={"name": "x"}).json()["plan"]["at_risk"] == []
    assert api.tables() == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"name": None}, "name"),
        ({"size_bytes": GIB - 512}, "size_bytes"),
        ({"size_bytes": 1 << 50}, "size_bytes"),
        ({"size_bytes": GIB + 1}, "size_bytes"),
        ({"allow_any": True, "initiators": [ONE]}, "allow_any"),
        ({"initiators": [ONE, ONE]}, "initiators"),
        ({"chap": {"user": "host", "secret": "too-short"}}, "chap.secret"),
        ({"chap": {"user": "host", "secret": "seventeen-letters"}}, "chap.secret"),
        ({"chap": {"user": "host", "secret": "with a blank"}}, "chap.secret"),
        ({"chap": {"user": "ho,st", "secret": "one-way-s3cret"}}, "chap.user"),
        ({"chap": {**CHAP, "mutual_user": "san"}}, "chap.mutual_secret"),
        ({"chap": {**CHAP, "mutual_secret": "mutual-s3cret"}}, "chap.mutual_user"),
        ({"chap": {**CHAP, "mutual_user": "san", "mutual_secret": CHAP["secret"]}}, "chap.mutual_secret"),
        ({"chap": {**CHAP, "mutual_user": "host", "mutual_secret": "mutual-s3cret"}}, "chap.mutual_user"),
        ({"chap": {**CHAP, "user": "sanderling-probe"}}, "chap.user"),
        ({"chap": {"user": "sanderling-probe", "secret": CHAP["secret"]}}, "chap.user"),
        ({"chap": {**CHAP, "mutual_user": "sanderling-probe", "mutual_secret": "mutual-s3cret"}}, "chap.mutual_user"),
        ({"paths": 3}, "paths"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field_and_no_secret_is_repeated(api: Api, body: dict[str, Any], field: str) -> None:
    made(api, "db", started=False)
    before = api.tables()
    answer = change(api, "db", **body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    for secret in ("too-short", "seventeen-letters", "with a blank", "s3cret"):
        assert secret not in answer.text
    assert api.tables() == before


def test_a_secret_is_sealed_before_it_is_written_and_never_shown(api: Api, key_file: Path) -> None:
    made(api, "db", started=False)
    answer = change(api, "db", chap={**CHAP, "mutual_user": "san", "mutual_secret": "mutual-s3cret"})
    assert answer.status_code == 202
    stored = repr(api.tables())
    for text in (stored, answer.text, api.client.get("/v1/disks/db").text, api.client.get("/v1/events?after=0").text):
        assert "s3cret" not in text
    assert api.client.get("/v1/disks/db").json()["chap"] == {"user": "host", "mutual_user": "san"}
    keyring = Keyring(Secrets(key_file=str(key_file)))
    with api.records.read() as session:
        from sanderling.records import disks  # noqa: PLC0415

        chap = disks.describe(disks.find(session, "db")).chap
    assert chap is not None
    assert (keyring.unseal(chap.secret), keyring.unseal(chap.mutual_secret)) == (CHAP["secret"], "mutual-s3cret")
    assert "s3cret" not in repr(chap)
    assert chap.secret not in repr(chap)


def test_chap_is_taken_away_by_null_and_left_alone_when_not_given(api: Api) -> None:
    operation = made(api, "db", started=False, chap=CHAP)
    assert api.client.get("/v1/disks/db").json()["chap"] is not None
    accepted = change(api, "db", name="db2").json()
    finish_change(api, accepted)
    assert api.client.get("/v1/disks/db2").json()["chap"] is not None
    assert change(api, "db2", chap=None).status_code == 202
    assert api.client.get("/v1/disks/db2").json()["chap"] is None
    assert operation["resource_name"] == "db"


def finish_change(api: Api, operation: dict[str, Any]) -> None:
    from sanderling.model.operations import OperationEvent  # noqa: PLC0415
    from sanderling.records import operations  # noqa: PLC0415

    now = api.clock.wall()
    with api.records.begin() as session:
        claimed = operations.claim(session, operation["id"], conductor="c", now=now, ttl_s=60)
        assert claimed is not None
        operations.end(session, claimed.id, OperationEvent.SUCCEED, claim_epoch=claimed.claim_epoch, now=now)


def test_without_a_key_a_secret_is_refused_and_all_else_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as api:
        api.app.state.context = replace(api.app.state.context, keyring=Keyring(Secrets()))
        made(api, "db", started=False)
        answer = change(api, "db", chap=CHAP)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/secret-unreadable")
        assert change(api, "db", name="db2").status_code == 202


def test_a_new_disk_lets_the_sites_initiators_in_unless_it_names_its_own(api: Api) -> None:
    api.disk("plain")
    api.disk("own", initiators=["iqn.2026-11.io.example:own"])
    api.disk("any", allow_any=True)
    api.disk("nobody", initiators=[])
    shown = {name: api.client.get(f"/v1/disks/{name}").json() for name in ("plain", "own", "any", "nobody")}
    assert shown["plain"]["initiators"] == [ONE, f"{ONE}-2"]
    assert shown["own"]["initiators"] == ["iqn.2026-11.io.example:own"]
    assert (shown["any"]["initiators"], shown["nobody"]["initiators"]) == ([], [])


def test_a_name_that_is_free_again_gives_a_new_disk_an_iqn_of_its_own(api: Api) -> None:
    made(api, "db", started=False)
    finish_change(api, change(api, "db", name="old").json())
    api.disk("db")
    old, new = (api.client.get(f"/v1/disks/{name}").json()["iqn"] for name in ("old", "db"))
    assert new.startswith(old)
    assert new != old


def test_a_snapshot_is_taken_of_a_disk_that_rests_and_not_twice_under_one_name(api: Api) -> None:
    made(api, "db", started=True)
    keep(api, "db", Snapshot("old", GIB, TAKEN_AT))
    url = "/v1/disks/db/snapshots"
    assert api.client.post(url, json={"name": "old"}).status_code == 409
    for name in ("../x", "auto-mine"):
        assert api.client.post(url, json={"name": name}).json()["errors"][0]["field"] == "name"
    assert api.client.post(url, json={"name": "new"}).status_code == 202
    (listed,) = api.client.get(url).json()["snapshots"]
    assert listed == {"name": "old", "size_bytes": GIB, "taken_at": "2026-11-27T00:00:00Z", "clones": []}


def taken_right_after_a_look(api: Api, operation: dict[str, Any], *, started: bool) -> None:
    """The operation ends once somebody has looked at the snapshots, who does not see its own."""

    def take() -> None:
        api.images.looked = lambda: None
        disk, data = operation["resource_id"], {"name": "db", "snapshot": "new"}
        with api.records.begin() as session:
            events.append(session, events.SNAPSHOT_CREATED, at=api.clock.wall(), actor="c", resource_id=disk, data=data)
        finish(api, operation, DiskEvent.SNAPSHOT, started=started)

    api.images.looked = take


def test_a_snapshot_that_was_taken_while_a_disk_is_to_be_deleted_does_not_go_with_it_unasked(api: Api) -> None:
    made(api, "db", started=False)
    operation = api.client.post("/v1/disks/db/snapshots", json={"name": "new"}).json()
    taken_right_after_a_look(api, operation, started=False)
    answer = api.client.delete("/v1/disks/db")
    assert (answer.status_code, answer.json()["snapshots"]) == (409, ["new"])


def test_a_snapshot_that_was_taken_while_another_of_its_name_is_asked_for_is_not_passed_off_as_both(api: Api) -> None:
    """Else the second request's operation would find it there, succeed, and take it away when it is cancelled at work."""
    made(api, "db", started=True)
    url = "/v1/disks/db/snapshots"
    taken_right_after_a_look(api, api.client.post(url, json={"name": "new"}).json(), started=True)
    second = api.client.post(url, json={"name": "new"})
    assert second.status_code == 409
    assert "has a snapshot new already" in second.json()["detail"]
    assert api.client.post(url, json={"name": "new"}).status_code == 202, "once it is gone from the image, the name is free"


def test_no_snapshot_is_taken_of_a_disk_that_several_gateways_write_at_once(api: Api) -> None:
    made(api, "db", started=True, access="shared", paths=2)
    answer = api.client.post("/v1/disks/db/snapshots", json={"name": "new"})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/in-use")


def test_a_disk_is_rolled_back_only_stopped_confirmed_and_to_a_snapshot_of_its_size(api: Api) -> None:
    made(api, "db", started=True)
    keep(api, "db", Snapshot("old", GIB, TAKEN_AT), Snapshot("small", GIB // 2, TAKEN_AT))
    url = "/v1/disks/db/snapshots"
    assert api.client.post(f"{url}/old/rollback?confirm=db").json()["type"] == "/problems/transition-refused"
    stopped = api.client.post("/v1/disks/db/stop").json()
    finish(api, stopped, DiskEvent.STOPPED, started=False)
    assert api.client.post(f"{url}/old/rollback").status_code == 422
    assert api.client.post(f"{url}/none/rollback?confirm=db").status_code == 404
    assert api.client.post(f"{url}/small/rollback?confirm=db").status_code == 409
    assert api.client.post(f"{url}/old/rollback?confirm=db").status_code == 202
    assert api.client.get("/v1/disks/db").json()["state"] == "rolling_back"


def test_a_snapshot_with_clones_stays_and_so_does_its_disk(api: Api) -> None:
    made(api, "db", started=False)
    keep(api, "db", Snapshot("old", GIB, TAKEN_AT, (image_of("clone-id"),)))
    for answer in (
        api.client.delete("/v1/disks/db/snapshots/old"),
        api.client.delete("/v1/disks/db?force=true&confirm=db"),
    ):
        assert (answer.status_code, answer.json()["disks"]) == (409, ["clone-id"])


def test_a_disk_stays_while_a_clone_of_it_is_being_made(api: Api) -> None:
    made(api, "db", started=False)
    keep(api, "db", Snapshot("old", GIB, TAKEN_AT))
    clone = api.client.post("/v1/disks", json={"name": "c1", "source": {"disk": "db", "snapshot": "old"}}).json()
    answer = api.client.delete("/v1/disks/db?force=true&confirm=db")
    assert (answer.status_code, answer.json()["disks"]) == (409, [clone["resource"].removeprefix("/v1/disks/")])
    assert "disk c1" in answer.json()["detail"]
    finish(api, clone, DiskEvent.STARTED, started=True)
    assert api.client.delete("/v1/disks/db?force=true&confirm=db").status_code == 202


def test_no_clone_begins_of_a_disk_that_is_being_deleted_or_waits_for_it(api: Api) -> None:
    made(api, "db", started=True)
    keep(api, "db", Snapshot("old", GIB, TAKEN_AT))
    api.client.post("/v1/disks/db/stop")
    deleted = api.client.delete("/v1/disks/db?force=true&confirm=db").json()
    assert deleted["state"] == "queued"
    source = {"disk": "db", "snapshot": "old"}
    answer = api.client.post("/v1/disks", json={"name": "c1", "source": source})
    assert (answer.status_code, answer.json()["operation_id"]) == (409, deleted["id"])
    assert api.client.post(f"/v1/operations/{deleted['id']}/cancel").status_code == 202
    assert api.client.post("/v1/disks", json={"name": "c1", "source": source}).status_code == 202


def test_a_disk_with_snapshots_is_deleted_only_by_force(api: Api) -> None:
    made(api, "db", started=False)
    keep(api, "db", Snapshot("old", GIB, TAKEN_AT))
    assert api.client.delete("/v1/disks/db").json()["snapshots"] == ["old"]
    assert api.client.delete("/v1/disks/db?force=true&confirm=db").status_code == 202


def test_a_clone_has_the_snapshots_size_or_more(api: Api) -> None:
    made(api, "db", started=False)
    keep(api, "db", Snapshot("old", 2 * GIB, TAKEN_AT))
    source = {"disk": "db", "snapshot": "old"}
    assert api.client.post("/v1/disks", json={"name": "c1", "source": source}).status_code == 202
    assert api.client.get("/v1/disks/c1").json()["size_bytes"] == 2 * GIB
    too_small = api.client.post("/v1/disks", json={"name": "c2", "source": source, "size_bytes": GIB})
    assert too_small.json()["errors"][0]["field"] == "size_bytes"
    unknown = api.client.post("/v1/disks", json={"name": "c2", "source": {"disk": "db", "snapshot": "none"}})
    assert unknown.json()["errors"][0]["field"] == "source.snapshot"


def test_where_the_image_store_is_away_what_needs_its_snapshots_says_so(api: Api) -> None:
    made(api, "db", started=False)
    api.images.down = True
    for answer in (
        api.client.get("/v1/disks/db/snapshots"),
        api.client.post("/v1/disks/db/snapshots", json={"name": "new"}),
        api.client.get("/v1/disks/db/usage"),
    ):
        assert answer.status_code == 503, answer.text


def test_recovery_is_one_operation_at_a_time(api: Api) -> None:
    assert "plan" in api.client.post("/v1/recoveries?dry_run=true").json()
    assert api.client.post("/v1/recoveries").status_code == 202
    assert api.client.post("/v1/recoveries").json()["type"] == "/problems/busy"
