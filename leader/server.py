"""The process that stands for leadership on one node: `sanderling-leader`."""

import signal
import sys

import structlog

import sanderling.coordination
from leader.duties import LogDuty
from leader.service import Candidate
from sanderling import logs, settings
from sanderling.clock import SystemClock
from sanderling.errors import Problem
from sanderling.measuring import served
from sanderling.signals import Told

SERVICE = "cluster"
DUTIES = ("statistics", "notifications")

log = structlog.get_logger(__name__)


def main() -> None:
    """Stand until told to stop. SIGTERM and SIGINT hand over first; SIGUSR1 lets another lead and goes on."""
    try:
        _stand()
    except Problem as problem:
        sys.exit(f"sanderling-leader: {problem.detail}")


def _stand() -> None:
    configured = settings.load(sys.argv[1:])
    logs.configure(configured.sanderling, process="leader")
    clock = SystemClock()
    coordination = sanderling.coordination.connect(configured, clock=clock)
    duties = [LogDuty(name, clock=clock) for name in DUTIES]
    candidate = Candidate(SERVICE, duties, configured, coordination=coordination, clock=clock)
    told = Told(signal.SIGTERM, signal.SIGINT)
    signal.signal(signal.SIGUSR1, lambda *_: candidate.step_down())
    with served(configured.sanderling.metrics_host, configured.leader.metrics_port, group="leader"):
        candidate.start()
        log.info("standing", service=SERVICE)
        told.wait()
        log.info("stopping")
        candidate.stop()
    coordination.close()


if __name__ == "__main__":
    main()
