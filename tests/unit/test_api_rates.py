"""How often operations may be asked for: what is refused is told when to ask again, and has left nothing behind."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.rates import Rates
from sanderling.errors import SettingsRefused, TooManyRequests
from sanderling.model.operations import OperationKind
from sanderling.records.tokens import Role
from tests.unit.api_app import GIB, Api, running

CREATE, MARK, RECOVER = OperationKind.CREATE_DISK, OperationKind.MARK_DISK, OperationKind.RECOVER_DISKS
AT_ONCE = 500
LIMIT = 120


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path, rate_limits="disks.recover: 2/hour, gateway.drain: 1/hour") as served:
        yield served


def new_disk(api: Api, number: int, **asked: str) -> httpx.Response:
    body = {"name": f"d{number}", "size_bytes": GIB, "addresses": [f"10.3.{number // 250}.{number % 250 + 1}"]}
    answer: httpx.Response = api.client.post("/v1/disks", json=body, headers=asked)
    return answer


def roomy(api: Api) -> None:
    """A subnet with an address for each of very many disks."""
    pool = {"pool_first": "10.3.0.1", "pool_last": "10.3.15.254"}
    made = api.client.post("/v1/subnets", json={"name": "wide", "cidr": "10.3.0.0/20", "interface": "eth1", **pool})
    assert made.status_code == 201, made.text


def test_every_kind_and_every_caller_is_counted_by_itself() -> None:
    rates = Rates("disk.create: 2/hour, *: 1/hour")
    for kind, caller in ((CREATE, "a"), (CREATE, "a"), (MARK, "a"), (CREATE, "b")):
        rates.count(kind, caller)
    for kind, caller in ((CREATE, "a"), (MARK, "a")):
        with pytest.raises(TooManyRequests) as refused:
            rates.count(kind, caller)
        assert 3590 <= refused.value.context["retry_after_s"] <= 3600
        assert refused.value.context["kind"] == kind


def test_a_kind_without_a_limit_is_not_limited() -> None:
    rates = Rates("disk.create: 1/hour")
    for _ in range(9):
        rates.count(MARK, "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("disk.paint: 1/hour", "disk.paint is no kind of operation"),
        ("disk.create", "disk.create cannot be read; write it as disk.create: 600/minute"),
        ("disk.create: often", "disk.create: often cannot be read"),
        ("disk.create: 0/hour", "lets nobody ask"),
        ("disk.create: 1/hour, disk.create: 2/hour", "disk.create is named twice"),
    ],
)
def test_limits_that_cannot_be_read_are_refused_by_naming_them(text: str, said: str) -> None:
    with pytest.raises(SettingsRefused, match=said):
        Rates(text)


def test_one_request_too_many_is_told_when_to_ask_again_and_leaves_nothing(api: Api) -> None:
    assert api.client.post("/v1/recoveries").status_code == 202
    assert api.client.post("/v1/recoveries").status_code == 409
    before = api.tables()
    refused = api.client.post("/v1/recoveries")
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-requests")
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    assert int(refused.headers["Retry-After"]) == refused.json()["retry_after_s"]
    assert api.tables() == before
    assert "429" in api.client.get("/openapi.json").json()["paths"]["/v1/recoveries"]["post"]["responses"]
    assert new_disk(api, 1).json()["type"] != "/problems/too-many-requests"


def test_a_dry_run_and_a_repeat_with_its_key_are_not_counted(api: Api) -> None:
    for _ in range(3):
        assert api.client.post("/v1/recoveries?dry_run=true").status_code == 200
        assert api.client.post("/v1/recoveries", headers={"Idempotency-Key": "k"}).status_code == 202


def test_another_token_may_still_ask(tmp_path: Path) -> None:
    with running(tmp_path, rate_limits="disk.create: 1/hour") as api:
        roomy(api)
        operator = {"Authorization": f"Bearer {api.secrets[Role.OPERATOR]}"}
        answers = [new_disk(api, 1), new_disk(api, 2), new_disk(api, 3, **operator)]
        assert [answer.status_code for answer in answers] == [202, 429, 202]


def test_limits_that_cannot_be_read_keep_the_process_from_starting(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="rate_limits"), running(tmp_path, rate_limits="disk.create: often"):
        pass


@pytest.mark.parametrize("bound", [{"rate_limits": f"disk.create: {LIMIT}/hour"}, {"open_operations_max": LIMIT}])
def test_of_very_many_at_once_just_as_many_as_may_be_are_accepted_and_the_others_leave_nothing(
    tmp_path: Path, bound: dict[str, Any]
) -> None:
    with running(tmp_path, **bound) as api:
        roomy(api)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda number: new_disk(api, number), range(AT_ONCE)))
        assert Counter(answer.status_code for answer in answers) == {202: LIMIT, 429: AT_ONCE - LIMIT}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status_code == 429)
        accepted = {answer.json()["id"] for answer in answers if answer.status_code == 202}
        tables = api.tables()
        assert len(accepted) == len(tables["operations"]) == len(tables["disks"]) == len(tables["paths"]) == LIMIT
        assert {operation["id"] for operation in api.client.get("/v1/operations?limit=1000").json()["operations"]} == accepted
