"""What a Consul says that is wrong: answers from the past, an index that goes back, refusals of writes that are in order.

The words of the refusals are those of Consul 1.8.7. Each is a `Lie` of the proxy.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode, urlsplit

from cli.lab.proxy import Answer, Forward, Request
from sanderling.clock import SystemClock

CLOCK = SystemClock()
INDEX = "x-consul-index"
TXN = "/v1/txn"
_WAITED = ("index", "wait")


def too_large(request: Request, forward: Forward) -> Answer:
    """No transaction is taken, however small; everything else is answered."""
    if request.target.startswith(TXN):
        return Answer(413, b"Request body(600000 bytes) too large, max size: 524288 bytes.")
    return forward(request)


def invalid_session(request: Request, forward: Forward) -> Answer:
    """No lock can be taken or written: each time the session is called invalid, although it lives."""
    if not request.target.startswith(TXN):
        return forward(request)
    steps = [step["KV"] for step in json.loads(request.body)]
    wrong = [
        {"OpIndex": number, "What": f'invalid session "{step["Session"]}"'}
        for number, step in enumerate(steps)
        if step["Verb"] == "lock"
    ]
    if not wrong:
        return forward(request)
    said = json.dumps({"Results": None, "Errors": wrong}).encode()
    return Answer(409, said, {"content-type": "application/json"})


def set_back(by: int) -> Callable[[Request, Forward], Answer]:
    """As a Consul that was restored from a copy: every index is less by this, and waited for as such."""

    def answered(request: Request, forward: Forward) -> Answer:
        words = urlsplit(request.target)
        asked = [(name, str(int(text) + by) if name == "index" else text) for name, text in parse_qsl(words.query, True)]
        answer = forward(replace(request, target=words._replace(query=urlencode(asked)).geturl()))
        return _with_index(answer, max(1, int(answer.head.get(INDEX, 0)) - by))

    return answered


def stuck(request: Request, forward: Forward) -> Answer:
    """The index is 1 in every answer, whatever there is: no blocking query ever blocks."""
    return _with_index(forward(request), 1)


def _with_index(answer: Answer, index: int) -> Answer:
    return replace(answer, head=dict(answer.head) | {INDEX: str(index)}) if INDEX in answer.head else answer


class Past:
    """Remembers what was answered until `stand_still`; from then on whoever reads is told that again, as by a server that has
    been left behind: what waits for a change waits in vain. Transactions are the present's.
    """

    def __init__(self) -> None:
        self._known: dict[str, Answer] = {}
        self._stands_still = threading.Event()
        self._over = threading.Event()

    def stand_still(self) -> None:
        self._stands_still.set()

    def end(self) -> None:
        """Let go of whoever waits."""
        self._over.set()

    def __call__(self, request: Request, forward: Forward) -> Answer:
        words = urlsplit(request.target)
        asked = dict(parse_qsl(words.query, True))
        what = f"{words.path}?{urlencode([(name, text) for name, text in asked.items() if name not in _WAITED])}"
        known = self._known.get(what) if self._stands_still.is_set() and request.method == "GET" else None
        if known is None:
            answer = forward(request)
            if request.method == "GET" and not self._stands_still.is_set():
                self._known[what] = answer
            return answer
        if int(asked.get("index", 0)) >= int(known.head.get(INDEX, 1)):
            CLOCK.wait(self._over, float(asked.get("wait", "0ms").removesuffix("ms")) / 1000)
        return known
