"""The process that stands for leadership on one node: `sanderling-leader`."""

import signal
import sys

import structlog

import sanderling.coordination
import sanderling.images
from leader.duties import Duty
from leader.notifications import NotificationsDuty
from leader.service import Candidate
from leader.statistics import StatisticsDuty
from sanderling import logs, settings
from sanderling.clock import Clock, SystemClock
from sanderling.coordination.base import Coordination
from sanderling.errors import Problem
from sanderling.images.base import Images
from sanderling.measuring import served
from sanderling.model.leaders import CLUSTER as SERVICE
from sanderling.records.database import Records
from sanderling.secrets import Keyring
from sanderling.signals import Told

log = structlog.get_logger(__name__)


def duties(
    configured: settings.Settings, *, records: Records, coordination: Coordination, images: Images, clock: Clock
) -> list[Duty]:
    """What only a leader does, in the order in which it begins. `SettingsRefused` when the key file cannot be used."""
    Keyring(configured.secrets)  # couriers read it; a file that is open to others is refused now
    return [
        StatisticsDuty(configured, records=records, coordination=coordination, images=images, clock=clock),
        NotificationsDuty(configured, records=records, clock=clock),
    ]


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
    images = sanderling.images.connect(configured, clock=clock)
    records = Records(configured.records, clock=clock)
    own = duties(configured, records=records, coordination=coordination, images=images, clock=clock)
    candidate = Candidate(SERVICE, own, configured, coordination=coordination, clock=clock)
    told = Told(signal.SIGTERM, signal.SIGINT, calls={signal.SIGUSR1: candidate.step_down})
    with served(configured.sanderling.metrics_host, configured.leader.metrics_port, group="leader"):
        candidate.start()
        log.info("standing", service=SERVICE)
        told.wait()
        log.info("stopping")
        candidate.stop()
    for part in (images, coordination, records):
        part.close()


if __name__ == "__main__":
    main()
