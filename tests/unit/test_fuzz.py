"""Requests that nobody thought of, made from the API's own description: no answer is a 5xx, each is as the description says.

`make fuzz CASES=1000` tries as many of each operation, a run of all tests a few. The event stream, which does not end, is left
out, and so is one of schemathesis's checks, that whatever the schema allows is accepted: the description says what a field looks
like, and not every rule (a gateway that lives, a subnet that overlaps none) is about looks.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as trying
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sanderling.images.base import Snapshot
from sanderling.records.tokens import Role
from tests.unit.api_app import GIB, Api, listening, running

CASES: Final = int(os.environ.get("SANDERLING_FUZZ_CASES", "6"))
LEFT_OUT: Final = [positive_data_acceptance]
ANYTHING: Final = list(HealthCheck)
THERE: Final = {"disk": "there", "snapshot": "kept", "subnet": "left", "token": "a-reader"}


TIMES: Final = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")
HALF: Final = "\ud800"


def _at_the_edges(case: Any, number: int) -> None:
    """Values that a generator of valid text and sensible times does not come to, in place of some that it made."""
    for parameter in case.operation.definition.raw.get("parameters", []):
        if parameter["in"] == "query" and "date-time" in json.dumps(parameter):
            case.query = {**(case.query or {}), parameter["name"]: TIMES[number % len(TIMES)]}
    if isinstance(case.body, dict):
        texts = [name for name, value in case.body.items() if isinstance(value, str) and name not in {"name", "role"}]
        case.body.update(dict.fromkeys(texts, HALF))  # a name or role is refused for its looks before it is used


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("api")) as served:
        disk = served.disk("there", started=False)
        served.images.kept[f"sanderling-{disk['resource_id']}"] = (Snapshot("kept", GIB, served.clock.wall()),)
        yield served


@pytest.fixture(scope="module")
def schema(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with listening(api, tmp_path_factory.mktemp("client") / "client.json") as file:
        url = json.loads(file.read_text())["url"]
        yield schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path="/v1/events")


@pytest.mark.timeout(CASES * 60 + 120)
def test_whatever_is_asked_the_answer_is_one_that_the_description_allows(api: Api, schema: Any, record_property: Any) -> None:
    tried, faults = 0, []
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @trying(max_examples=CASES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=ANYTHING)
        def try_it(case: Any) -> None:
            nonlocal tried
            tried += 1
            if case.meta.generation.mode is GenerationMode.POSITIVE and tried % 2:  # most names that are made up are nobody's
                case.path_parameters.update({name: there for name, there in THERE.items() if name in case.path_parameters})
            if tried % 3 == 0:
                _at_the_edges(case, tried)
            token = api.secrets[Role.ADMIN]
            case.call_and_validate(headers={"Authorization": f"Bearer {token}"}, excluded_checks=LEFT_OUT)

        try:
            try_it()
        except (Exception, BaseExceptionGroup) as fault:  # noqa: BLE001  the next operation is tried all the same
            faults.append(f"{operation.label}: {fault}")
    record_property("cases", tried)
    assert not faults, "\n\n".join(faults)
    assert tried >= CASES * 20
