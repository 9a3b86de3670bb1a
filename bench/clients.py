"""Clients that keep their connections, in a process of their own: `python -m bench.clients URL COUNT --clients 8 [--rate R]`.

Standard input is JSON: the path, the headers and the bodies to post in turn. Prints JSON: seconds in all, and of each request how
long it took and when it was sent.
"""

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Posted:
    """`took_s` of each request; `whole_s` from the first sent to the last answered."""

    whole_s: float
    took_s: list[float]

    @property
    def rate(self) -> float:
        return len(self.took_s) / self.whole_s


def post(
    url: str, path: str, bodies: Sequence[Any], *, headers: Mapping[str, str], clients: int = 8, rate: float = 0.0
) -> Posted:
    """Post every body once. With a `rate` each is sent at its time, whether those before were answered or not."""
    asked = json.dumps({"path": path, "headers": dict(headers), "bodies": list(bodies)})
    argv = [sys.executable, "-m", "bench.clients", url, "--clients", str(clients), "--rate", str(rate)]
    done = subprocess.run(argv, input=asked, capture_output=True, text=True, timeout=600, check=True)
    told = json.loads(done.stdout)
    return Posted(told["whole_s"], told["took_s"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.0)
    asked = parser.parse_args()
    told = json.load(sys.stdin)
    bodies, place = told["bodies"], urlsplit(asked.url)
    took, taken, lock, never = [0.0] * len(bodies), iter(range(len(bodies))), threading.Lock(), threading.Event()
    began = time.perf_counter()

    def client() -> None:
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=TIMEOUT_S)
        while True:
            with lock:
                number = next(taken, None)
            if number is None:
                return
            due = began + (number / asked.rate if asked.rate else 0.0)
            never.wait(max(0.0, due - time.perf_counter()))
            sent = due if asked.rate else time.perf_counter()
            body = json.dumps(bodies[number])
            connection.request("POST", told["path"], body, told["headers"] | {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status in {201, 202}, said
            took[number] = time.perf_counter() - sent

    threads = [threading.Thread(target=client) for _ in range(asked.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump({"whole_s": time.perf_counter() - began, "took_s": took}, sys.stdout)


if __name__ == "__main__":
    main()
