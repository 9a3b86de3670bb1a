"""Settings: what is wrong is refused by name at the start, secrets stay out of sight, and the sample is the code's own."""

import re
import socket
import subprocess
import sys
import traceback
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from sanderling.errors import SettingsRefused
from sanderling.settings import Api, Bus, Coordination, General, Images, Leader, Records, Settings, Tracing, Worker, load, options

SAMPLE = Path(__file__).parents[2] / "etc/sanderling.conf.sample"
GUIDE = Path(__file__).parents[2] / "docs/operations.md"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "sanderling.conf"


def loaded(file: Path, text: str) -> Settings:
    file.write_text(text)
    return load(files=[str(file)])


def test_an_empty_file_gives_the_defaults(written: Path) -> None:
    assert loaded(written, "") == Settings()


def test_what_the_file_says_holds(written: Path) -> None:
    settings = loaded(written, "[api]\nport = 9000\n[iscsi_worker]\ngrace_s = 0.5\n[sanderling]\nnode = n7\n")
    assert (settings.api.port, settings.iscsi_worker.grace_s, settings.sanderling.node) == (9000, 0.5, "n7")


def test_the_environment_overrides_the_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_API__PORT", "9001")
    assert loaded(written, "[api]\nport = 9000\n").api.port == 9001


def test_the_file_named_in_the_environment_is_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.write_text("[sanderling]\nnode = named\n")
    monkeypatch.setenv("SANDERLING_CONFIG", str(written))
    assert load().sanderling.node == "named"


def test_a_sample_with_every_option_uncommented_loads(written: Path) -> None:
    lines = [
        line[1:] if "=" in line and line.startswith("#") and line[1] != " " else line for line in SAMPLE.read_text().split("\n")
    ]
    text = "\n".join(line for line in lines if not line.startswith("node ="))
    assert loaded(written, text) == Settings()


@pytest.mark.parametrize("block", re.findall(r"```ini\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL))
def test_the_settings_that_the_guide_shows_load(written: Path, block: str) -> None:
    assert loaded(written, block) != Settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\nport = many\n", "port"),
        ("[bus]\nhandlers = 0\n", "handlers"),
        ("[coordination]\nbackend = etcd\n", "backend"),
        ("[iscsi_worker]\nlease_s = 0.1\n", "lease_s"),
        ("[api]\nport 9000\n", "parse"),
        ("[oslo_messaging_rabbit]\nssl = true\n", "oslo_messaging_rabbit"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(written: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsRefused, match=named):
        loaded(written, text)


@pytest.mark.parametrize(
    ("text", "line"),
    [("[bus]\nurl = rabbit://h\nCANARY\n", 3), ("[bus]\n= CANARY\n", 2), ("  CANARY\n[bus]\n", 1), ("[CANARY\n", 1)],
)
def test_a_line_that_cannot_be_parsed_is_named_by_its_number_and_not_shown(written: Path, text: str, line: int) -> None:
    with pytest.raises(SettingsRefused, match=f"{re.escape(str(written))}:{line} cannot be parsed") as caught:
        loaded(written, text)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["rabbit://u:pa$CANARY@h/", "rabbit://u:pa${CANARY.x}@h/"])
def test_a_dollar_that_stands_for_itself_is_said_to_be_doubled_and_what_follows_not_shown(written: Path, url: str) -> None:
    with pytest.raises(SettingsRefused, match=r"\[bus\] url: .*write \$\$") as caught:
        loaded(written, f"[bus]\nurl = {url}\n")
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))
    assert loaded(written, f"[bus]\nurl = {url.replace('$', '$$')}\n").bus.url == url


