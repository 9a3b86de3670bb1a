"""`make real`: start the real parts, leave them running for single tests, and end them again.

    python -m tests.parts start|stop FOLDER

A keeper process holds the parts, so that ending them needs nothing but its pid; `start` returns once all are usable.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.consul import ConsulAgent
from cli.lab.parts.daemons import Daemon, spawn, start_time, waited
from cli.lab.parts.postgresql import PostgreSQL
from cli.lab.parts.rabbitmq import RabbitMQ
from sanderling.signals import Told
from tests.parts.running import STATE, Kept

START_WITHIN_S = 180.0
STOP_WITHIN_S = 60.0


def keep(home: Path) -> None:
    """Start the parts, say where they are, and stop them at SIGTERM."""
    ended = Told(signal.SIGTERM, signal.SIGINT)
    with contextlib.ExitStack() as stack:
        rabbitmq, consul, ceph, postgresql = (
            RabbitMQ(_made(home, "rabbitmq")),
            ConsulAgent(_made(home, "consul")),
            CephCluster(_made(home, "ceph")),
            PostgreSQL(_made(home, "postgresql")),
        )
        for part in (rabbitmq, consul, ceph, postgresql):
            stack.callback(part.stop)
            part.start()
        parts = {
            "rabbitmq": Kept(rabbitmq.version, url=rabbitmq.url, amqp_url=rabbitmq.amqp_url),
            "consul": Kept(consul.version, url=consul.url, node_name=consul.node_name),
            "ceph": Kept(ceph.version, conf=ceph.conf, pool=ceph.pool),
            "postgresql": Kept(postgresql.version, url=postgresql.url),
        }
        state = {
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "parts": {name: asdict(part) for name, part in parts.items()},
        }
        half = home / f"{STATE}.new"
        half.write_text(json.dumps(state, indent=1))
        half.replace(home / STATE)
        ended.wait()
        (home / STATE).unlink()


def start(home: Path) -> None:
    """Start a keeper and wait until its parts are usable; nothing happens when one is at work already."""
    if (keeper := _keeper(home)) and keeper.alive:
        print(f"already running in {home}")  # noqa: T201
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    keeper = spawn("the keeper", [sys.executable, "-m", "tests.parts", "keep", str(home)], log=home / "log")

    def ready() -> bool:
        assert keeper.alive, f"the real parts did not start:\n{(home / 'log').read_text()[-4000:]}"
        return (home / STATE).exists()

    waited(ready, within_s=START_WITHIN_S, what=f"the real parts are usable, see {home}/log")
    for name, part in json.loads((home / STATE).read_text())["parts"].items():
        print(f"{name:<10} {part['version']:<12} {part['url'] or part['conf']}")  # noqa: T201


def stop(home: Path) -> None:
    """End the parts and remove their folder."""
    if keeper := _keeper(home):
        keeper.terminate(within_s=STOP_WITHIN_S)
    shutil.rmtree(home, ignore_errors=True)


def _keeper(home: Path) -> Daemon | None:
    with contextlib.suppress(FileNotFoundError):
        state = json.loads((home / STATE).read_text())
        return Daemon("the keeper", state["pid"], state["started"])
    return None


def _made(home: Path, name: str) -> Path:
    folder = home / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    {"start": start, "keep": keep, "stop": stop}[sys.argv[1]](Path(sys.argv[2]).absolute())
