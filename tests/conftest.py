"""The real parts as fixtures: started once a run, shared by every test, and taken from `make real` when that is running.

Tests keep apart by names of their own (`unique`), not by parts of their own; what breaks a part starts one for itself.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cli.lab.network import Network
from cli.lab.network import version as network_version
from tests.parts import running, usage

_STATUS = pytest.StashKey[int]()

pytest_plugins = ["tests.summary", "tests.rows"]
collect_ignore = [] if os.environ.get("SANDERLING_HOSTS") else ["hosts"]  # `make hosts`


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that fixtures are torn down


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_STATUS] = int(session.exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without the interpreter's own clean-up: librados aborts in it while a call waits for a cluster that a test killed."""
    if config.stash.get(_STATUS, pytest.ExitCode.USAGE_ERROR) != pytest.ExitCode.USAGE_ERROR:  # pytest has yet to name that one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


def _real(name: str, title: str, part: Any) -> Iterator[Any]:
    """The part that `make real` keeps, or else `part`, started here and stopped at the end."""
    kept = running.kept(name)
    if kept is not None:
        usage.found(title, kept.version)
        yield kept
        return
    try:
        part.start()
        usage.found(title, part.version)
        yield part
    finally:
        part.stop()


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A RabbitMQ: `.url`."""
    from cli.lab.parts.rabbitmq import RabbitMQ  # noqa: PLC0415  a run that needs no broker does not load it

    yield from _real("rabbitmq", "RabbitMQ", RabbitMQ(tmp_path_factory.mktemp("rabbitmq")))


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Consul server: `.url`."""
    from cli.lab.parts.consul import ConsulAgent  # noqa: PLC0415

    yield from _real("consul", "Consul", ConsulAgent(tmp_path_factory.mktemp("consul")))


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ceph cluster: `.conf`, the path of its configuration file, and `.pool`."""
    from cli.lab.parts.ceph import CephCluster  # noqa: PLC0415

    yield from _real("ceph", "Ceph", CephCluster(tmp_path_factory.mktemp("ceph")))


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL server: `.url`, as its superuser."""
    from cli.lab.parts.postgresql import PostgreSQL  # noqa: PLC0415

    yield from _real("postgresql", "PostgreSQL", PostgreSQL(tmp_path_factory.mktemp("postgresql")))


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """What a test has made of the process's logging, as commands do that it runs, is not the next one's."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tgt() -> str:
    """The target program; its path. What it serves is started by the test."""
    said = subprocess.run(["/usr/sbin/tgtd", "-V"], capture_output=True, text=True, timeout=10, check=True).stdout
    usage.found("tgt", said)
    return "/usr/sbin/tgtd"


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's own checker of metrics and rules; its path."""
    said = subprocess.run(["promtool", "--version"], capture_output=True, text=True, timeout=10, check=True)
    usage.found("promtool", (said.stdout or said.stderr).partition("\n")[0])
    return "promtool"


@pytest.fixture(scope="session")
def libiscsi() -> str:
    """The initiator library, by the name to load it with."""
    said = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=True).stdout
    at = re.search(r"libiscsi\.so\.7 .*=> (\S+)", said)
    assert at, "libiscsi.so.7 is not installed"
    package = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "libiscsi7"], capture_output=True, text=True, check=False)
    usage.found("libiscsi", package.stdout or Path(at[1]).resolve().name)
    return "libiscsi.so.7"


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Three nodes and an initiator; what a test cuts it mends."""
    usage.found("network namespaces", network_version())
    with Network(["worker-1", "worker-2", "worker-3"]) as made:
        yield made


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory, network: Network, tgt: str) -> Iterator[Any]:
    from cli.lab.cluster import Cluster  # noqa: PLC0415

    made = Cluster(tmp_path_factory.mktemp("cluster"), network)
    try:
        made.start()
        for title, part in (("RabbitMQ", made.rabbitmq), ("Consul", made.consul), ("Ceph", made.ceph)):
            usage.found(title, part.version)
        yield made
    finally:
        made.stop()


@pytest.fixture
def cluster(_cluster: Any) -> Iterator[Any]:
    """The main job on the real parts, shared by the tests of a run and healed after each (cli/lab/cluster.py)."""
    yield _cluster
    _cluster.heal()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def _database(request: pytest.FixtureRequest, _cluster: Any) -> Iterator[str]:
    if request.param == "sqlite":
        yield "sqlite"
        return
    _cluster.postgresql.start()
    try:
        _cluster.use_records(_cluster.postgresql.url)
        yield "postgresql"
    finally:
        _cluster.use_records(_cluster.sqlite_url)
        _cluster.postgresql.stop()


@pytest.fixture
def each_database(_database: str, _cluster: Any) -> str:
    """For a module's `usefixtures`: its tests run on the cluster with each kind of database under the records; which."""
    if _database == "postgresql":
        usage.used("PostgreSQL", _cluster.postgresql.version)
    return _database


@pytest.fixture
def unique() -> str:
    """A name that no other test of any run has: a prefix for keys, queues, images and disks."""
    return f"t{os.getpid():x}{secrets.token_hex(4)}"


@pytest.fixture
def disks(cluster: Any, unique: str, libiscsi: str) -> Iterator[list[dict[str, Any]]]:
    """One disk that is served; those that a test adds are deleted with it."""
    made = [cluster.create_disk(unique, paths=2)]
    yield made
    cluster.heal()
    for disk in made:
        cluster.delete_disk(disk["name"])
