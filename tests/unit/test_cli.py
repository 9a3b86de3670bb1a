"""What the command line says without asking anybody."""

import ast
import json
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from sse_starlette import EventSourceResponse

from cli import access
from cli import client as client_module
from cli.client import Client, at
from cli.commands import secrets
from cli.commands.disks import size_bytes
from cli.main import app, run
from cli.output import size, watched
from sanderling.errors import InvalidInput, Malformed, NotFound, Problem, Unauthenticated, Unavailable


def commands() -> list[tuple[str, Any]]:
    """Every command with its full name. Typer brings a click of its own, so the kinds are told apart by what they have."""
    nouns: Any = typer.main.get_command(app)
    found: list[tuple[str, Any]] = []
    for noun, command in nouns.commands.items():
        verbs = getattr(command, "commands", {"": command})
        found += [(f"{noun} {verb}".strip(), one) for verb, one in verbs.items()]
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda one: one if isinstance(one, str) else "")
def test_every_command_says_what_it_does_and_gives_an_example(name: str, command: Any) -> None:
    assert command.help
    assert command.epilog, name
    assert command.epilog.startswith("Example: ")
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1G", 1 << 30), ("512M", 512 << 20), ("1.5T", 3 << 39), ("10GiB", 10 << 30), ("1GB", 10**9), ("4096", 4096), ("0", 0)],
)
def test_sizes_are_read_as_rbd_and_qemu_read_them(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "1X", "G", "-1G"])
def test_what_is_no_size_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="--size"):
        size_bytes(text)


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (1 << 30, "1 GiB"), (1536 << 20, "1.5 GiB"), (1 << 63, "8192 PiB")])
def test_sizes_are_said_in_powers_of_1024(count: int, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize("typed", ["", ".", "..", "../disks/prod", "x/../..", "prod/snapshots/now", "prod\n", "pr\udc80d"])
def test_what_cannot_be_a_name_is_sent_to_nobody(typed: str) -> None:
    with pytest.raises(InvalidInput, match="NAME"):
        at("disks", "prod", "snapshots", typed)


@pytest.mark.parametrize("typed", ["prod#old", "prod?force=true&confirm=prod", "prod%2Fold", "prod;old", "größe"])
def test_whatever_is_typed_as_a_name_it_is_one_part_of_the_path(typed: str) -> None:
    asked: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(204)

    client = Client(access.Access("http://127.0.0.1:1", "t"), transport=httpx.MockTransport(answer))
    client.delete(at("disks", typed))
    assert (asked[0].path, asked[0].query, asked[0].fragment) == (f"/v1/disks/{typed}", b"", "")


def test_no_command_puts_what_was_typed_into_a_path_by_itself() -> None:
    for file in (Path(client_module.__file__).parent / "commands").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                assert not str(node.values[0].value).startswith("/v1/"), f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ((None, Path("f"), None, None), "--chap-user"),
        ((None, None, "san", None), "--chap-user"),
        ((None, None, None, Path("f")), "--chap-user"),
        (("host", Path("f"), None, Path("f")), "--mutual-user"),
    ],
)
def test_a_secret_without_its_user_is_refused_rather_than_ignored(given: Any, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        secrets.chap("--chap-user", *given)


def test_without_a_user_nobody_proves_anything_and_with_one_whoever_was_named_does(tmp_path: Path) -> None:
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    own.write_text("twelve-bytes\n")
    theirs.write_text("other-twelve\n")
    assert secrets.chap("--user", None, None, None, None) is None
    one_way = {"user": "host", "secret": "twelve-bytes"}
    assert secrets.chap("--user", "host", own, None, None) == one_way
    both = one_way | {"mutual_user": "san", "mutual_secret": "other-twelve"}
    assert secrets.chap("--user", "host", own, "san", theirs) == both


def test_a_client_file_is_its_owners_alone_and_says_its_token_to_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "client.json"
    written = access.Access("http://127.0.0.1:1", "sdl_secret")
    access.write(file, written)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert access.read(file) == written
    assert "sdl_secret" not in repr(written)


def test_the_named_client_file_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDERLING_CLIENT", str(tmp_path / "none.json"))
    with pytest.raises(Unauthenticated, match=r"none\.json"):
        access.find()


def test_a_client_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "client.json"
    file.write_text("{")
    with pytest.raises(Malformed, match=r"client\.json"):
        access.read(file)


@pytest.mark.parametrize(
    ("held", "rule"),
    [
        (b'{"url": "u", "token": "CANARY\xfc"}', "not JSON in UTF-8"),
        pytest.param(b'{"token": "CANARY", "x": ' + b"[" * 100_000, "not JSON in UTF-8", id="deep"),
        (b'{"url": "u", "token": "CANARY}', "not JSON: .* line 1"),
        (b"[]", "no JSON object"),
        (b'{"token": "CANARY"}', "url: is missing"),
        (b'{"url": "u"}', "token: is missing"),
        (b'{"url": "u", "token": ["CANARY"]}', "token: is missing or no text"),
        (b'{"url": "u", "token": "CANARY", "ca_file": null}', "ca_file: is missing or no text"),
        (b'{"url": "u", "token": ""}', "token: is not one word"),
        (b'{"url": "u", "token": "CANARY\xe2\x80\x99"}', "token: is not one word of printable ASCII"),
        (b'{"url": "u", "token": "CANARY\\n"}', "token: is not one word of printable ASCII"),
        (b'{"url": "u", "token": "CAN ARY"}', "token: is not one word of printable ASCII"),
    ],
)
def test_what_a_client_file_lacks_is_said_without_what_it_holds(tmp_path: Path, held: bytes, rule: str) -> None:
    file = tmp_path / "client.json"
    file.write_bytes(held)
    with pytest.raises(Malformed, match=rule) as caught:
        access.read(file)
    assert str(file) in caught.value.detail
    assert "CAN" not in repr(caught.value)


@pytest.fixture
def faulty() -> Iterator[None]:
    """A command with a fault has been typed."""

    @app.command("faulty")
    def fails() -> None:
        raise UnicodeDecodeError("utf-8", b"CANARY\xfc", 6, 7, "invalid start byte")

    typed, sys.argv = sys.argv, ["sanderling", "faulty"]
    yield
    sys.argv = typed
    app.registered_commands.pop()


@pytest.mark.usefixtures("faulty")
def test_a_fault_of_ours_is_named_without_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "sanderling: a fault of ours: UnicodeDecodeError; set SANDERLING_DEBUG=1 to see where\n"
    monkeypatch.setenv("SANDERLING_DEBUG", "1")
    with pytest.raises(UnicodeDecodeError):
        run()


def test_problems_come_back_as_the_service_meant_them() -> None:
    document = {"type": "/problems/not-found", "title": "t", "status": 404, "detail": "there is no disk x", "disk": "x"}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json=document, request=request)

    client = Client(access.Access("http://test", "t"), transport=httpx.MockTransport(answer))
    with pytest.raises(NotFound, match="there is no disk x") as caught:
        client.get("/v1/disks/x")
    assert caught.value.context["disk"] == "x"


