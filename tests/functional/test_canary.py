"""Secrets that can be recognised, given to a whole site and used there: none is found where it does not belong."""

import base64
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from sqlalchemy import select

from cli import access
from cli.lab.cluster import Cluster
from sanderling.records.tables import Base
from tests.canary import found
from tests.functional.command_line import CommandLine, records
from tests.functional.test_disks import lets_in
from tests.functional.test_serving import gateway_of

pytestmark = pytest.mark.usefixtures("each_database")

ONE_WAY, MUTUAL, ANOTHER = "Canary-1way-xQ7", "Canary-2way-pV3", "Canary-3way-kD5"
RECEIVER = "Canary-hook-mT9"


@contextlib.contextmanager
def overheard(cluster: Cluster) -> Iterator[list[bytes]]:
    """Every message that the broker takes or hands out meanwhile."""
    heard: list[bytes] = []
    over = threading.Event()
    cluster.rabbitmq.ctl("trace_on")
    with Connection(cluster.rabbitmq.url.replace("rabbit://", "amqp://")) as bus:
        queue = Queue(exchange=Exchange("amq.rabbitmq.trace", type="topic", passive=True), routing_key="#", exclusive=True)
        consumer = bus.Consumer(queue, no_ack=True, accept=None, on_message=lambda message: heard.append(bytes(message.body)))

        def listen() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    bus.drain_events(timeout=0.5)

        with consumer:
            thread = threading.Thread(target=listen, name="overhearing")
            thread.start()
            try:
                yield heard
            finally:
                over.set()
                thread.join(30)
                cluster.rabbitmq.ctl("trace_off")


@contextlib.contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """What every process of the machine was started with, as often as it can be looked at."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_bytes())

    thread = threading.Thread(target=look, name="looking")
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(30)


def kept(cluster: Cluster, disk_id: str, database: str) -> dict[str, bytes]:
    """What everything that keeps something has kept."""
    image = f"{cluster.ceph.pool}/sanderling-{disk_id}"
    places = {str(log): log.read_bytes() for log in cluster.folder.glob("*.log")}
    places |= {str(file): file.read_bytes() for file in cluster.folder.glob("run-*/**/*") if file.is_file()}
    places["image"] = cluster.ceph.rbd("image-meta", "list", image).encode()
    entries = httpx.get(f"{cluster.consul.url}/v1/kv/?recurse", timeout=10).json()
    places["consul"] = b"\n".join(base64.b64decode(entry["Value"] or "") for entry in entries)
    with records(cluster) as session:
        tables = Base.metadata.sorted_tables
        places["records"] = repr([[tuple(row) for row in session.execute(select(table))] for table in tables]).encode()
    if database == "sqlite":
        places |= {str(file): file.read_bytes() for file in cluster.records_folder.glob("records.sqlite*")}
    return places


def test_no_secret_is_found_in_logs_messages_stores_or_command_lines(
    cluster: Cluster, sanderling: CommandLine, disk: dict[str, Any], unique: str, each_database: str
) -> None:
    heard: list[str] = []

    def asked(*words: str, typed: str = "") -> None:
        done = sanderling.run(*words, typed=typed)
        heard.extend((done.stdout, done.stderr))

    with overheard(cluster) as messages, command_lines() as started:
        mutual = ("--mutual-user", "target", "--mutual-secret-file", str(_file(cluster, MUTUAL)))
        asked("disk", "chap", unique, "--user", "host", "--secret-file", "-", *mutual, "--wait", typed=f"{ONE_WAY}\n")
        login: dict[str, Any] = {"login": ("host", ONE_WAY), "target_login": ("target", MUTUAL)}
        assert lets_in(cluster, disk, **login)
        assert not lets_in(cluster, disk, login=("host", ANOTHER))
        asked("disk", "chap", unique, "--user", "host", "--secret-file", "-", typed=f"{ANOTHER}-too-long\n")
        asked("notification", "create", unique, "--kind", "disk.stopped", typed=f"jsons://user:{RECEIVER}@192.0.2.1/hook")
        source = str(gateway_of(cluster, disk["id"]))
        asked("gateway", "drain", source, "--confirm", source, "--wait")
        assert lets_in(cluster, disk, **login)
        asked("gateway", "undrain", source, "--wait")
        for noun in ("disk", "operation", "notification", "token", "path", "gateway", "assignment"):
            asked(noun, "list", "--json")
        asked("disk", "show", unique, "--json")
        asked("event", "tail", "--after", "0", "--no-follow", "--json")
        asked("notification", "delete", unique)
    assert len(messages) > 10, "nothing was overheard"
    assert any(b"tgtd" in line for line in started), "no target process was looked at"
    token = access.read(sanderling.client_file).token
    places = kept(cluster, disk["id"], each_database)
    assert any(b"serving" in content for content in places.values()), "no log was looked at"
    places |= {"printed": "\n".join(heard).encode(), "messages": b"\n".join(messages), "command lines": b"\n".join(started)}
    key = cluster.key_file.read_text().split()[0]
    assert found(places, [ONE_WAY, MUTUAL, ANOTHER, RECEIVER, key], tokens=[token]) == []


def _file(cluster: Cluster, secret: str) -> Path:
    file = cluster.folder / "mutual.secret"
    file.write_text(f"{secret}\n")
    file.chmod(0o600)
    return file
