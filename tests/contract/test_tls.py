"""What TLS promises between our processes and every part: the right CA works; another one, another name, no certificate do not.

The first half speaks to servers that the test itself is; the second half to a real RabbitMQ and a real Consul agent.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import rpc.oslo
from api.server import HttpServer
from cli.access import Access, read, write
from cli.client import Client
from cli.doctor.base import State
from cli.doctor.host import look_at_others
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.rabbitmq import RabbitMQ
from rpc.connections import connection
from rpc.messages import Wake
from sanderling.clock import SystemClock
from sanderling.coordination.consul import ConsulCoordination
from sanderling.errors import Malformed, SettingsRefused, Unavailable
from sanderling.settings import Coordination, Settings
from tests.parts import usage
from tests.parts.buses import configured
from tests.parts.certificates import Authority, Signed


@dataclass(frozen=True, slots=True)
class Site:
    """Who trusts whom: `ca` signed the server and the client; `other` signed a client and nothing that is believed."""

    ca: str
    other_ca: str
    server: Signed
    wrong_name: Signed
    client: Signed
    stranger: Signed
    expired: Signed


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = Authority(folder), Authority(folder / "other")
    return Site(
        ca=ours.ca,
        other_ca=other.ca,
        server=ours.sign("server", "127.0.0.1"),
        wrong_name=ours.sign("wrong-name", "elsewhere.example"),
        client=ours.sign("client"),
        stranger=other.sign("stranger"),
        expired=ours.sign("expired", "127.0.0.1", valid_days=-0.01),
    )


TRUSTS = ["works", "another CA", "another name", "no certificate", "a stranger's certificate"]


def files(site: Site, trust: str) -> dict[str, str]:
    """What a client is given, so that it comes to that."""
    shown = {"no certificate": None, "a stranger's certificate": site.stranger}.get(trust, site.client)
    found = {"ca_file": site.other_ca if trust == "another CA" else site.ca}
    return found | ({"cert_file": shown.cert, "key_file": shown.key} if shown else {})


@contextlib.contextmanager
def peer(site: Site, signed: Signed, *, newest: ssl.TLSVersion | None = None) -> Iterator[tuple[int, list[str]]]:
    """A server that wants to see a certificate: its port, and what came of each handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.cert, signed.key)
    context.load_verify_locations(site.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    if newest is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = newest
        context.set_ciphers("ALL:@SECLEVEL=0")
    came: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                plain.settimeout(10)
                with contextlib.suppress(OSError), plain:
                    try:
                        with context.wrap_socket(plain, server_side=True) as wrapped:
                            wrapped.recv(1)  # with TLS 1.3 the client's certificate is judged after its side of the handshake
                            came.append("spoke")
                    except OSError as error:
                        came.append(str(error))
                        raise

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], came
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(15)


def speaks_amqp(port: int, given: dict[str, str]) -> None:
    raw = connection(configured(f"rabbit://u:p@127.0.0.1:{port}/", **given).bus, name="test")
    with raw, contextlib.suppress(OSError):
        raw.connect()


def speaks_oslo(port: int, given: dict[str, str]) -> None:
    bus = rpc.oslo.connect(configured(f"rabbit://u:p@127.0.0.1:{port}/", **given, send_timeout_s=1.0))
    try:
        with contextlib.suppress(Unavailable):
            bus.cast("topic", "operation.wake", Wake(operation_id="x"))
    finally:
        bus.close()


def speaks_consul(port: int, given: dict[str, str]) -> None:
    store = ConsulCoordination(Coordination(url=f"https://127.0.0.1:{port}", **given), clock=SystemClock())  # type: ignore[arg-type]
    with contextlib.closing(store), contextlib.suppress(Unavailable):
        store.get("a")


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("speak", [speaks_amqp, speaks_oslo, speaks_consul])
def test_a_client_says_nothing_to_a_server_that_it_cannot_trust_or_that_does_not_trust_it(
    site: Site, speak: Any, trust: str
) -> None:
    with peer(site, site.wrong_name if trust == "another name" else site.server) as (port, came):
        speak(port, files(site, trust))
    assert came
    assert ("spoke" in came) is (trust == "works"), came


@pytest.mark.parametrize("speak", [speaks_amqp, speaks_oslo, speaks_consul])
def test_a_server_that_speaks_only_old_tls_is_not_spoken_to(site: Site, speak: Any) -> None:
    with peer(site, site.server, newest=ssl.TLSVersion.TLSv1_1) as (port, came):
        speak(port, files(site, "works"))
    assert came
    assert "spoke" not in came


def app() -> FastAPI:
    """One that has what the server asks of it."""
    made = FastAPI()
    made.state.context = SimpleNamespace(feed=SimpleNamespace(close_streams=lambda: None))
    made.add_api_route("/v1/disks", lambda: {"disks": []})
    return made


@contextlib.contextmanager
def https(site: Site, signed: Signed) -> Iterator[str]:
    options = replace(Settings().api, port=0, tls_cert=signed.cert, tls_key=signed.key, tls_client_ca=site.ca)
    server = HttpServer(app(), options)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_command_line_and_the_api_want_to_see_each_others_certificates(site: Site, tmp_path: Path, trust: str) -> None:
    with https(site, site.wrong_name if trust == "another name" else site.server) as url:
        file = tmp_path / "client.json"
        write(file, Access(url, "token", **files(site, trust)))  # type: ignore[arg-type]
        client = Client(read(file))
        if trust == "works":
            assert client.get("/v1/disks")["disks"] == []
        else:
            with pytest.raises(Unavailable):
                client.get("/v1/disks")


