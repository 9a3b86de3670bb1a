"""Coordination against a server that answers what no Consul would say on demand: odd indexes, errors, garbage, nothing."""

import base64
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cli.lab.parts.daemons import run
from sanderling.clock import ManualClock, SystemClock
from sanderling.coordination.base import Put
from sanderling.coordination.consul import STANDSTILL_PAUSE_S, ConsulCoordination
from sanderling.errors import SessionLost, SettingsRefused, TooLarge, Unavailable
from sanderling.settings import Coordination
from tests.contract.coordination_calls import CALLS, ID, WITHIN_S, assert_unavailable, coordination, within_bound


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    token: str | None
    body: bytes


@dataclass(slots=True)
class Canned:
    """A server that answers what the test says: per path prefix (status, index header, body), the first that fits."""

    url: str = ""
    answers: list[tuple[str, int, str | None, bytes]] = field(default_factory=list)
    once: list[tuple[str, int, str | None, bytes]] = field(default_factory=list)  # before those, and then no more
    asked: list[Asked] = field(default_factory=list)
    stall_at: int | None = None  # after how many bytes of a body nothing more comes
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, body: Any, *, status: int = 200, index: str | None = "7") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.insert(0, (path, status, index, raw))


def _handler(canned: Canned) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            canned.asked.append(Asked(self.command, url.path, query, self.headers.get("X-Consul-Token"), body))
            fits = [answer for answer in (*canned.once, *canned.answers) if url.path.startswith(answer[0])]
            said = _, status, index, raw = fits[0] if fits else ("", 500, None, b"nothing canned")
            if said in canned.once:
                canned.once.remove(said)
            self.send_response(status)
            if index is not None:
                self.send_header("X-Consul-Index", index)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[: canned.stall_at])
            if canned.stall_at is not None:
                self.wfile.flush()
                SystemClock().wait(canned.released, WITHIN_S * 2)

        do_GET = do_PUT = _answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler


@contextmanager
def serving(canned: Canned, *, tls: ssl.SSLContext | None = None) -> Iterator[Canned]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(canned))
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    canned.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield canned
    finally:
        canned.released.set()
        server.shutdown()
        server.server_close()
        thread.join(WITHIN_S)


@pytest.fixture
def canned() -> Iterator[Canned]:
    with serving(Canned()) as one:
        yield one


def raw_entry(value: bytes = b"v", *, index: int = 7, **more: Any) -> dict[str, Any]:
    return {"Key": "sanderling/a", "Value": base64.b64encode(value).decode(), "ModifyIndex": index, **more}


def test_an_index_of_0_is_never_sent_back(canned: Canned) -> None:
    canned.answer("/v1/kv/", [raw_entry()], index="0")
    store = coordination(canned.url)
    listing = store.list("")
    assert listing.index == 1
    store.watch("", index=listing.index, timeout_s=0.2)
    store.watch("", index=0, timeout_s=0.0)
    assert [(asked.query["index"], asked.query["wait"]) for asked in canned.asked[1:]] == [("1", "200ms"), ("1", "1ms")]


def test_a_store_that_answers_at_once_without_news_is_not_asked_again_at_once(canned: Canned) -> None:
    clock = ManualClock()
    store = ConsulCoordination(Coordination(url=canned.url), clock=clock)
    canned.answer("/v1/kv/", [raw_entry()], index="1")
    for _ in range(4):
        store.watch("", index=1, timeout_s=10.0)
    assert clock.monotonic() == 4 * STANDSTILL_PAUSE_S
    canned.answer("/v1/kv/", [raw_entry()], index="8")
    store.watch("", index=7, timeout_s=10.0)
    assert clock.monotonic() == 4 * STANDSTILL_PAUSE_S, "there was news"


@pytest.mark.rows("W-LE-7")
def test_an_index_that_goes_back_is_followed(canned: Canned) -> None:
    store = coordination(canned.url)
    sent = 500
    for answered in ("500", "7", "9"):
        canned.answer("/v1/kv/", [raw_entry()], index=answered)
        sent = store.watch("", index=sent, timeout_s=0.2).index
    store.watch("", index=sent, timeout_s=0.2)
    assert [asked.query["index"] for asked in canned.asked] == ["500", "500", "7", "9"]


