"""What Prometheus reads, and how it reads it: over a port of each process, in a form that its own tools accept."""

import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

import conductor.metrics
import iscsi_worker.metrics
import leader.metrics
import rpc.oslo
from api.metrics import Metrics
from cli.lab.parts.daemons import waited
from cli.lab.processes import Process
from sanderling.clock import SystemClock
from sanderling.errors import SettingsRefused
from sanderling.measuring import served
from sanderling.records.database import Records
from sanderling.settings import Coordination, General, Images, Leader, Settings
from sanderling.settings import Records as RecordsSettings

MEASURED = (conductor.metrics, iscsi_worker.metrics, leader.metrics, rpc.oslo)  # imported: registered


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_what_a_process_measures_is_read_over_its_port_while_it_runs() -> None:
    port = free_port()
    with served("127.0.0.1", port, group="conductor"):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        assert 'sanderling_operations_ended_total{kind="disk.create",state="failed"}' in text
        assert "process_resident_memory_bytes" in text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_leader_tells_over_its_port_that_it_leads(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(
        sanderling=General(node="san1", runtime_dir=str(tmp_path)),
        coordination=Coordination(backend="embedded"),
        images=Images(backend="files"),
        records=RecordsSettings(url=f"sqlite:///{tmp_path / 'records.sqlite'}"),
        leader=Leader(metrics_port=port),
    )
    records = Records(settings.records, clock=SystemClock())
    records.migrate()
    records.close()
    candidate = Process("leader", "sanderling-leader", settings, tmp_path, "")
    candidate.start()

    def leads() -> bool:
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        except urllib.error.URLError:
            return False
        return 'sanderling_leader_leads{service="cluster"} 1.0' in text and "sanderling_leader_term" in text

    try:
        waited(leads, within_s=60, what=f"it says that it leads; {candidate.log_file}")
    finally:
        candidate.terminate()


def test_a_port_that_is_taken_is_refused_by_name() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SettingsRefused, match=r"\[leader\] metrics_port: cannot listen on 127\.0\.0\.1 port \d+.*0 for none"),
        served("127.0.0.1", taken.getsockname()[1], group="leader"),
    ):
        pass


def test_port_0_opens_none() -> None:
    with served("203.0.113.1", 0, group="leader"):  # an address that nobody could listen on here
        pass


def test_prometheus_own_checker_finds_no_fault_with_the_names(promtool: str) -> None:
    for text in (generate_latest(REGISTRY), generate_latest(Metrics().registry)):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.decode()) == (0, "")
