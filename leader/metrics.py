"""What a candidate measures of itself, and what it measures of the cluster while it leads. Who does not lead shows no figures."""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge

from sanderling.model.statistics import CLUSTER, EXPORTS, GATEWAYS, Sample
from sanderling.records.notifications import Due

LEADS = Gauge("sanderling_leader_leads", "1 while this candidate can prove that it leads", ["service"])
TERM = Gauge("sanderling_leader_term", "The highest term that this candidate has seen", ["service"])
BEGUN = Counter("sanderling_leader_terms_begun", "Terms that this candidate has begun", ["service"])
FAILED = Counter("sanderling_leader_turns_failed", "Looks at the leader key that failed, by why", ["service", "why"])
_OF_CLUSTER = {
    name: Gauge(f"sanderling_cluster_{name}", f"The cluster's {name}, as last measured by the leader")
    for name in ("total_bytes", "used_bytes", "free_bytes", "gateways", "exports", "exports_served", "connections")
}
_OF_GATEWAY = {
    name: Gauge(f"sanderling_cluster_gateway_{name}", f"Each gateway's {name}, as last measured by the leader", ["gateway"])
    for name in ("live", "exports", "connections")
}
_OF_EXPORT = Gauge("sanderling_export_connections", "iSCSI connections of an export, as last measured", ["disk_id", "index"])
_FAILURES = Gauge("sanderling_notification_failures", "Attempts in a row that failed, by rule", ["rule"])
_DELIVERED = Gauge("sanderling_notification_delivered", "Events delivered since the rule was made", ["rule"])


def no_figures() -> None:
    """This candidate measures nothing, as who does not lead: its last figures would grow old."""
    for gauge in (*_OF_GATEWAY.values(), _OF_EXPORT, _FAILURES, _DELIVERED):
        gauge.clear()
    for gauge in _OF_CLUSTER.values():
        gauge.set(float("nan"))


def measured(samples: Sequence[Sample]) -> None:
    """Show these instead of those before; of exports as many as were measured in one turn ([statistics] exports_max)."""
    for gauge in _OF_GATEWAY.values():
        gauge.clear()
    if any(sample.resource.startswith(EXPORTS) for sample in samples):
        _OF_EXPORT.clear()
    for sample in samples:
        figures = sample.figures
        if sample.resource == CLUSTER:
            for name, gauge in _OF_CLUSTER.items():
                gauge.set(_number(figures[name]))
        elif sample.resource.startswith(GATEWAYS):
            for name, gauge in _OF_GATEWAY.items():
                gauge.labels(sample.resource.removeprefix(GATEWAYS)).set(_number(figures[name]))
        elif sample.resource.startswith(EXPORTS):
            disk_id, index = sample.resource.removeprefix(EXPORTS).split("/")
            _OF_EXPORT.labels(disk_id, index).set(_number(figures["connections"]))


def _number(figure: float | str | None) -> float:
    return float("nan") if figure is None else float(figure)


def told(rules: Sequence[Due]) -> None:
    """How notification goes."""
    for gauge in (_FAILURES, _DELIVERED):
        gauge.clear()
    for rule in rules:
        _FAILURES.labels(rule.name).set(rule.failures)
        _DELIVERED.labels(rule.name).set(rule.delivered)


no_figures()