def test_an_answer_that_is_no_problem_document_is_a_problem_all_the_same() -> None:
    client = Client(
        access.Access("http://test", "t"), transport=httpx.MockTransport(lambda _: httpx.Response(502, text="<html>"))
    )
    with pytest.raises(Problem, match="502"):
        client.get("/v1/disks")


@pytest.mark.parametrize("verb", ["post", "delete"])
def test_a_change_whose_answer_is_lost_is_asked_for_once_more_with_its_key(verb: str) -> None:
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("Idempotency-Key"))
        if len(keys) == 1:
            raise httpx.ReadError("the connection was reset", request=request)
        return httpx.Response(202, json={"id": "o"})

    client = Client(access.Access("http://test", "t"), transport=httpx.MockTransport(answer))
    assert getattr(client, verb)("/v1/disks/x", key="k") == {"id": "o"}
    assert keys == ["k", "k"]


@pytest.mark.parametrize(("key", "times"), [(None, 1), ("k", 2)])
def test_a_service_that_does_not_answer_is_asked_twice_at_most_and_without_a_key_once(key: str | None, times: int) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadError("the connection was reset", request=request)

    client = Client(access.Access("http://test", "t"), transport=httpx.MockTransport(answer))
    with pytest.raises(Unavailable, match="http://test"):
        client.post("/v1/disks", {}, key=key)
    assert len(asked) == times


def test_an_operation_is_watched_no_longer_once_we_are_told_to_stop() -> None:
    operation: dict[str, Any] = {
        "id": "o",
        "kind": "disk.create",
        "resource_name": "demo",
        "state": "running",
        "steps": [],
        "ended_at": None,
    }
    client = Client(
        access.Access("http://test", "t"), transport=httpx.MockTransport(lambda _: httpx.Response(200, json=operation))
    )
    told = threading.Event()
    told.set()
    assert watched(client, operation, told=told) == operation


def test_a_stream_of_events_is_given_up_when_not_even_comments_come() -> None:
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"")

    client = Client(access.Access("http://127.0.0.1:1", "t"), transport=httpx.MockTransport(answer))
    assert list(client.events(after=None)) == []
    assert waits[0] >= 2 * EventSourceResponse.DEFAULT_PING_INTERVAL


def test_a_listing_is_followed_to_its_last_page() -> None:
    pages = {"": {"disks": [{"n": 1}], "next": "/v1/disks?marker=a"}, "a": {"disks": [{"n": 2}], "next": None}}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=json.dumps(pages[request.url.params.get("marker", "")]))

    client = Client(access.Access("http://test", "t"), transport=httpx.MockTransport(answer))
    assert [disk["n"] for disk in client.pages("/v1/disks", "disks")] == [1, 2]
