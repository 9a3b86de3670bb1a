"""The dashboard and the alert rules ask for what the processes measure, and each alert is explained."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import REGISTRY, CollectorRegistry

import conductor.metrics
import iscsi_worker.metrics
import leader.metrics
import rpc.oslo
from api.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROCESSES = (conductor.metrics, iscsi_worker.metrics, leader.metrics, rpc.oslo)  # what they measure is registered by import
PROMETHEUS_OWN = {"up"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
ALERTS = [
    rule for group in yaml.safe_load((ROOT / "etc/prometheus/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "etc/grafana/sanderling.json").read_text())
GUIDE = (ROOT / "docs/operations.md").read_text()


def measured() -> dict[str, set[str]]:
    """Every series that a process can show, with its labels."""
    found: dict[str, set[str]] = {}
    registries: tuple[CollectorRegistry, ...] = (REGISTRY, Metrics().registry)
    for registry in registries:
        for collector in list(registry._collector_to_names):
            for family in collector.collect():
                labels = set(getattr(collector, "_labelnames", ()))
                for suffix in SUFFIXES.get(family.type, ("",)):
                    found[family.name + suffix] = labels | {"instance", "job"} | ({"le"} if suffix == "_bucket" else set())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in ALERTS)
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The series that an expression reads, each with the labels it selects by."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", "", bare)
    for name, selected in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?", re.sub(r"\b\d\w*\b", "", bare)):
        if name not in {"or", "and", "unless"} and not re.search(rf"\{{[^}}]*\b{name}\b\s*[=!]", bare):
            yield name, set(re.findall(r"(\w+)\s*[=!]", selected))


def grouped(expression: str) -> set[str]:
    return {label.strip() for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression) for label in labels.split(",")}


def test_every_expression_asks_for_series_that_a_process_shows_by_labels_that_they_have() -> None:
    known = measured()
    wrong = []
    for title, expression in expressions():
        series = list(asked(expression))
        assert series, f"{title}: {expression} reads nothing"
        for name, labels in series:
            if name in PROMETHEUS_OWN:
                continue
            if name not in known:
                wrong.append(f"{title}: nobody measures {name}")
            elif unknown := (labels | grouped(expression)) - set().union(*(known.get(one, set()) for one, _ in series)):
                wrong.append(f"{title}: {name} has no label {', '.join(sorted(unknown))}")
    assert not wrong, "\n".join(wrong)


def test_an_expression_is_read_as_prometheus_reads_it() -> None:
    read = list(asked('sum by (le) (rate(a_total{x="y_total", z!="w"}[5m])) or b unless b offset 1h > 10'))
    assert read == [("a_total", {"x", "z"}), ("b", set()), ("b", set())]


def test_every_measurement_of_ours_is_on_the_dashboard_or_alerted_on() -> None:
    shown = {name for _, expression in expressions() for name, _ in asked(expression)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in measured() if name.startswith("sanderling_")}
    unseen = {one for one in families if not any(name.startswith(one) for name in shown)}
    assert unseen <= {"sanderling_gateway_exports", "sanderling_worker_processes", "sanderling_leader_terms_begun_total"}


def test_each_alert_says_what_it_is_and_has_a_section_that_says_what_to_do() -> None:
    sections = re.split(r"^#+ ", GUIDE.partition("### What each alert means")[2], flags=re.MULTILINE)
    explained = {text.partition("\n")[0]: text.partition("\n")[2].strip() for text in sections}
    for rule in ALERTS:
        name, said = rule["alert"], rule["annotations"]
        assert {"summary", "description", "runbook"} <= said.keys(), name
        assert said["runbook"] == f"docs/operations.md#{name.lower()}"
        assert explained.get(name), f"docs/operations.md has no section {name}"
        assert rule["labels"]["severity"] in {"warning", "critical"}
    named: set[Any] = {name for name in explained if name.startswith("Sanderling")}
    assert named == {rule["alert"] for rule in ALERTS}
