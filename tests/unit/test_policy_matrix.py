"""Every route for every bearer, made from the routes themselves: whoever may is let in, and a refusal changes nothing.

What is expected is read from the routes that `RULES` names, what happens from the guards of the routes: each checks the other.
"""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from api import app as app_module
from api.policy import RIGHT_TO_ASK, RULES
from sanderling.images.base import Snapshot
from sanderling.model.operations import OperationKind, Step
from sanderling.records import operations, tokens
from sanderling.records.tokens import Role
from tests.unit.api_app import GIB, Api, running

OPEN: Final = {("GET", path) for path in ("/healthz", "/readyz", "/problems/{code}", "/openapi.json")}
ROUTES: Final = sorted(
    (method, route.path) for router in app_module.ROUTERS for route in router.routes for method in route.methods or ()
)
RULE_OF: Final = {(route["method"], route["path"]): rule for rule in RULES for route in rule.operations}
BEARERS: Final = ["nobody", "wrong", "expired", *Role]
ORDER: Final = list(Role)  # each may do what the one before it may
FILLED: Final = {"{disk}": "there", "{snapshot}": "kept", "{token}": "spare", "{subnet}": "spare", "{gateway}": "gone"}
BODIES: Final[dict[tuple[str, str], Any]] = {
    ("POST", "/v1/assignments"): {"planner": "average"},
    ("POST", "/v1/assignments/{assignment}/cancel"): None,
    ("POST", "/v1/assignments/{assignment}/undo"): None,
    ("POST", "/v1/disks"): {"name": "made", "size_bytes": GIB},
    ("PATCH", "/v1/disks/{disk}"): {"allow_any": True},
    ("PUT", "/v1/disks/{disk}/marks"): {},
    ("POST", "/v1/disks/{disk}/start"): None,
    ("POST", "/v1/disks/{disk}/stop"): None,
    ("POST", "/v1/disks/{disk}/snapshots"): {"name": "now"},
    ("POST", "/v1/disks/{disk}/snapshots/{snapshot}/rollback"): None,
    ("POST", "/v1/gateways/{gateway}/drain"): None,
    ("POST", "/v1/gateways/{gateway}/undrain"): None,
    ("POST", "/v1/notifications"): {"name": "made", "url": "jsons://192.0.2.1/hook", "kinds": ["disk.failed"]},
    ("POST", "/v1/notifications/{rule}/test"): None,
    ("POST", "/v1/operations/{operation}/cancel"): None,
    ("POST", "/v1/recoveries"): None,
    ("POST", "/v1/subnets"): {"name": "made", "cidr": "10.9.0.0/28", "interface": "eth1"},
    ("POST", "/v1/tokens"): {"name": "made", "role": "admin"},
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api")) as served:
        now = served.clock.wall()
        with served.records.begin() as session:
            tokens.create(session, name="spare", role=Role.READER, now=now, actor="test")
            _, expired = tokens.create(session, name="expired", role=Role.ADMIN, now=now, actor="test", expires_at=now)
        served.secrets["expired"] = expired  # type: ignore[index]
        served.client.post("/v1/subnets", json={"name": "spare", "cidr": "10.8.0.0/28", "interface": "eth1"})
        disk = served.disk("there", started=False)
        served.images.kept[f"sanderling-{disk['resource_id']}"] = (Snapshot("kept", GIB, now),)
        yield served


@pytest.fixture
def operation(api: Api) -> str:
    found = api.client.get("/v1/operations").json()["operations"]
    return str(found[-1]["id"])


def asked(api: Api, bearer: str, method: str, path: str, body: Any = None) -> Any:
    secret = {"nobody": "", "wrong": "Bearer sdl_wrong"}.get(bearer) or f"Bearer {api.secrets.get(bearer)}"  # type: ignore[call-overload]
    headers = {"Authorization": "" if bearer == "nobody" else secret, "Accept": "application/json"}
    return api.client.request(method, path, headers=headers, json=body)


def may(bearer: str, method: str, path: str) -> bool:
    if (method, path) in OPEN:
        return True
    if bearer not in ORDER:
        return False
    least = Role(RULE_OF[method, path].check_str.removeprefix("rule:"))
    return ORDER.index(Role(bearer)) >= ORDER.index(least)


def test_every_route_is_open_or_in_the_table_of_rules_and_the_matrix_can_send_what_it_takes() -> None:
    assert set(ROUTES) == OPEN | set(RULE_OF)
    assert {route for route in ROUTES if route[0] not in {"GET", "DELETE"}} == set(BODIES), "say what the new route is sent"


@pytest.mark.parametrize("bearer", BEARERS)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_bearer_may_what_the_table_says_and_a_refusal_changes_nothing(
    api: Api, operation: str, method: str, path: str, bearer: str, record_property: Any
) -> None:
    record_property("cell", f"{bearer} {method} {path}")
    filled = path.replace("{operation}", operation).replace("{assignment}", operation)
    for name, value in FILLED.items():
        filled = filled.replace(name, value)
    before = api.tables()
    answer = asked(api, bearer, method, filled, BODIES.get((method, path)))
    if may(bearer, method, path):
        assert answer.status_code not in {401, 403}, answer.text
        assert answer.status_code < 500 or (method, path) == ("GET", "/v1/disks/{disk}/connections"), answer.text
        return
    known = bearer in ORDER
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == ((403, 403) if known else (401, 401)), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == ("/problems/forbidden" if known else "/problems/unauthenticated")
    assert ("rule" not in problem) if not known else problem["rule"] == RULE_OF[method, path].name
    assert ("WWW-Authenticate" in answer.headers) is not known
    assert api.tables() == before


@pytest.mark.parametrize("bearer", BEARERS)
@pytest.mark.parametrize("kind", list(OperationKind))
def test_an_operation_is_cancelled_only_by_who_may_ask_for_such_a_one(
    api: Api, kind: OperationKind, bearer: str, record_property: Any
) -> None:
    record_property("cell", f"{bearer} cancels {kind}")
    with api.records.begin() as session:
        waiting = operations.submit(
            session,
            kind=kind,
            resource_id=f"{kind}-{bearer}",
            resource_name="thing",
            params={"gateway": f"{kind}-{bearer}"},
            steps=[Step(name="first", deadline_s=5.0)],
            requested_by="test",
            now=api.clock.wall(),
        )
        operations.claim(session, waiting.id, conductor="c1", now=api.clock.wall(), ttl_s=3600)
    before = api.tables()
    answer = asked(api, bearer, "POST", f"/v1/operations/{waiting.id}/cancel")
    rule = next(rule for rule in RULES if rule.name == RIGHT_TO_ASK[kind])
    least = Role(rule.check_str.removeprefix("rule:"))
    if bearer in ORDER and ORDER.index(Role(bearer)) >= max(ORDER.index(least), ORDER.index(Role.OPERATOR)):
        assert answer.status_code == 202, answer.text
    else:
        assert answer.status_code == (403 if bearer in ORDER else 401)
        assert api.tables() == before
