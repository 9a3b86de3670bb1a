"""The process of one storage node: `sanderling-iscsi-worker`."""

import os
import signal
import sys
from dataclasses import replace

import structlog

import iscsi_worker.addresses
import iscsi_worker.targets
import rpc.oslo
import sanderling.coordination
import sanderling.images
from iscsi_worker.worker import Worker
from sanderling import logs, settings, tracing
from sanderling.clock import SystemClock
from sanderling.errors import Problem
from sanderling.garbage import collect_rarely
from sanderling.measuring import served
from sanderling.signals import Told

log = structlog.get_logger(__name__)


def main() -> None:
    """Serve until told to stop.

    SIGTERM and SIGINT give every export up in order first. SIGHUP ends this process at once and leaves them running for the
    worker that is started next (within a lease's time), which adopts them: what an upgrade wants.
    """
    try:
        _serve()
    except Problem as problem:
        sys.exit(f"sanderling-iscsi-worker: {problem.detail}")


def _serve() -> None:
    collect_rarely()
    configured = settings.load(sys.argv[1:])
    logs.configure(configured.sanderling, process="iscsi_worker")
    clock = SystemClock()
    told = Told(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    coordination = sanderling.coordination.connect(configured, clock=clock)
    images = sanderling.images.connect(configured, clock=clock)
    own = configured.iscsi_worker
    brief = replace(configured.images, connect_timeout_s=own.store_ask_timeout_s, operation_timeout_s=own.store_ask_timeout_s)
    touched = sanderling.images.connect(replace(configured, images=brief), clock=clock)
    bus = rpc.oslo.connect(configured)
    worker = Worker(
        configured,
        coordination=coordination,
        images=images,
        bus=bus,
        targets=iscsi_worker.targets.connect(configured, clock=clock),
        addresses=iscsi_worker.addresses.connect(configured),
        clock=clock,
        touched=touched,
    )
    with (
        served(configured.sanderling.metrics_host, own.metrics_port, group="iscsi_worker"),
        tracing.sent(configured, process="iscsi-worker"),
    ):
        worker.start()
        log.info("serving")
        told.wait()
        withdraw = told.number != signal.SIGHUP
        log.info("stopping", withdraw=withdraw)
        if not withdraw:
            os._exit(0)  # stopping in order would take as long as the leases last, and the next worker needs none of it
        worker.stop()
    for part in (bus, images, touched, coordination):
        part.close()


if __name__ == "__main__":
    main()