@pytest.mark.parametrize("index", [None, "many", ""])
def test_a_listing_without_a_usable_index_is_unavailable(canned: Canned, index: str | None) -> None:
    canned.answer("/v1/kv/", [raw_entry()], index=index)
    assert_unavailable(coordination(canned.url), "list", "watch")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"<html>",
        b"[1]",
        b'["a"]',
        b'{"a":1}',
        b'[{"Key":"a"}]',
        b'[{"Key":"a","Value":"A","ModifyIndex":1}]',
        b'"text"',
        b"7",
    ],
)
def test_garbage_is_unavailable(canned: Canned, garbage: bytes) -> None:
    canned.answer("/v1/", garbage)
    assert_unavailable(coordination(canned.url, request_timeout_s=0.2))


def test_every_read_is_consistent(canned: Canned) -> None:
    canned.answer("/v1/kv/", [raw_entry()])
    canned.answer("/v1/txn", {"Results": None, "Errors": None})
    canned.answer("/v1/session/info/", [])
    store = coordination(canned.url)
    for name in ("get", "list", "watch", "put", "session_is_live"):
        CALLS[name](store)
    assert all("consistent" in asked.query for asked in canned.asked)


@pytest.mark.parametrize("what", ["invalid session", "failed to lock key due to lock delay"])
def test_a_refused_lock_is_a_lost_session_when_consul_has_no_such_session(canned: Canned, what: str) -> None:
    canned.answer("/v1/txn", {"Results": None, "Errors": [{"OpIndex": 0, "What": what}]}, status=409)
    canned.answer("/v1/session/info/", [])
    store = coordination(canned.url)
    with pytest.raises(SessionLost):
        store.acquire("a", b"", consul_session=ID)
    with pytest.raises(SessionLost):
        store.renew_session(ID)
    canned.answer("/v1/session/info/", [{"ID": ID, "Checks": ["serfHealth"]}])
    assert store.acquire("a", b"", consul_session=ID) is False


def test_deleting_checks_the_index_as_well_since_consul_deletes_nothing_with_success(canned: Canned) -> None:
    canned.answer("/v1/txn", {"Results": [{"KV": raw_entry(index=7)}], "Errors": None})
    assert coordination(canned.url).delete("a", expected=7)
    ops = [op["KV"] for op in json.loads(canned.asked[1].body)]
    assert [(op["Verb"], op["Index"]) for op in ops] == [("check-index", 7), ("delete-cas", 7)]


def test_a_change_that_others_keep_preventing_ends_within_the_bound(canned: Canned) -> None:
    canned.answer("/v1/txn", {"Results": None, "Errors": [{"OpIndex": 0, "What": "index is stale"}]}, status=409)
    store = coordination(canned.url, request_timeout_s=0.2)
    assert_unavailable(store, "put", "delete")
    assert store.put("a", b"", expected=0) is False


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"No cluster leader"), (429, b"slow down"), (403, b"Permission denied"), (400, b"bad")]
)
def test_an_error_is_unavailable(canned: Canned, status: int, body: bytes) -> None:
    canned.answer("/v1/", body, status=status)
    assert_unavailable(coordination(canned.url, request_timeout_s=0.2))


def test_a_request_that_consul_finds_too_large_is_too_large(canned: Canned) -> None:
    canned.answer("/v1/txn", b"Request body too large", status=413)
    with pytest.raises(TooLarge):
        coordination(canned.url).txn([Put("a", b"", 0)])


@pytest.mark.parametrize(("status", "body"), [(404, b"Unknown check ID"), (500, b'CheckID "c" does not have associated TTL')])
def test_a_check_that_the_agent_does_not_know_is_a_lost_session(canned: Canned, status: int, body: bytes) -> None:
    canned.answer("/v1/session/info/", [{"ID": ID, "Checks": ["serfHealth", "sanderling:w:1"]}])
    canned.answer("/v1/agent/check/pass/", body, status=status)
    with pytest.raises(SessionLost):
        coordination(canned.url).renew_session(ID)


def test_feeding_asks_the_local_agent_alone(canned: Canned) -> None:
    canned.answer("/v1/session/info/", [{"ID": ID, "Checks": ["serfHealth", "sanderling:w:1"]}])
    canned.answer("/v1/agent/check/pass/", b"")
    store = coordination(canned.url)
    for _ in range(3):
        store.renew_session(ID)
    assert [asked.path.removeprefix("/v1/") for asked in canned.asked] == [
        f"session/info/{ID}",
        *["agent/check/pass/sanderling:w:1"] * 3,
    ]


