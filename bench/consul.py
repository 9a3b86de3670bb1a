"""What the benchmarks do to a real Consul beside what Sanderling does: filling it, and counting what is read from it."""

import base64
import contextlib
import json
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from cli.lab.parts.consul import ConsulAgent
from sanderling.coordination.base import OPS_MAX, Listing
from sanderling.coordination.consul import ConsulCoordination

REQUEST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Key:
    """A key to be there, locked by a consul session if one is named."""

    name: str
    value: bytes
    consul_session: str = ""


@contextlib.contextmanager
def server() -> Iterator[ConsulAgent]:
    """One Consul server on loopback, with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="bench-consul-") as folder:
        agent = ConsulAgent(Path(folder))
        try:
            agent.start()
            yield agent
        finally:
            agent.kill()


def fill(url: str, keys: Iterable[Key]) -> None:
    """Write them as they are, as many at once as Consul takes."""
    left = iter(keys)
    while batch := list(islice(left, OPS_MAX)):
        body = json.dumps([_operation(key) for key in batch]).encode()
        request = urllib.request.Request(f"{url}/v1/txn", data=body, method="PUT")  # noqa: S310  our own agent
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:  # noqa: S310
            answer.read()


def _operation(key: Key) -> dict[str, object]:
    lock = {"Verb": "lock", "Session": key.consul_session} if key.consul_session else {"Verb": "set"}
    return {"KV": {"Key": key.name, "Value": base64.b64encode(key.value).decode(), **lock}}


class Counting(ConsulCoordination):
    """Coordination that counts the entries it was given by lists and watches."""

    keys_read = 0
    reads = 0

    def list(self, prefix: str) -> Listing:
        return self._counted(super().list(prefix))

    def watch(self, prefix: str, *, index: int, timeout_s: float) -> Listing:
        return self._counted(super().watch(prefix, index=index, timeout_s=timeout_s))

    def _counted(self, listing: Listing) -> Listing:
        self.keys_read += len(listing.entries)
        self.reads += 1
        return listing
