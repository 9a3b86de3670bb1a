"""The alert rules and the dashboard as Prometheus itself reads them: they can be read, and alerts fire when they should."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "etc/prometheus/alerts.yaml"

STORIES: list[tuple[str, dict[str, str], str, dict[str, str]]] = [
    ("SanderlingProcessDown", {'up{job="sanderling-worker",instance="a"}': "1x5 0x20"}, "10m", {"job": "sanderling-worker"}),
    (
        "SanderlingOperationFailed",
        {'sanderling_operations_ended_total{kind="disk.create",state="failed"}': "0x5 1x20"},
        "8m",
        {"kind": "disk.create", "state": "failed"},
    ),
    (
        "SanderlingGap",
        {
            'sanderling_worker_gap_seconds_count{instance="a",kind="failover"}': "0x5 1x20",
            'sanderling_worker_gap_seconds_bucket{instance="a",kind="failover",le="5.0"}': "0x25",
        },
        "8m",
        {"kind": "failover"},
    ),
    ("SanderlingFenced", {'sanderling_worker_fence_seconds_count{instance="a",result="done"}': "0x5 3x20"}, "8m", {}),
    (
        "SanderlingFenceFails",
        {'sanderling_worker_fence_seconds_count{instance="a",result="unavailable"}': "0x5 1x20"},
        "7m",
        {"result": "unavailable"},
    ),
    ("SanderlingLeaseShort", {'sanderling_worker_lease_left_seconds{instance="a"}': "5x5 2.5x20"}, "8m", {}),
    ("SanderlingExportStuck", {'sanderling_worker_lock_age_seconds{instance="a",phase="taking"}': "0+60x9"}, "8m", {}),
    ("SanderlingMessagesParked", {'sanderling_bus_poison_total{topic="conductor",reason="malformed"}': "_x5 1x20"}, "8m", {}),
    (
        "SanderlingCommandsRefused",
        {'sanderling_commands_refused_total{instance="a",reason="expired"}': "0x5 2x20"},
        "8m",
        {"reason": "expired"},
    ),
    (
        "SanderlingPoolFills",
        {'sanderling_cluster_used_bytes{instance="a"}': "70x5 90x20", 'sanderling_cluster_total_bytes{instance="a"}': "100x25"},
        "13m",
        {},
    ),
    (
        "SanderlingNotNotified",
        {'sanderling_notification_failures{instance="a",rule="on-call"}': "0x5 9x20"},
        "13m",
        {"rule": "on-call"},
    ),
    ("SanderlingNoLeader", {'sanderling_leader_leads{service="cluster",instance="a"}': "1x5 0x20"}, "9m", {"service": "cluster"}),
]

QUIET = {
    'up{job="sanderling-worker",instance="a"}': "1x30",
    'sanderling_operations_ended_total{kind="disk.create",state="succeeded"}': "0+1x30",
    'sanderling_operations_ended_total{kind="disk.create",state="failed"}': "7x30",
    'sanderling_operations_oldest_seconds{state="running"}': "3x30",
    'sanderling_worker_gap_seconds_count{instance="a",kind="move"}': "0+1x30",
    'sanderling_worker_gap_seconds_bucket{instance="a",kind="move",le="5.0"}': "0+1x30",
    'sanderling_worker_lease_left_seconds{instance="a"}': "4.9x30",
    'sanderling_worker_cut_off{instance="a",at="image-store"}': "0x30",
    'sanderling_worker_lock_age_seconds{instance="a",phase="serving"}': "0+60x30",
    'sanderling_worker_fence_seconds_count{instance="a",result="done"}': "2x30",
    'sanderling_leader_leads{service="cluster",instance="a"}': "0x30",
    'sanderling_leader_leads{service="cluster",instance="b"}': "1x30",
    'sanderling_cluster_used_bytes{instance="b"}': "79x30",
    'sanderling_cluster_total_bytes{instance="b"}': "100x30",
    'sanderling_notification_failures{instance="b",rule="on-call"}': "5x30",
}


def checked(promtool: str, *words: object) -> None:
    done = subprocess.run([promtool, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def played(promtool: str, folder: Path, series: dict[str, str], expectations: list[dict[str, Any]]) -> None:
    story = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": expectations,
            }
        ],
    }
    file = folder / "story.yaml"
    file.write_text(yaml.safe_dump(story))
    checked(promtool, "test", "rules", file)


def firing(alert: str, at: str, labels: dict[str, str], value: int) -> dict[str, Any]:
    selected = ",".join(f'{name}="{said}"' for name, said in {"alertname": alert, "alertstate": "firing", **labels}.items())
    samples = [{"labels": "{}", "value": value}] if value else []
    return {"expr": f"count(ALERTS{{{selected}}}) > 0", "eval_time": at, "exp_samples": samples}


def test_prometheus_accepts_the_rules(promtool: str) -> None:
    checked(promtool, "check", "rules", RULES)


@pytest.mark.parametrize(("alert", "series", "at", "labels"), STORIES, ids=[story[0] for story in STORIES])
def test_an_alert_fires_on_what_it_is_for_and_not_before(
    promtool: str, tmp_path: Path, alert: str, series: dict[str, str], at: str, labels: dict[str, str]
) -> None:
    played(promtool, tmp_path, series, [firing(alert, "1m", {}, 0), firing(alert, at, labels, 1)])


def test_no_alert_fires_while_all_is_well(promtool: str, tmp_path: Path) -> None:
    nothing = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "25m", "exp_samples": []}
    played(promtool, tmp_path, QUIET, [nothing])


def test_prometheus_accepts_the_configuration_that_the_guide_shows(promtool: str, tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(rule_files.*?)```", (ROOT / "docs/operations.md").read_text(), flags=re.DOTALL)
    file = tmp_path / "prometheus.yml"
    file.write_text(shown)
    checked(promtool, "check", "config", "--syntax-only", file)
    jobs = {job["job_name"] for job in yaml.safe_load(shown)["scrape_configs"]}
    assert jobs == {"sanderling-api", "sanderling-conductor", "sanderling-worker", "sanderling-leader"}


def test_prometheus_can_read_every_expression_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    panels = json.loads((ROOT / "etc/grafana/sanderling.json").read_text())["panels"]
    asked = [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel.get("targets", ())]
    rules = [{"record": f"asked:{number}", "expr": expression} for number, expression in enumerate(asked)]
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    checked(promtool, "check", "rules", file)