def test_the_api_does_not_speak_old_tls(site: Site) -> None:
    with https(site, site.server) as url:
        old = ssl.create_default_context(cafile=site.ca)
        old.load_cert_chain(site.client.cert, site.client.key)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v1/disks", verify=old)


@pytest.mark.parametrize("option", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("fault", ["missing", "empty", "expired", "another's"])
@pytest.mark.parametrize("part", ["bus", "coordination", "api"])
def test_a_file_that_cannot_do_its_work_refuses_the_start_by_its_name(
    site: Site, tmp_path: Path, part: str, fault: str, option: str
) -> None:
    given = {"ca_file": site.ca, "cert_file": site.client.cert, "key_file": site.client.key}
    if fault == "another's" and option == "ca_file":
        return  # it is a CA all the same
    if fault == "expired" and option == "key_file":
        return  # keys do not expire
    given[option] = {
        "missing": "/none",
        "empty": str(tmp_path / "empty"),
        "expired": site.expired.cert,
        "another's": site.stranger.key if option == "key_file" else site.stranger.cert,
    }[fault]
    (tmp_path / "empty").touch()
    named = {"ca_file": "tls_client_ca", "cert_file": "tls_cert", "key_file": "tls_key"}[option] if part == "api" else option
    if fault == "another's":  # which of the two is wrong cannot be told
        named = "tls_key" if part == "api" else "key_file"
    with pytest.raises(SettingsRefused, match=rf"\[{part}\] {named}: "):
        begun(part, given)


def begun(part: str, given: dict[str, str]) -> None:
    if part == "bus":
        rpc.oslo.connect(configured("rabbit://u:p@127.0.0.1:1/", **given))
    elif part == "coordination":
        ConsulCoordination(Coordination(url="https://127.0.0.1:1", **given), clock=SystemClock())  # type: ignore[arg-type]
    else:
        options = replace(Settings().api, tls_client_ca=given["ca_file"], tls_cert=given["cert_file"], tls_key=given["key_file"])
        HttpServer(app(), options).start()


@pytest.mark.parametrize(
    "access",
    [
        {"url": "http://h", "ca_file": "/none"},
        {"url": "http://h", "cert_file": "/none", "key_file": "/none"},
        {"url": "https://h", "cert_file": "/none"},
        {"url": "https://h", "ca_file": "/none"},
    ],
)
def test_a_client_file_that_would_verify_nothing_is_refused(access: dict[str, str]) -> None:
    with pytest.raises(Malformed, match="client file"):
        Client(Access(**{"token": "t", **access}))  # type: ignore[arg-type]


# --- the real parts ---


@pytest.fixture(scope="module")
def broker(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One that turns away who shows no certificate."""
    folder = tmp_path_factory.mktemp("broker-tls")
    for name, file in (("ca.pem", site.ca), ("server.pem", site.server.cert), ("server.key", site.server.key)):
        (folder / name).write_bytes(Path(file).read_bytes())
    made = RabbitMQ(tmp_path_factory.mktemp("broker"), tls=folder, wants_certificates=True)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("trust", TRUSTS)
def test_a_broker_that_wants_certificates_is_used_by_who_trusts_it_and_has_one(
    broker: RabbitMQ, site: Site, unique: str, trust: str
) -> None:
    usage.used("RabbitMQ", broker.version)
    url = broker.tls_url.replace("127.0.0.1", "localhost") if trust == "another name" else broker.tls_url
    given, works = files(site, trust), trust == "works"
    bus = rpc.oslo.connect(configured(url, **given))
    try:
        with contextlib.nullcontext() if works else pytest.raises(Unavailable):
            bus.cast(unique, "operation.wake", Wake(operation_id="x"))
        raw = connection(configured(url, **given).bus, name="test")
        with raw, contextlib.nullcontext() if works else pytest.raises(OSError):  # noqa: PT011  ssl's own have no common text
            raw.connect()
    finally:
        bus.close()


@pytest.fixture(scope="module")
def agent(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """One that serves HTTPS beside HTTP, to who shows a certificate."""
    tls = {"ca_file": site.ca, "cert_file": site.server.cert, "key_file": site.server.key, "verify_incoming": True}
    made = ConsulAgent(tmp_path_factory.mktemp("agent"), tls=tls)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("trust", TRUSTS)
def test_a_consul_agent_that_verifies_who_comes_in_is_used_by_who_trusts_it_and_has_a_certificate(
    agent: ConsulAgent, site: Site, unique: str, trust: str
) -> None:
    usage.used("Consul", agent.version)
    url = agent.https_url.replace("127.0.0.1", "localhost") if trust == "another name" else agent.https_url
    store = ConsulCoordination(Coordination(url=url, **files(site, trust)), clock=SystemClock())  # type: ignore[arg-type]
    with contextlib.closing(store), contextlib.nullcontext() if trust == "works" else pytest.raises(Unavailable):
        assert store.put(unique, b"v")
        entry = store.get(unique)
        assert entry is not None
        assert entry.value == b"v"


def test_the_doctor_compares_clocks_also_with_those_who_want_to_see_a_certificate(
    agent: ConsulAgent, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = files(site, "works")
    settings = Settings(coordination=Coordination(url=agent.https_url, **given))  # type: ignore[arg-type]
    with https(site, site.server) as url:
        write(tmp_path / "client.json", Access(url, "token", **given))  # type: ignore[arg-type]
        monkeypatch.setenv("SANDERLING_CLIENT", str(tmp_path / "client.json"))
        found = {finding.what: finding.state for finding in look_at_others(settings, clock=SystemClock())}
    assert found == {"clock of the Consul agent": State.OK, "clock of the API": State.OK}
