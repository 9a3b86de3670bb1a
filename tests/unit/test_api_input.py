"""Bad input over HTTP: each refusal is a problem document that names field, rule and fix, and nothing is half made."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as st

from tests.unit.api_app import GIB, Api, running

GOOD = {"name": "db", "size_bytes": GIB}
INITIATOR = "iqn.1993-08.org.debian:01:abc"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api"), body_max_bytes=8192) as served:
        yield served


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"/problems/{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"].startswith("/")
    return document


BAD_DISKS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "1 to 63"),
    ({"name": "Big"}, "name", "1 to 63"),
    ({"name": "-a"}, "name", "1 to 63"),
    ({"name": "a-"}, "name", "1 to 63"),
    ({"name": "a" * 64}, "name", "1 to 63"),
    ({"name": "a\n"}, "name", "U+000A"),
    ({"name": "../etc"}, "name", "1 to 63"),
    ({"name": 7}, "name", "string"),
    ({"name": None}, "name", "string"),
    ({"size_bytes": 0}, "size_bytes", "more than 0"),
    ({"size_bytes": -512}, "size_bytes", "more than 0"),
    ({"size_bytes": 1000}, "size_bytes", "multiple of 512"),
    ({"size_bytes": 2**63}, "size_bytes", "2^63"),
    ({"size_bytes": 10**400 * 512}, "size_bytes", "2^63"),
    ({"size_bytes": "1G"}, "size_bytes", "integer"),
    ({"size_bytes": 1024.0}, "size_bytes", "integer"),
    ({"size_bytes": True}, "size_bytes", "integer"),
    ({"paths": 0}, "paths", "greater than or equal to 1"),
    ({"paths": 9}, "paths", "less than or equal to 8"),
    ({"subnets": ["nowhere"]}, "subnets[0]", "there is no subnet"),
    ({"subnets": []}, "subnets", "at least 1"),
    ({"addresses": []}, "addresses", "at least 1"),
    ({"addresses": ["10.1.0.300"]}, "addresses[0]", "not an IP address"),
    ({"addresses": ["10.1.0.3/28"]}, "addresses[0]", "not an IP address"),
    ({"addresses": ["fe80::1%eth0"]}, "addresses[0]", "zone"),
    ({"addresses": ["10.1.0.3", "10.1.0.3"]}, "addresses[1]", "given twice"),
    ({"addresses": ["10.9.0.1"]}, "addresses[0]", "not in any subnet"),
    ({"addresses": ["10.1.0.3"], "subnets": ["right"]}, "addresses[0]", "not in the subnets right"),
    ({"addresses": ["10.1.0.0"]}, "addresses[0]", "network or broadcast"),
    ({"addresses": ["10.1.0.15"]}, "addresses[0]", "network or broadcast"),
    ({"addresses": ["10.1.0.3"], "paths": 2}, "paths", "number of addresses"),
    ({"access": "both"}, "access", "exclusive"),
    ({"initiators": ["eth0"]}, "initiators[0]", "RFC 3720"),
    ({"initiators": [INITIATOR.upper()]}, "initiators[0]", "RFC 3720"),
    ({"initiators": ["eui.123"]}, "initiators[0]", "RFC 3720"),
    ({"initiators": [INITIATOR, INITIATOR]}, "initiators", "twice"),
    ({"initiators": [f"{INITIATOR}{n}" for n in range(65)]}, "initiators", "at most 64"),
    ({"initiators": INITIATOR}, "initiators", "list"),
    ({"initiators": [INITIATOR], "allow_any": True}, "allow_any", "contradicts"),
    ({"allow_any": "yes"}, "allow_any", "boolean"),
    ({"iqn": "iqn.2026-13.io.sanderling:db"}, "iqn", "RFC 3720"),
    ({"iqn": "iqn.2026-11.io.sanderling:a b"}, "iqn", "RFC 3720"),
    ({"iqn": "iqn.2026-11.io_sanderling"}, "iqn", "RFC 3720"),
    ({"iqn": "iqn.2026-11.io.sanderling:" + "a" * 198}, "iqn", "223"),
    ({"size": 1}, "size", "not known"),
    ({"\ud800": 1}, "body", ""),
]


@pytest.mark.rows("W-PA-19")
@pytest.mark.parametrize(("wrong", "field", "rule"), BAD_DISKS, ids=[f"{f}-{n}" for n, (_, f, _) in enumerate(BAD_DISKS)])
def test_a_bad_disk_is_refused_by_field_rule_and_fix(api: Api, wrong: dict[str, Any], field: str, rule: str) -> None:
    before = api.tables()
    answer = api.client.post("/v1/disks", content=json.dumps(GOOD | wrong), headers={"Content-Type": "application/json"})
    errors = assert_problem(answer, 422, "invalid-input")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert rule in errors[0]["rule"]
    assert errors[0]["fix"]
    assert api.tables() == before


GOOD_SUBNET = {"name": "third", "cidr": "10.3.0.0/24", "interface": "eth1"}
BAD_SUBNETS: list[tuple[dict[str, Any], str]] = [
    ({"cidr": "10.3.0.1/24"}, "cidr"),
    ({"cidr": "10.3.0.0"}, "cidr"),
    ({"cidr": "0.0.0.0/0"}, "cidr"),
    ({"cidr": "224.0.0.0/24"}, "cidr"),
    ({"cidr": 10}, "cidr"),
    ({"interface": "eth1; reboot"}, "interface"),
    ({"interface": "e" * 16}, "interface"),
    ({"cidr": "fe80::/64"}, "cidr"),
    ({"cidr": "169.254.7.0/24"}, "cidr"),
    ({"pool_first": "10.4.0.1"}, "pool_first"),
    ({"pool_last": "10.3.0.255"}, "pool_last"),
    ({"pool_first": "10.3.0.9", "pool_last": "10.3.0.8"}, "pool_first"),
    ({"vlan": 7}, "vlan"),
]


@pytest.mark.rows("W-PA-19")
@pytest.mark.parametrize(("wrong", "field"), BAD_SUBNETS)
def test_a_bad_subnet_is_refused_by_field_rule_and_fix(api: Api, wrong: dict[str, Any], field: str) -> None:
    before = api.tables()
    errors = assert_problem(api.client.post("/v1/subnets", json=GOOD_SUBNET | wrong), 422, "invalid-input")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert errors[0]["rule"]
    assert errors[0]["fix"]
    assert api.tables() == before


@pytest.mark.parametrize("cidr", ["10.1.0.0/28", "10.1.0.8/29", "10.0.0.0/8"])
def test_a_subnet_that_overlaps_another_is_refused(api: Api, cidr: str) -> None:
    assert_problem(api.client.post("/v1/subnets", json=GOOD_SUBNET | {"cidr": cidr}), 409, "conflict")


@pytest.mark.parametrize("body", [b"{", b"", b"[" * 4000, b"\xff\xfe{}", b'{"name": "db", "size_bytes": 1e', b"nul", b"1" * 5000])
def test_a_body_that_is_no_json_object_is_a_problem(api: Api, body: bytes) -> None:
    answer = api.client.post("/v1/disks", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert_problem(answer, answer.status_code, "malformed" if answer.status_code == 400 else "invalid-input")


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"db"'])
def test_json_that_is_no_object_is_refused(api: Api, body: bytes) -> None:
    assert_problem(api.client.post("/v1/disks", content=body, headers={"Content-Type": "application/json"}), 422, "invalid-input")


def test_a_body_of_another_type_is_refused_by_saying_so(api: Api) -> None:
    answer = api.client.post("/v1/disks", content=b"name=db", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert "application/json" in assert_problem(answer, 422, "invalid-input")["detail"]


def test_a_body_is_bounded_by_what_arrives_not_by_what_is_promised(api: Api) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(9):
            yield b" " * 1024

    assert_problem(api.client.post("/v1/disks", content=pieces()), 413, "too-large")
    assert_problem(api.client.post("/v1/disks", content=b" " * 8193), 413, "too-large")
    padded = json.dumps(GOOD | {"name": ""}).ljust(8192).encode()
    assert_problem(
        api.client.post("/v1/disks", content=padded, headers={"Content-Type": "application/json"}), 422, "invalid-input"
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/disks/", 404, "not-found"),
        ("GET", "/v1/disks/none", 404, "not-found"),
        ("GET", "/v1/operations/none", 404, "not-found"),
        ("GET", "/v1/subnets/none", 404, "not-found"),
        ("GET", "/v1/gateways/none", 404, "not-found"),
        ("GET", "/problems/none", 404, "not-found"),
        ("DELETE", "/v1/tokens/none", 404, "not-found"),
        ("PATCH", "/v1/disks", 405, "method-not-allowed"),
        ("GET", "/v1/disks?limit=0", 422, "invalid-input"),
        ("GET", "/v1/disks?limit=1001", 422, "invalid-input"),
        ("GET", "/v1/disks?limit=many", 422, "invalid-input"),
        ("GET", "/v1/disks?state=sleeping", 422, "invalid-input"),
        ("GET", "/v1/disks?colour=red", 422, "invalid-input"),
        ("GET", "/v1/disks?limit=1&limit=2", 422, "invalid-input"),
        ("GET", "/v1/operations?marker=none", 422, "invalid-input"),
        ("GET", "/v1/paths?marker=none", 422, "invalid-input"),
        ("GET", "/v1/events?after=-1", 422, "invalid-input"),
        ("GET", f"/v1/events?after={2**64}", 422, "invalid-input"),
    ],
)
def test_whatever_is_asked_wrongly_is_answered_with_a_problem(api: Api, method: str, path: str, status: int, code: str) -> None:
    assert_problem(api.client.request(method, path), status, code)


CONTROL = ["\0", "\n", "\x1b", "\x7f", "\x85"]


@pytest.mark.rows("W-PA-19")
@pytest.mark.parametrize("character", CONTROL, ids=ascii)
def test_a_control_character_in_any_parameter_of_any_request_is_refused_by_its_name(api: Api, character: str) -> None:
    asked, text = set[str](), f"a{character}b"
    for path, methods in api.client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                name, where = parameter["name"], parameter["in"]
                if where == "header":
                    continue
                url = path.replace(f"{{{name}}}", quote(text)) if where == "path" else path
                answer = api.client.request(method, url, params={name: text} if where == "query" else None)
                errors = assert_problem(answer, 422, "invalid-input")["errors"]
                assert [(error["field"], error["rule"]) for error in errors] == [
                    (name, f"holds the control character U+{ord(character):04X}")
                ], f"{method} {path}"
                assert errors[0]["fix"]
                asked.add(f"{path}?{name}" if where == "query" else url)
    assert {"/v1/paths?disk_contains", "/v1/disks?name", "/v1/operations?resource_id", "/v1/whatif?lose"} <= asked


@pytest.mark.parametrize("character", CONTROL, ids=ascii)
@pytest.mark.parametrize(
    ("link", "body", "field"),
    [
        ("/v1/assignments", {"plan_id": "a{}"}, "plan_id"),
        ("/v1/tokens", {"name": "t", "role": "reader", "note": "a{}"}, "note"),
    ],
)
def test_a_control_character_in_text_that_is_kept_or_looked_for_is_refused(
    api: Api, link: str, body: dict[str, str], field: str, character: str
) -> None:
    answer = api.client.post(link, json={name: value.format(character) for name, value in body.items()})
    errors = assert_problem(answer, 422, "invalid-input")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert "control character" in errors[0]["rule"]
    assert errors[0]["fix"]


SURROGATE: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "/v1/tokens", {"name": "t", "role": "reader", "note": "a\ud800"}, "note"),
    ("POST", "/v1/assignments", {"plan_id": "\udfff"}, "plan_id"),
    ("POST", "/v1/disks", {"name": "db", "source": {"disk": "\ud800", "snapshot": "s"}}, "source.disk"),
    ("POST", "/v1/disks", {"name": "db", "source": {"disk": "d", "snapshot": "\ud800"}}, "source.snapshot"),
    ("POST", "/v1/assignments", {"planner": "\ud800"}, "planner"),
    ("PUT", "/v1/disks/db/marks", {"avoid": ["a", "\ud800"]}, "avoid[1]"),
    ("PUT", "/v1/disks/db/marks", {"pin": "\ud800"}, "pin"),
    ("POST", "/v1/disks", {**GOOD, "subnets": ["left", "\ud800"]}, "subnets[1]"),
    ("POST", "/v1/gateways/g/drain", {"confirm": "\ud800"}, "confirm"),
    ("POST", "/v1/notifications", {"name": "r", "url": "json://h.example/\ud800"}, "url"),
]


@pytest.mark.parametrize(("method", "link", "body", "field"), SURROGATE, ids=[field for *_, field in SURROGATE])
def test_half_a_character_in_any_text_of_a_body_is_refused_by_its_name(
    api: Api, method: str, link: str, body: dict[str, Any], field: str
) -> None:
    before = api.tables()
    answer = api.client.request(method, link, content=json.dumps(body), headers={"Content-Type": "application/json"})
    errors = assert_problem(answer, 422, "invalid-input")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert "surrogate" in errors[0]["rule"]
    assert errors[0]["fix"]
    assert api.tables() == before


def test_a_filter_takes_every_other_character_as_it_is(api: Api) -> None:
    for text in ("%", "_", "\\", "'", "é", "\u202e", "\N{GRINNING FACE}"):
        for link in ("/v1/paths?disk_contains", "/v1/disks?name"):
            answer = api.client.get(f"{link}={quote(text)}")
            assert (answer.status_code, *answer.json().values()) == (200, [], None), text


def test_a_method_that_is_not_there_is_answered_with_those_that_are(api: Api) -> None:
    assert api.client.put("/v1/disks").headers["Allow"] == "GET, POST"


def test_a_misspelt_dry_run_does_not_become_the_real_thing(api: Api) -> None:
    before = api.tables()
    answer = api.client.post("/v1/disks?dryrun=true", json=GOOD)
    assert "dry_run" in assert_problem(answer, 422, "invalid-input")["detail"]
    assert_problem(api.client.post("/v1/disks?dry_run=perhaps", json=GOOD), 422, "invalid-input")
    assert api.tables() == before


@pytest.mark.parametrize("key", ["", "a" * 256, "with space"])
def test_a_bad_idempotency_key_is_refused(api: Api, key: str) -> None:
    answer = api.client.post("/v1/disks", json=GOOD, headers={"Idempotency-Key": key})
    assert assert_problem(answer, 422, "invalid-input")["errors"][0]["field"] == "Idempotency-Key"


def test_what_goes_wrong_inside_is_not_told_outside(api: Api) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret of the house")

    api.images.capacity, kept = broken, api.images.capacity  # type: ignore[assignment, method-assign]
    try:
        answer = api.client.post("/v1/disks", json=GOOD)
    finally:
        api.images.capacity = kept  # type: ignore[method-assign]
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["name", "size_bytes", "paths", "subnets", "addresses", "access", "initiators", "allow_any", "iqn", "started"]


@trying(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON).map(lambda given: {"name": "", **given} | {"name": "!"}))
def test_no_body_at_all_makes_the_service_fail(api: Api, body: dict[str, Any]) -> None:
    answer = api.client.post("/v1/disks", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "invalid-input")