def test_a_session_that_cannot_be_opened_leaves_no_check(canned: Canned) -> None:
    canned.answer("/v1/agent/check", b"{}")
    canned.answer("/v1/session/create", b"Check 'serfHealth' is in critical state", status=500)
    assert_unavailable(coordination(canned.url, request_timeout_s=0.2), "open_session")
    checks = [asked.path for asked in canned.asked if "check/" in asked.path]
    assert [path.split("/")[4] for path in checks] == ["register", "deregister"]
    assert json.loads(canned.asked[1].body)["id"] == checks[1].rpartition("/")[2]


def test_a_session_waits_for_its_check_to_reach_the_catalog(canned: Canned) -> None:
    canned.answer("/v1/agent/check", b"{}")
    canned.answer("/v1/session/create", {"ID": ID})
    canned.once.append(("/v1/session/create", 500, None, b"Missing check 'sanderling:w:1' registration"))
    assert coordination(canned.url).open_session("w", check_ttl_s=5.0) == ID
    assert [asked.path for asked in canned.asked].count("/v1/session/create") == 2


@pytest.mark.rows("IS-5")
def test_a_session_asks_for_the_lock_delay_and_hangs_on_the_node_and_its_check(canned: Canned) -> None:
    canned.answer("/v1/agent/check", b"{}")
    canned.answer("/v1/session/create", {"ID": ID})
    coordination(canned.url).open_session("w", check_ttl_s=0.5, lock_delay_s=3)
    registered, created = (json.loads(asked.body) for asked in canned.asked[1:])
    assert (registered["ttl"], registered["status"]) == ("500ms", "passing")
    assert created == {"name": "w", "checks": ["serfHealth", registered["id"]], "lockdelay": "3s"}


def test_an_answer_that_stops_half_way_is_unavailable_within_the_bound(canned: Canned) -> None:
    canned.answer("/v1/", [raw_entry()])
    canned.stall_at = 3
    assert_unavailable(coordination(canned.url, request_timeout_s=0.2))


def test_an_answer_that_never_begins_is_unavailable_within_the_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert_unavailable(coordination(f"http://127.0.0.1:{silent.getsockname()[1]}", request_timeout_s=0.2))


def test_the_token_goes_with_every_request_and_into_no_error(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of the environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    canned.answer("/v1/", b"no", status=403)
    store = coordination(canned.url, token="hidden", request_timeout_s=0.2)
    for call in CALLS.values():
        with pytest.raises(Unavailable) as caught:
            call(store)
        assert "hidden" not in f"{caught.value} {caught.value.context}"
    assert {asked.token for asked in canned.asked} == {"hidden"}


def test_without_a_token_none_is_sent(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of the environment")
    assert_unavailable(coordination(canned.url), "get")
    assert {asked.token for asked in canned.asked} == {None}


def test_https_trusts_the_ca_that_was_named_and_no_other(tmp_path: Path) -> None:
    for name in ("ours", "other"):
        (tmp_path / name).mkdir()
        run(["sh", "-c", f"cd {tmp_path}/{name} && consul tls ca create"])
    run(["sh", "-c", f"cd {tmp_path}/ours && consul tls cert create -server -additional-ipaddress=127.0.0.1"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "ours/dc1-server-consul-0.pem", tmp_path / "ours/dc1-server-consul-0-key.pem")
    with serving(Canned(), tls=tls) as canned:
        canned.answer("/v1/kv/", [raw_entry(b"secret")])
        trusting = coordination(canned.url, ca_file=str(tmp_path / "ours/consul-agent-ca.pem"))
        entry = within_bound(lambda: trusting.get("a"))
        assert entry.value == b"secret"
        assert_unavailable(coordination(canned.url, ca_file=str(tmp_path / "other/consul-agent-ca.pem")), "get")


@pytest.mark.parametrize(
    "bounds",
    [
        {"url": "127.0.0.1:8500"},
        {"url": "http://"},
        {"url": "http://a:port"},
        {"url": "http://a/consul"},
        {"url": "ftp://a"},
        {"prefix": "/sanderling"},
        {"ca_file": "/no/such/file"},
    ],
)
def test_settings_that_cannot_work_are_refused(bounds: dict[str, str]) -> None:
    with pytest.raises(SettingsRefused, match=next(iter(bounds))):
        coordination(**{"url": "http://127.0.0.1:8500", **bounds})
