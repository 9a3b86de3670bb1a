"""The process that does the work that spans nodes: `sanderling-conductor`."""

import signal
import sys
import threading
from collections.abc import Callable

import structlog

import rpc.news
import rpc.oslo
import sanderling.coordination
import sanderling.images
from conductor import failpoints
from conductor.balancer import Balancer
from conductor.endpoints import operations, reports
from conductor.publisher import Publisher
from conductor.runner import Runner
from conductor.schedules import Scheduler
from conductor.steps.base import Stores
from rpc import topics
from rpc.bus import Bus, Serving
from rpc.news import News
from rpc.signing import Signing
from sanderling import logs, settings, tracing
from sanderling.clock import Clock, SystemClock
from sanderling.coordination.base import Coordination
from sanderling.coordination.changes import Journal
from sanderling.errors import Problem, Unavailable
from sanderling.garbage import collect_rarely
from sanderling.images.base import Images
from sanderling.measuring import served
from sanderling.records.database import Records
from sanderling.secrets import Keyring
from sanderling.settings import Settings
from sanderling.signals import Told

log = structlog.get_logger(__name__)


class Conductor:
    """Drives operations from `start` to `stop`. It needs the records; anything else that is away is waited for."""

    def __init__(
        self,
        settings: Settings,
        *,
        records: Records,
        coordination: Coordination,
        images: Images,
        bus: Bus,
        news: News,
        clock: Clock,
    ) -> None:
        journal = Journal("conductor", settings.sanderling.node)
        signing = Signing(settings.secrets, Keyring(settings.secrets), clock=clock)
        stores = Stores(records, coordination, images, bus, clock, journal, signing)
        self._settings, self._records, self._bus, self._news, self._clock = settings, records, bus, news, clock
        self._runner = Runner(settings, stores, tell=news.tell, failpoints=failpoints.Failpoints.from_environment())
        self._publisher = Publisher(settings, stores, tell=news.tell)
        self._balancer = Balancer(settings, stores, tell=news.tell, wake=self._runner.wake)
        self._scheduler = Scheduler(settings.conductor, stores, tell=news.tell, wake=self._runner.wake)
        self._stopping = threading.Event()
        self._serving: list[Serving] = []
        self._listener = threading.Thread(target=self._listen, name="listen", daemon=True)

    def start(self) -> None:
        """Begin; returns at once. Operations are swept up even while the broker is away."""
        self._runner.start()
        self._publisher.start()
        self._balancer.start()
        self._scheduler.start()
        self._listener.start()

    def stop(self) -> None:
        """Stop, bounded; operations under way are given back where they stand."""
        self._stopping.set()
        self._listener.join(self._settings.bus.stop_timeout_s)
        for serving in self._serving:
            serving.stop()
        self._scheduler.stop()
        self._balancer.stop()
        self._publisher.stop()
        self._runner.stop()

    def _listen(self) -> None:
        node, gap_alert_s = self._settings.sanderling.node, self._settings.conductor.gap_alert_s
        wanted: list[Callable[[], Serving]] = [
            lambda: self._bus.serve(topics.CONDUCTOR, node, [operations.endpoint(self._runner.wake)]),
            lambda: self._bus.listen(reports.handlers(self._records, gap_alert_s=gap_alert_s, tell=self._news.tell)),
        ]
        while wanted and not self._stopping.is_set():
            try:
                self._serving.append(wanted[0]())
            except Unavailable as problem:
                log.warning("the bus cannot be heard yet", reason=problem.detail)
                self._clock.wait(self._stopping, self._settings.conductor.sweep_interval_s)
            else:
                del wanted[0]


def main() -> None:
    """Drive operations until SIGTERM or SIGINT. `--list-failpoints` prints the names for SANDERLING_FAILPOINT instead."""
    if "--list-failpoints" in sys.argv[1:]:
        sys.stdout.write("\n".join([*failpoints.listing(), ""]))
        return
    collect_rarely()
    try:
        _run()
    except Problem as problem:
        sys.exit(f"sanderling-conductor: {problem.detail}")


def _run() -> None:
    configured = settings.load(sys.argv[1:])
    logs.configure(configured.sanderling, process="conductor")
    told = Told(signal.SIGTERM, signal.SIGINT)
    clock = SystemClock()
    records = Records(configured.records, clock=clock)
    records.migrate()
    coordination = sanderling.coordination.connect(configured, clock=clock)
    images = sanderling.images.connect(configured, clock=clock)
    bus, news = rpc.oslo.connect(configured), rpc.news.connect(configured)
    conductor = Conductor(configured, records=records, coordination=coordination, images=images, bus=bus, news=news, clock=clock)
    with (
        served(configured.sanderling.metrics_host, configured.conductor.metrics_port, group="conductor"),
        tracing.sent(configured, process="conductor"),
    ):
        conductor.start()
        log.info("driving operations")
        told.wait()
        log.info("stopping")
        conductor.stop()
    for part in (news, bus, images, coordination, records):
        part.close()


if __name__ == "__main__":
    main()
