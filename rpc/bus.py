"""The seam to the message bus: wake-ups to a topic, questions with a deadline, reports that are acknowledged after handling.

A cast may be lost, doubled, late or reordered; whoever needs an effect records it first and sweeps. What crosses is JSON; no
exception crosses. tests/contract/test_bus.py is the definition; it runs on every backend.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rpc.messages import Message

Handler = Callable[[Any], Message | None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a server answers in one namespace: method name → (message type, handler). Nothing else can be reached.

    A handler gets a validated message. For a `call` it returns the reply or raises a `Problem`, which the caller gets
    raised again. A message that fails validation or whose handler fails otherwise is counted and parked, once, and the
    queue moves on.
    """

    namespace: str
    methods: Mapping[str, tuple[type[Message], Handler]]


class Serving(Protocol):
    def stop(self) -> None:
        """Take no more messages and wait, bounded, for the handlers at work."""
        ...


class Bus(Protocol):
    def cast(self, topic: str, method: str, message: Message, *, server: str | None = None) -> None:
        """Send to one server of the topic (or to that `server`) and return; `method` is "namespace.name".

        `Unavailable` when the broker does not take it within the bound. Nobody listening is no error.
        """
        ...

    def call(self, topic: str, method: str, message: Message, *, server: str | None = None, timeout_s: float) -> dict[str, Any]:
        """Send and wait for the reply's fields; the server's `Problem` is raised here, `Unavailable` after `timeout_s`."""
        ...

    def fanout(self, topic: str, method: str, message: Message) -> None:
        """Send to every server of the topic."""
        ...

    def serve(self, topic: str, server: str, endpoints: Sequence[Endpoint]) -> Serving:
        """Listen on the topic, on the topic's queue of this server, and for fanouts, with a bounded number of handlers."""
        ...

    def notify(self, event_type: str, message: Message) -> None:
        """Report something seen. `Unavailable` when the broker does not take it."""
        ...

    def listen(self, handlers: Mapping[str, tuple[type[Message], Handler]]) -> Serving:
        """Take reports by event type: each goes to one listener, is acknowledged after its handler returned, and is
        delivered again when the handler raised `Unavailable` or the process died. Others that fail are parked.
        """
        ...

    def close(self) -> None: ...
