"""Messages: what an old and a new release may send each other, and how a failure crosses."""

import pytest
from oslo_messaging._drivers.common import deserialize_remote_exception, serialize_remote_exception
from pydantic import ValidationError

import rpc.messages
from rpc.messages import ExportCommand, ExportReport, Message, Ping, Pong, Wake
from sanderling.errors import Busy, NotFound, Problem
from sanderling.model.exports import Epoch, ExportId

SAMPLES: list[Message] = [
    Wake(operation_id="o"),
    ExportCommand(operation_id="o", disk_id="d", index=1, generation=2, counter=3),
    ExportReport(report_id="r", node="n", disk_id="d", index=0, generation=1, counter=1, seen="served", detail={"a": [1]}),
    Ping(),
    Pong(server="s"),
]


def test_every_message_has_a_sample_here() -> None:
    kinds = {kind for kind in vars(rpc.messages).values() if isinstance(kind, type) and issubclass(kind, Message)}
    assert kinds - {Message} == {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_a_message_is_the_same_after_it_has_crossed(sample: Message) -> None:
    assert type(sample).model_validate_json(sample.model_dump_json()) == sample
    assert type(sample).model_validate(sample.model_dump(mode="json")) == sample


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_fields_of_a_later_release_are_ignored(sample: Message) -> None:
    assert type(sample).model_validate(sample.model_dump() | {"since_then": {"a": 1}}) == sample


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Wake(operation_id="o").operation_id = "p"


@pytest.mark.parametrize("version", ["1.0", "1.7", "1.99", "0.9"])
def test_a_version_of_the_same_or_an_older_major_is_read(version: str) -> None:
    assert Wake.model_validate({"operation_id": "o", "version": version}).version == version


@pytest.mark.parametrize("version", ["2.0", "10.0", "", "one", "-1.0", "²", None, 1])
def test_a_newer_major_version_or_none_at_all_is_refused(version: object) -> None:
    with pytest.raises(ValidationError, match="version"):
        Wake.model_validate({"operation_id": "o", "version": version})


def test_a_message_without_a_version_is_of_the_first() -> None:
    assert Wake.model_validate({"operation_id": "o"}).version == rpc.messages.VERSION


def test_a_command_names_its_export_and_epoch() -> None:
    command = ExportCommand(operation_id="o", disk_id="d", index=1, generation=2, counter=3)
    assert (command.export, command.epoch) == (ExportId("d", 1), Epoch(2, 3))


def test_oslos_remote_form_of_a_problem_does_not_upset_the_registry() -> None:
    known = dict(Problem.by_code)
    try:
        raise Busy("busy", operation_id="7")
    except Busy as problem:
        wire = serialize_remote_exception((Busy, problem, problem.__traceback__))
    remote = deserialize_remote_exception(wire, ["sanderling.errors"])
    assert type(remote).__name__ == "Busy_Remote"
    assert Problem.by_code == known


def test_a_problem_is_the_same_after_it_has_crossed_in_an_envelope() -> None:
    crossed = Problem.from_wire(NotFound("no disk d1", disk="d1").to_wire())
    assert (type(crossed), crossed.detail, crossed.context) == (NotFound, "no disk d1", {"disk": "d1"})
