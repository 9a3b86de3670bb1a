"""From what arrived to the handler: only the methods named can be reached, only valid messages get there, and nothing escapes."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from pydantic import ValidationError

from rpc.bus import Handler
from rpc.messages import Message
from rpc.parking import Park
from sanderling import tracing
from sanderling.errors import Malformed, NotAuthentic, NotFound, Problem, TooLarge, Unavailable

log = structlog.get_logger(__name__)

Envelope = dict[str, Any]


class Dispatch:
    """The methods of one topic by full name. Poison is handed to `park` once; every other outcome is an answer."""

    def __init__(
        self, topic: str, methods: Mapping[str, tuple[type[Message], Handler]], *, park: Park, payload_max_bytes: int
    ) -> None:
        self._topic = topic
        self._methods = dict(methods)
        self._park = park
        self._payload_max_bytes = payload_max_bytes

    def answer(self, method: object, payload: object) -> Envelope:
        """Handle a cast or a call: `{"ok": fields}` or `{"problem": wire}`."""
        try:
            reply = self._handle(str(method), payload, parks=lambda problem: isinstance(problem, NotAuthentic))
        except Problem as problem:
            return {"problem": problem.to_wire()}
        return {"ok": reply.model_dump(mode="json") if reply is not None else {}}

    def report(self, event_type: object, payload: object) -> bool:
        """Handle a report: False when its handler found a part `Unavailable`, so that it must be delivered again."""
        try:
            self._handle(str(event_type), payload, parks=lambda problem: not isinstance(problem, Unavailable))
        except Unavailable:
            return False
        except Problem:
            return True
        return True

    def _handle(self, method: str, payload: object, *, parks: Callable[[Problem], bool] = lambda _: False) -> Message | None:
        handler, message = self._understood(method, payload)
        operation_id = str(getattr(message, "operation_id", ""))
        with (
            structlog.contextvars.bound_contextvars(method=method),
            tracing.span(method, parent=message.traceparent, operation_id=operation_id),
        ):
            try:
                return handler(message)
            except Problem as problem:
                log.warning("handler refused", code=problem.code, detail=problem.detail)
                if parks(problem):
                    self._park(self._topic, method, payload, problem.code, problem.detail)
                raise
            except Exception as error:
                log.exception("handler failed")
                self._park(self._topic, method, payload, "failed", type(error).__name__)  # its text may hold a secret
                raise Problem("the handler failed; its log says why") from error

    def _understood(self, method: str, payload: object) -> tuple[Handler, Message]:
        try:
            self._check_size(payload)
            if method not in self._methods:
                raise NotFound(f"{self._topic} has no method {method[:100]!r}")
            kind, handler = self._methods[method]
            return handler, kind.model_validate(payload)
        except ValidationError as error:
            rules = [{"field": ".".join(map(str, e["loc"])), "rule": e["msg"]} for e in error.errors(include_url=False)]
            refused: Problem = Malformed(f"{method}: {rules[0]['field']}: {rules[0]['rule']}", errors=rules[:10])
        except Problem as problem:
            refused = problem
        self._park(self._topic, method, payload, refused.code, refused.detail)
        raise refused

    def _check_size(self, payload: object) -> None:
        try:
            size = len(json.dumps(payload))
        except (TypeError, ValueError, RecursionError):
            raise Malformed("the message is not JSON") from None
        if size > self._payload_max_bytes:
            raise TooLarge(f"the message has {size} bytes; {self._payload_max_bytes} are allowed")
