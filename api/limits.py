"""The bound on what a request may send, kept while it arrives: a length that is promised proves nothing."""

import asyncio
import hashlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from sanderling.errors import Malformed, Problem, TooLarge
from sanderling.settings import Api

BODY_DIGEST = "sanderling.body_digest"  # in the ASGI scope: SHA-256 of the body, for idempotency keys


class BodyLimit:
    """Takes in the body, within a size and a time, before anything else sees the request."""

    def __init__(self, app: ASGIApp, options: Api) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._options.body_timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            await _refuse(Malformed(f"the body did not arrive within {self._options.body_timeout_s} s"), scope, receive, send)
            return
        except TooLarge as problem:
            await _refuse(problem, scope, receive, send)
            return
        if body is None:
            return
        scope[BODY_DIGEST] = hashlib.sha256(body).hexdigest()
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        most = self._options.body_max_bytes
        promised = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = TooLarge(f"a request body is at most {most} bytes; send less", body_max_bytes=most)
        if promised.isdigit() and int(promised[:20]) > most:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    await problems.answer(problem, instance=scope["path"], headers={"Connection": "close"})(scope, receive, send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
