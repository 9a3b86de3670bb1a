"""Which tests used which real part: a suite that quietly ran against nothing looks the same as one that passed."""

import os
from collections import defaultdict

PARTS = ("RabbitMQ", "Consul", "Ceph", "PostgreSQL", "tgt", "network namespaces", "libiscsi", "promtool")

versions: dict[str, str] = {}
tests: dict[str, set[str]] = defaultdict(set)


def found(part: str, version: str) -> None:
    """Note the version that a part itself reported."""
    assert part in PARTS, f"{part} is no real part; known: {', '.join(PARTS)}"
    versions[part] = version.strip()


def used(part: str, version: str) -> None:
    """Note that the test that runs now uses this part: for tests that start one of their own instead of taking a fixture."""
    found(part, version)
    running = os.environ.get("PYTEST_CURRENT_TEST", "")
    if running:
        tests[part].add(running.rpartition(" (")[0])


def faults(*, skipped: int) -> list[str]:
    """Why a full run does not count, in words; empty when it does."""
    said = [f"no test used {part}" for part in PARTS if not tests[part]]
    if skipped:
        said.append(f"{skipped} tests were skipped, deselected or expected to fail; the full suite has none")
    return said
