"""The command line's side of HTTP: bounded requests, and problems raised again as they were meant."""

import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import httpx_sse

from cli.access import Access
from sanderling.errors import Forbidden, InvalidInput, Malformed, NotFound, Problem, Unauthenticated, Unavailable

TIMEOUT_S = 30.0
Json = dict[str, Any]


def at(noun: str, name: str, *parts: str) -> str:
    """The path of one thing: `at("disks", name, "start")`. What somebody typed as a name is one part of it, or is refused."""
    for part in (name, *parts):
        if part in {"", ".", ".."} or "/" in part or not part.isprintable():
            raise InvalidInput.of("NAME", f"{part!r} cannot be the name of anything", "give a name or an id as it is listed")
    return "/".join(["/v1", noun, *(quote(part, safe="") for part in (name, *parts))])


class Client:
    """Requests under a bound; every answer that is not a success is raised as the `Problem` the service described.

    A request with a key is sent once more when its answer does not come: the service does what it asks for once.
    """

    def __init__(self, access: Access, *, transport: httpx.BaseTransport | None = None) -> None:
        self._access = access
        self._http = httpx.Client(
            base_url=access.url,
            headers={"Authorization": f"Bearer {access.token}"},
            timeout=TIMEOUT_S,
            verify=verified(access),
            transport=transport,
        )

    def get(self, path: str, **params: Any) -> Json:
        return self._asked("GET", path, params=params)

    def post(self, path: str, body: Json | None = None, *, key: str | None = None, **params: Any) -> Json:
        return self._asked("POST", path, params=params, body=body, key=key)

    def patch(self, path: str, body: Json, *, key: str | None = None, **params: Any) -> Json:
        return self._asked("PATCH", path, params=params, body=body, key=key)

    def text(self, path: str, **params: Any) -> str:
        """An answer that is meant to be read as it is."""
        return self._answer("GET", path, params=params).text

    def put(self, path: str, body: Json, *, key: str | None = None, **params: Any) -> Json:
        return self._asked("PUT", path, params=params, body=body, key=key)

    def delete(self, path: str, *, key: str | None = None, **params: Any) -> Json:
        return self._asked("DELETE", path, params=params, key=key)

    def pages(self, path: str, noun: str, **params: Any) -> Iterator[Json]:
        """Every item of a listing, page by page."""
        page = self.get(path, **params)
        while True:
            yield from page[noun]
            following = page.get("next")
            if not following:
                return
            parts = urlsplit(following)
            page = self._asked("GET", f"{parts.path}?{parts.query}")

    def history(self, *, after: int) -> Iterator[Json]:
        """Every event there is so far, from the one after `after`."""
        while True:
            found = self.get("/v1/events", after=after)["events"]
            if not found:
                return
            yield from found
            after = found[-1]["id"]

    def events(self, *, after: int | None) -> Iterator[Json]:
        """Events as they happen, from the one after `after` or from now on, until the connection ends.

        While nothing happens the service sends a comment every 15 s (sse-starlette's default): one that is silent is gone.
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        try:
            with httpx_sse.connect_sse(self._http, "GET", "/v1/events", headers=headers) as source:
                if source.response.is_error:
                    source.response.read()
                    raise _problem(source.response)
                for event in source.iter_sse():
                    if event.data:
                        yield dict(json.loads(event.data))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _asked(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Json | None = None, key: str | None = None
    ) -> Json:
        response = self._answer(method, path, params=params, body=body, key=key)
        return dict(response.json()) if response.content else {}

    def _answer(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Json | None = None, key: str | None = None
    ) -> httpx.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None} or None
        headers = {"Idempotency-Key": key} if key else {}
        try:
            try:
                response = self._http.request(method, path, params=given, json=body, headers=headers)
            except httpx.TransportError:
                if not key:
                    raise
                response = self._http.request(method, path, params=given, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _problem(response)
        return response

    def _unreachable(self, error: httpx.HTTPError) -> Unavailable:
        return Unavailable(f"the service at {self._access.url} cannot be reached ({error}); is it running?", dependency="api")


def verified(access: Access) -> ssl.SSLContext:
    """How the service proves itself, and we ourselves to it; `Malformed` where what the client file names cannot do that."""
    if (access.ca_file or access.cert_file) and not access.url.startswith("https://"):
        raise Malformed("the client file names a CA or a certificate, and a URL that is not https: nothing would be verified")
    if bool(access.cert_file) != bool(access.key_file):
        raise Malformed("the client file names one of cert_file and key_file: give both or none")
    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        if access.cert_file:
            context.load_cert_chain(access.cert_file, access.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise Malformed(f"a file that the client file names cannot be used ({error}); mend it") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


_BY_STATUS: dict[int, type[Problem]] = {401: Unauthenticated, 403: Forbidden, 404: NotFound, 422: InvalidInput, 503: Unavailable}


def _problem(response: httpx.Response) -> Problem:
    try:
        body = dict(response.json())
    except (ValueError, TypeError):
        kind = _BY_STATUS.get(response.status_code, Problem)
        return kind(f"the service answered {response.status_code} without a reason")
    code = str(body.pop("type", "")).rpartition("/")[2]
    detail = str(body.pop("detail", f"the service answered {response.status_code}"))
    members = {name: value for name, value in body.items() if name not in {"title", "status", "instance"}}
    return Problem.from_wire({"code": code, "detail": detail, "context": members})