def test_a_folder_and_what_is_no_text_are_refused_in_one_line_that_names_them(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDERLING_CONFIG", str(tmp_path))
    with pytest.raises(SettingsRefused, match="cannot be read: Is a directory") as folder:
        load()
    written.write_bytes(b"[bus]\nurl = CANARY\xfc\n")
    monkeypatch.setenv("SANDERLING_CONFIG", str(written))
    with pytest.raises(SettingsRefused, match="UTF-8") as named:
        load()
    monkeypatch.delenv("SANDERLING_CONFIG")
    with pytest.raises(SettingsRefused, match="UTF-8") as given:
        load(["--config-file", str(written)])
    for caught, file in ((folder, tmp_path), (named, written), (given, written)):
        assert str(file) in caught.value.detail
        assert "\n" not in caught.value.detail
        assert "CANARY" not in repr(caught.value)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="absent"):
        load(files=[str(tmp_path / "absent.conf")])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": Images(backend="files")}, "no fence that reaches another host"),
        ({"coordination": Coordination(url="https://127.0.0.1:8501")}, "ca_file"),
        ({"bus": Bus(url="rabbit://u:p@h/?ssl=1")}, "TLS by URL parameter"),
        ({"bus": Bus(url="rabbit://u:p@h/?x=1&ssl_ca_file=/tmp/x")}, "TLS by URL parameter"),
        ({"bus": Bus(url="fake://", ca_file="ca.pem")}, "only rabbit:// speaks TLS"),
        ({"bus": Bus(cert_file="c.pem", key_file="k.pem")}, "without ca_file there is no TLS"),
        ({"bus": Bus(ca_file="ca.pem", cert_file="c.pem")}, r"\[bus\] cert_file, key_file: one without the other"),
        ({"coordination": Coordination(ca_file="ca.pem")}, r"ca_file: the URL is not https"),
        ({"coordination": Coordination(cert_file="c.pem", key_file="k.pem")}, r"cert_file: the URL is not https"),
        ({"coordination": Coordination(url="https://h", ca_file="a", key_file="k")}, "one without the other proves nothing"),
        ({"api": Api(tls_cert="cert.pem")}, "one without the other"),
        ({"api": Api(tls_key="key.pem")}, "one without the other"),
        ({"api": Api(tls_client_ca="ca.pem")}, "nobody is asked"),
        ({"iscsi_worker": Worker(lease_s=5.0, renew_interval_s=3.0)}, "at most half"),
        ({"iscsi_worker": Worker(lease_s=60.0)}, "check_ttl_s: a dead worker"),
        ({"iscsi_worker": Worker(store_silent_s=5.5)}, "away for them as well"),
        ({"iscsi_worker": Worker(store_ask_interval_s=5.0)}, "too old to count"),
        ({"coordination": Coordination(check_ttl_s=8.0)}, "word of one that is dead"),
        ({"leader": Leader(lease_s=10.0)}, "two could lead"),
        ({"iscsi_worker": Worker(move_intent_s=12.0)}, "recorded as failed could still happen"),
        ({"records": Records(idle_timeout_s=10.0)}, "one process that hangs stops all others"),
        ({"records": Records(statement_timeout_s=10.0)}, "no write can wait for so long"),
        ({"sanderling": General(node="n" * 65)}, "longer than 64 characters"),
        ({"bus": Bus(handlers=0)}, r"\[bus\] handlers: 0 is less than 1"),
        ({"coordination": Coordination(backend="etcd")}, "is not one of consul, embedded"),
        ({"tracing": Tracing(sample_ratio=1.5)}, "more than 1"),
        ({"tracing": Tracing(endpoint="https://collector/v1/traces")}, "without a CA verifies nothing"),
        ({"tracing": Tracing(ca_file="ca.crt")}, "a CA without https does nothing"),
        ({"tracing": Tracing(endpoint="http://user:secret@collector/v1/traces")}, "without user and password"),
        ({"tracing": Tracing(endpoint="collector:4317")}, "write http://HOST"),
    ],
)
def test_settings_that_are_unsafe_together_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsRefused, match=named):
        replace(Settings(), **change)  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        records=Records(url="postgresql+psycopg://u:canary@h/db"),
        bus=Bus(url="rabbit://u:canary@h/"),
        coordination=Coordination(token="canary"),
    )
    assert "canary" not in repr(settings)


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().api.port = 1  # type: ignore[misc]


def test_every_option_says_what_it_is_for_and_bounds_have_units() -> None:
    for group, opts in options():
        for opt in opts:
            assert opt.help, f"[{group}] {opt.name}"
            assert not opt.name.endswith(("_timeout", "_interval", "_deadline", "_delay")), f"[{group}] {opt.name}: no unit"


def test_the_sample_is_what_the_code_says(tmp_path: Path) -> None:
    fresh = tmp_path / "sample"
    program = Path(sys.executable).with_name("oslo-config-generator")
    subprocess.run([program, "--namespace", "sanderling", "--output-file", fresh], check=True, timeout=60, capture_output=True)
    assert SAMPLE.read_text() == fresh.read_text(), "stale: run make sample"
    assert f"= {socket.gethostname()}\n" not in fresh.read_text()
