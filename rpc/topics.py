"""The names on the wire. They are part of the contract between releases, so none is taken from a module's name."""

from typing import Final

EXCHANGE: Final = "sanderling"
CONDUCTOR: Final = "conductor"
ISCSI_WORKER: Final = "iscsi_worker"  # server = the node's name
REPORTS: Final = "sanderling_reports"  # notifications from workers
NEWS: Final = "sanderling.news"  # kombu topic exchange: "there is a new event"
PARKED: Final = "sanderling.parked"  # poison, one queue
