"""Secrets that can be recognised, through every verb that takes one and every way to fail: none is found anywhere afterwards."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from structlog.testing import capture_logs

from iscsi_worker.addresses.memory import Memory
from rpc.dispatch import Dispatch
from rpc.messages import Message, Wake
from rpc.signing import Signing
from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.coordination.consul import ConsulCoordination
from sanderling.errors import SettingsRefused, Unavailable
from sanderling.secrets import Keyring
from tests.canary import found
from tests.unit.api_app import GIB, Api, running
from tests.unit.test_worker import Node

ONE_WAY, MUTUAL, SHORT, LONG = "Canary-1way-xQ7", "Canary-2way-pV3", "Canary-shrt", "Canary-longer-than-16-b"
CHAP = {"user": "alice", "secret": ONE_WAY, "mutual_user": "target", "mutual_secret": MUTUAL}
BUS, CONSUL, RECORDS, KEY = "Canary-bus-mM8", "Canary-consul-kK2", "Canary-records-rR4", Fernet.generate_key().decode()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    file.write_text(f"{KEY}\n")
    with running(tmp_path, key_file=file) as served:
        yield served


def test_no_secret_is_found_in_answers_logs_history_or_the_database(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[bytes] = []

    def ask(method: str, path: str, **given: Any) -> None:
        answer = api.client.request(method, path, **given)
        heard.append(answer.content + repr(answer.headers).encode())

    chap: list[dict[str, str]] = [
        CHAP,
        CHAP | {"secret": SHORT},
        CHAP | {"secret": LONG},
        CHAP | {"mutual_secret": ONE_WAY},
        CHAP | {"unknown": MUTUAL},
        {"user": "a b", "secret": ONE_WAY},
        {"secret": ONE_WAY},
    ]
    with capture_logs() as said:
        for number, each in enumerate(chap):
            body = {"name": f"disk-{number}", "size_bytes": GIB, "allow_any": True, "chap": each}
            for query in ("?dry_run=true", "", ""):
                ask("POST", f"/v1/disks{query}", json=body, headers={"Idempotency-Key": f"k{number}"})
            ask("PATCH", "/v1/disks/disk-0", json={"chap": each}, headers={"Idempotency-Key": f"p{number}"})
        ask("POST", "/v1/disks", content=f'{{"name": "x", "chap": {{"secret": "{ONE_WAY}"'.encode())
        ask("POST", "/v1/disks", json={"name": "y", "size_bytes": GIB, "secret": ONE_WAY})
        ask("POST", "/v1/disks", json=ONE_WAY)
        ask("POST", "/v1/disks", json={"name": "z", "size_bytes": GIB, "chap": ONE_WAY})
        made = api.client.post("/v1/tokens", json={"name": "ci", "role": "reader"}).json()["token"]
        for verb in ("start", "stop"):
            ask("POST", f"/v1/disks/disk-0/{verb}", headers={"X-Auth-Token": made})
        ask("GET", "/v1/disks", headers={"Authorization": f"Basic {made}"})
        ask("DELETE", "/v1/tokens/ci", headers={"Authorization": f"Bearer {made}x"})
        listed = "disks operations events?after=0 tokens paths subnets assignments gateways leaders"
        for noun in listed.split():
            ask("GET", f"/v1/{noun}", headers={"Accept": "application/json"})
        for path in ("/metrics", "/openapi.json", "/readyz", "/v1/disks/disk-0", "/v1/disks/disk-0/initiator-settings"):
            ask("GET", path)
    assert any(b'"disk.create"' in each for each in heard), "nothing was asked for"
    kept = {str(file): file.read_bytes() for file in tmp_path.glob("records.sqlite*")}
    assert kept
    places = kept | {"answers": b"\n".join(heard), "logs": repr(said).encode() + caplog.text.encode()}
    places["objects"] = repr((api.app.state.context, Keyring(api.app.state.context.settings.secrets)._opened())).encode()
    secrets = [ONE_WAY, MUTUAL, SHORT, LONG, KEY.strip()]
    assert found(places, secrets, tokens=[*api.secrets.values(), made]) == []


def test_what_is_kept_for_an_idempotency_key_cannot_be_tried_out_by_who_reads_the_database(api: Api) -> None:
    body = b'{"name":"db","size_bytes":1073741824,"allow_any":true,"chap":{"user":"alice","secret":"' + ONE_WAY.encode() + b'"}}'
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    first = api.client.post("/v1/disks", content=body, headers=headers)
    assert first.status_code == 202, first.text
    assert api.client.post("/v1/disks", content=body, headers=headers).json()["id"] == first.json()["id"]
    guessed = "\n".join(("POST", "/v1/disks", "", hashlib.sha256(body).hexdigest())).encode()
    stored = str(api.tables())
    assert hashlib.sha256(guessed).hexdigest() not in stored
    assert hashlib.sha256(body).hexdigest() not in stored


def test_settings_and_whatever_holds_them_show_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    file.write_text(f"{KEY}\n")
    loaded = settings.Settings(
        records=settings.Records(url=f"postgresql://u:{RECORDS}@h/db"),
        bus=settings.Bus(url=f"rabbit://u:{BUS}@h/"),
        coordination=settings.Coordination(token=CONSUL),
        secrets=settings.Secrets(key_file=str(file)),
    )
    signing = Signing(loaded.secrets, Keyring(loaded.secrets), clock=SystemClock())
    shown = repr((loaded, signing, vars(signing), signing._keyring._opened()))
    assert not [secret for secret in (RECORDS, BUS, CONSUL, KEY) if secret in shown]


def unforeseen() -> UnicodeDecodeError:
    """What carries all that was read, in its repr alone."""
    return UnicodeDecodeError("utf-8", f"{ONE_WAY}\xfc".encode("latin-1"), len(ONE_WAY), len(ONE_WAY) + 1, "invalid start byte")


def test_what_a_handler_fails_by_is_parked_by_its_type_alone_and_told_to_nobody() -> None:
    def fails(_: Message) -> None:
        raise unforeseen()

    parked: list[str] = []
    dispatch = Dispatch("t", {"m": (Wake, fails)}, park=lambda *what: parked.append(what[4]), payload_max_bytes=1000)
    with capture_logs() as said:
        answer = dispatch.answer("m", {"operation_id": "o"})
    assert parked == ["UnicodeDecodeError"]
    assert ONE_WAY not in repr(answer)
    assert "handler failed" in [line["event"] for line in said], "where it is from shows in the log"


class Faulty(Memory):
    def add(self, address: str, *, prefix_len: int, interface: str, lifetime_s: int) -> None:
        raise unforeseen()


def test_what_an_action_of_a_worker_fails_by_is_told_by_its_type_alone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.addresses = Faulty(SystemClock())
    node.started_again()
    export = node.publish("1")
    with capture_logs() as said:
        node.turn_until(lambda: export in node.worker._intents.told().refused, "it is refused")
    assert node.worker._intents.told().refused[export] == "a fault of ours: UnicodeDecodeError; the worker's log says where"
    assert "action failed" in [line["event"] for line in said]


def test_what_consul_fails_by_is_told_without_what_was_sent_or_read() -> None:
    consul = ConsulCoordination(settings.Coordination(token=CONSUL), clock=SystemClock())
    with pytest.raises(Unavailable, match=r"UnicodeDecodeError: .*invalid start byte") as caught, consul._asking():
        raise unforeseen()
    assert ONE_WAY not in repr(caught.value)


@pytest.mark.parametrize("token", [f"{CONSUL}\u2019", f"{CONSUL}\n", f"{CONSUL} x"])
def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(SettingsRefused, match=r"\[coordination\] token: .*printable ASCII") as caught:
        ConsulCoordination(settings.Coordination(token=token), clock=SystemClock())
    assert CONSUL not in repr(caught.value)
