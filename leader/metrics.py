"""What the leader of the moment measures, for Prometheus. Who does not lead shows that, and no stale figures."""

from collections.abc import Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from sanderling.errors import SettingsRefused
from sanderling.model.statistics import CLUSTER, EXPORTS, GATEWAYS, Sample
from sanderling.records.notifications import Due
from sanderling.settings import Leader

_CLUSTER = ("total_bytes", "used_bytes", "free_bytes", "gateways", "exports", "exports_served", "connections")
_GATEWAY = ("live", "exports", "connections")


class Metrics:
    """One registry per process; thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._term = Gauge(
            "sanderling_leader_term", "The term that this process leads in; 0 when it does not lead", registry=self.registry
        )
        self._cluster = {
            name: Gauge(f"sanderling_cluster_{name}", f"The cluster's {name}, as last measured", registry=self.registry)
            for name in _CLUSTER
        }
        self._gateways = {
            name: Gauge(f"sanderling_leader_gateway_{name}", f"Each gateway's {name}", ["gateway"], registry=self.registry)
            for name in _GATEWAY
        }
        self._exports = Gauge(
            "sanderling_export_connections", "iSCSI connections of an export", ["disk_id", "index"], registry=self.registry
        )
        self._failures = Gauge(
            "sanderling_notification_failures", "Attempts in a row that failed, by rule", ["rule"], registry=self.registry
        )
        self._delivered = Gauge(
            "sanderling_notification_delivered", "Events delivered since the rule was made", ["rule"], registry=self.registry
        )
        self._server: WSGIServer | None = None

    def serve(self, options: Leader) -> None:
        """Answer Prometheus, if the settings name a port; `SettingsRefused` when it cannot be listened on."""
        if not options.metrics_port:
            return
        try:
            self._server, _ = start_http_server(options.metrics_port, options.metrics_host, self.registry)
        except OSError as error:
            where = f"{options.metrics_host} port {options.metrics_port}"
            raise SettingsRefused(f"[leader] metrics_host, metrics_port: cannot listen on {where}: {error.strerror}") from error

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def leads(self, term: int) -> None:
        """From now on in that term; 0 for no longer."""
        self._term.set(term)
        if term:
            return
        for gauge in (*self._gateways.values(), self._exports, self._failures, self._delivered):
            gauge.clear()
        for gauge in self._cluster.values():
            gauge.set(float("nan"))

    def measured(self, samples: Sequence[Sample]) -> None:
        """Show these instead of those before; of exports as many as were measured in one turn."""
        for gauge in self._gateways.values():
            gauge.clear()
        if any(sample.resource.startswith(EXPORTS) for sample in samples):
            self._exports.clear()
        for sample in samples:
            figures = {name: float("nan") if value is None else value for name, value in sample.figures.items()}
            if sample.resource == CLUSTER:
                for name, gauge in self._cluster.items():
                    gauge.set(float(figures[name]))
            elif sample.resource.startswith(GATEWAYS):
                for name, gauge in self._gateways.items():
                    gauge.labels(sample.resource.removeprefix(GATEWAYS)).set(float(figures[name]))
            elif sample.resource.startswith(EXPORTS):
                disk_id, index = sample.resource.removeprefix(EXPORTS).split("/")
                self._exports.labels(disk_id, index).set(float(figures["connections"]))

    def told(self, rules: Sequence[Due]) -> None:
        """How notification goes."""
        for gauge in (self._failures, self._delivered):
            gauge.clear()
        for rule in rules:
            self._failures.labels(rule.name).set(rule.failures)
            self._delivered.labels(rule.name).set(rule.delivered)
