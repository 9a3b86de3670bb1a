"""What a run says at its end: each real part with its version and the number of tests that used it.

With SANDERLING_FULL_SUITE=1 (set by `make test`) an unused part, a skip or an xfail fails the run. With SANDERLING_FULL=1
(`make test FULL=1`) the longest tests take everything instead of a sample.
"""

import os
from collections.abc import Iterator

import pytest

from sanderling.clock import SystemClock
from tests.parts import usage

FIXTURES = {
    "rabbitmq": ("RabbitMQ",),
    "consul": ("Consul",),
    "ceph": ("Ceph",),
    "postgresql": ("PostgreSQL",),
    "tgt": ("tgt",),
    "network": ("network namespaces",),
    "libiscsi": ("libiscsi",),
    "promtool": ("promtool",),
    "cluster": ("RabbitMQ", "Consul", "Ceph", "tgt", "network namespaces"),
}

_CLOCK = SystemClock()
_started = _CLOCK.monotonic()


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once the test has run, credit the parts whose fixtures it had, also those it asked for by name while it ran."""
    yield
    for name in request.fixturenames:
        for part in FIXTURES.get(name, ()):
            usage.tests[part].add(request.node.nodeid)


def _faults(config: pytest.Config) -> list[str]:
    return usage.faults(skipped=_skipped(config)) if os.environ.get("SANDERLING_FULL_SUITE") == "1" else []


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    stats = reporter.stats if isinstance(reporter, pytest.TerminalReporter) else {}
    return sum(len(stats.get(kind, ())) for kind in ("skipped", "xfailed", "xpassed", "deselected"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly and _faults(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    faults = _faults(config)
    if not usage.versions and not faults:
        return
    terminalreporter.section("real parts")
    for part in usage.PARTS:
        terminalreporter.line(f"{part:<20} {usage.versions.get(part, '-'):<44} {len(usage.tests[part]):>4} tests")
    mode = "everything" if os.environ.get("SANDERLING_FULL") else "the longest tests sampled; make test FULL=1 takes everything"
    terminalreporter.line(f"mode: {mode}")
    terminalreporter.line(f"duration {_CLOCK.monotonic() - _started:.0f} s, skipped {_skipped(config)}")
    for fault in faults:
        terminalreporter.line(f"this run does not count: {fault}", red=True)
