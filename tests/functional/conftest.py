"""What tests of the whole service share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import access
from cli.lab.cluster import Cluster
from sanderling.clock import SystemClock
from sanderling.records import tokens
from sanderling.records.tokens import Role
from tests.functional.command_line import CommandLine, records

CLOCK = SystemClock()


@pytest.fixture
def sanderling(cluster: Cluster, tmp_path: Path, unique: str) -> CommandLine:
    with records(cluster) as session:
        _, token = tokens.create(session, name=unique, role=Role.ADMIN, now=CLOCK.wall(), actor="test")
    access.write(tmp_path / "client.json", access.Access(cluster.url, token))
    return CommandLine(tmp_path / "client.json")


@pytest.fixture
def disk(cluster: Cluster, unique: str, libiscsi: str) -> Iterator[dict[str, Any]]:
    """A disk that is served, and deleted afterwards whatever it is called by then."""
    made = cluster.create_disk(unique, size_bytes=64 << 20)
    yield made
    cluster.heal()
    cluster.delete_disk(cluster.http.get(f"/v1/disks/{made['id']}").json()["name"])
