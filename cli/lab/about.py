"""What a report says about the run itself: the parts, the machine, the dice."""

import os
import subprocess
from collections.abc import Mapping

from cli.lab.results import Result

VERSIONS = {
    "RabbitMQ": ["dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"],
    "Consul": ["dpkg-query", "-W", "-f", "${Version}", "consul"],
    "Ceph": ["dpkg-query", "-W", "-f", "${Version}", "ceph-osd"],
    "tgt": ["dpkg-query", "-W", "-f", "${Version}", "tgt"],
    "libiscsi": ["dpkg-query", "-W", "-f", "${Version}", "libiscsi7"],
}


def about(results: Mapping[str, Result]) -> dict[str, str]:
    """Facts by their names, for the head of the report."""
    seeds = sorted({result.parameters.seed for result in results.values()})
    return {
        "seed": ", ".join(map(str, seeds)) or "none",
        "run": "full" if any(result.parameters.full for result in results.values()) else "quick",
        "took": f"{sum(result.took_s for result in results.values()):.0f} s",
        "machine": f"{os.cpu_count()} CPUs, Linux {os.uname().release}",
        "parts": ", ".join(f"{name} {_said(argv)}" for name, argv in VERSIONS.items()),
        "topology": "3 nodes, 3 Consul servers, 1 broker, 1 monitor, 1 OSD in memory; 2 exclusive disks and a shared one",
    }


def _said(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
