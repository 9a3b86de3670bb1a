"""The fault lab through its command: one scenario on real parts, its report, and that it is not run twice. And its proxy."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.lab.proxy import FaultProxy, Mode

SANDERLING = Path(sys.executable).with_name("sanderling")
COMMAND = [str(SANDERLING), "lab", "run", "F4-export", "--rounds", "1", "--seed", "11", "--out"]


@pytest.mark.timeout(240)
def test_a_scenario_breaks_something_under_load_and_reports_that_it_held(tmp_path: Path, tgt: str, libiscsi: str) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "seed 11" in done.stderr
    told = json.loads((tmp_path / "report.json").read_text())
    (row,) = told["table"]
    assert told["passed"] is True
    assert (row["scenario"], row["rounds"], row["faults"]) == ("F4-export", 1, 1)
    assert row["writes"] > 50
    assert row["reads"] > 20
    assert 0 < row["gap_p50_s"] == row["gap_max_s"]
    assert (row["open_gates"], row["stale_or_lost"], row["left_open"], row["orphans"]) == (1, 0, 0, 0)
    assert "F4-export: export process killed" in (tmp_path / "report.md").read_text()
    assert "</svg>" in (tmp_path / "gaps.svg").read_text()
    again = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    assert "already done" in again.stderr
    assert not (tmp_path / "work").exists(), "its processes' folder is left behind"


@pytest.fixture
def upstream() -> Iterator[tuple[str, int]]:
    """Answers "yes" to everything."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nyes")

    threading.Thread(target=answer, daemon=True).start()
    yield server.getsockname()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def test_the_proxy_is_what_it_was_told_to_be_and_leaves_its_port(upstream: tuple[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = free.getsockname()
    proxy = FaultProxy(place, upstream)
    proxy.start()
    url = f"http://127.0.0.1:{place[1]}/v1/kv"
    try:
        assert httpx.get(url).text == "yes"
        assert [line for _, line in proxy.requests] == ["GET /v1/kv HTTP/1.1"]
        proxy.set(Mode.LYING)
        assert httpx.get(url).status_code == 500
        proxy.set(Mode.CUT)
        with pytest.raises(httpx.TransportError):
            httpx.get(url)
        proxy.set(Mode.HALF_OPEN)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(url, timeout=0.3)
        proxy.set(Mode.OPEN)
        assert httpx.get(url).text == "yes"
    finally:
        proxy.stop()
    socket.create_server(place).close()
