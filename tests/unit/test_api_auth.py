"""Who may do what: no token, no answer; no rule, no route."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends

from api import app as app_module
from api.auth import Allowed, Caller, check_routes, everybody
from api.policy import RIGHT_TO_ASK, RULES, Policy, defaults, sample
from sanderling.errors import Forbidden, SettingsRefused
from sanderling.model.operations import OperationKind
from sanderling.records import tokens
from sanderling.records.tokens import Role
from tests.unit.api_app import GIB, Api, running


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api")) as served:
        yield served


@pytest.mark.parametrize("given", ["Bearer wrong", "Bearer ", "Basic YTpi", "nonsense", "bearer \xff"])
def test_a_wrong_token_is_refused(api: Api, given: str) -> None:
    assert api.client.get("/v1/disks", headers={"Authorization": given.encode("latin-1")}).status_code == 401


def test_a_token_may_come_as_x_auth_token(api: Api) -> None:
    client = api.client
    kept = client.headers.pop("Authorization")
    try:
        assert client.get("/v1/disks").status_code == 401
        assert client.get("/v1/disks", headers={"X-Auth-Token": api.secrets[Role.READER]}).status_code == 200
    finally:
        client.headers["Authorization"] = kept


def test_a_token_is_shown_once_kept_as_a_digest_and_gone_when_deleted(api: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = api.client.post("/v1/tokens", json={"name": "ci", "role": "reader", "valid_days": 1})
    assert made.status_code == 201
    secret = made.json()["token"]
    used = {"Authorization": f"Bearer {secret}"}
    assert api.client.get("/v1/disks", headers=used).status_code == 200
    assert secret not in api.client.get("/v1/tokens").text
    assert secret not in api.client.get("/v1/events?after=0").text
    assert secret not in str(api.tables())
    assert api.client.post("/v1/tokens", json={"name": "ci", "role": "reader"}).status_code == 409
    assert api.client.delete("/v1/tokens/ci").status_code == 204
    assert api.client.get("/v1/disks", headers=used).status_code == 401


def test_a_token_cannot_delete_itself(api: Api) -> None:
    assert api.client.delete("/v1/tokens/a-admin").json()["type"] == "/problems/in-use"
    assert api.client.get("/v1/tokens").status_code == 200


def test_a_token_is_refused_from_the_moment_it_expires(api: Api) -> None:
    now = api.clock.wall()
    with api.records.begin() as session:
        _, secret = tokens.create(session, name="old", role=Role.ADMIN, now=now, actor="test", expires_at=now)
        assert tokens.authenticate(session, secret, now=now) is None
        assert tokens.authenticate(session, secret, now=now - timedelta(seconds=1)) is not None
    assert api.client.get("/v1/disks", headers={"Authorization": f"Bearer {secret}"}).status_code == 401


def test_the_last_use_of_a_token_is_noted(api: Api) -> None:
    api.client.get("/v1/disks", headers={"Authorization": f"Bearer {api.secrets[Role.OPERATOR]}"})
    shown = {token["name"]: token for token in api.client.get("/v1/tokens").json()["tokens"]}
    assert shown["a-operator"]["last_used_at"] is not None


def test_nothing_is_told_of_a_body_to_who_may_not_send_it(api: Api) -> None:
    answer = api.client.post(
        "/v1/disks", json={"name": "d", "size_bytes": GIB}, headers={"Authorization": f"Bearer {api.secrets[Role.READER]}"}
    )
    assert answer.status_code == 403


def test_a_site_can_tighten_and_widen_rules_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"disk:create": "rule:admin"\n"disk:stop": "rule:reader"\n')
    policy = Policy(str(file))
    policy.check("disk:stop", Role.READER)
    policy.check("disk:create", Role.ADMIN)
    with pytest.raises(Forbidden, match="disk:create"):
        policy.check("disk:create", Role.OPERATOR)
    with pytest.raises(Forbidden, match="disk:delete"):
        policy.check("disk:delete", Role.READER)


def test_what_no_rule_allows_is_denied() -> None:
    with pytest.raises(Forbidden, match="disk:paint"):
        Policy("").check("disk:paint", Role.ADMIN)


@pytest.mark.parametrize("text", ['"disk:crate": "rule:admin"\n', '"disk:create": "rule:nobody-knows"\n', "{", "- a\n"])
def test_a_policy_file_that_would_not_do_what_it_says_stops_the_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(SettingsRefused, match="policy_file"):
        Policy(str(file))
    with pytest.raises(SettingsRefused, match="policy_file"):
        Policy(str(tmp_path / "missing.yaml"))


def test_a_route_without_a_rule_is_refused_at_the_start() -> None:
    def bare() -> None: ...

    def ruled(caller: Annotated[Caller, Depends(Allowed("disk:paint"))]) -> None: ...

    def both(caller: Annotated[Caller, Depends(Allowed("disk:read"))], nobody: Annotated[None, Depends(everybody)]) -> None: ...

    whole = [route for router in app_module.ROUTERS for route in router.routes]
    check_routes(whole)
    for endpoint, complaint in ((bare, "must name one rule"), (ruled, "does not have"), (both, "must name one rule")):
        router = APIRouter()
        router.add_api_route("/v1/new", endpoint)
        with pytest.raises(SettingsRefused, match=complaint):
            check_routes([*whole, *router.routes])


def test_a_rule_that_no_route_asks_for_is_refused_at_the_start() -> None:
    whole = [route for router in app_module.ROUTERS for route in router.routes if route.path != "/v1/subnets/{subnet}"]
    with pytest.raises(SettingsRefused, match="subnet:delete"):
        check_routes(whole)


def test_every_kind_of_operation_has_a_rule_for_who_may_cancel_it() -> None:
    assert set(RIGHT_TO_ASK) == set(OperationKind)
    assert set(RIGHT_TO_ASK.values()) <= {rule.name for rule in RULES}


def test_the_sample_of_the_policy_is_what_the_code_says() -> None:
    assert Path("etc/policy.yaml.sample").read_text() == sample(), "stale: make sample"


def test_every_rule_says_what_it_is_for() -> None:
    assert all(rule.description for rule in defaults())
    assert len({rule.name for rule in defaults()}) == len(defaults())
