"""How py-consul reaches Consul's HTTP API here: by urllib3 itself.

What requests does around each call takes as long as the call, and every step of a move waits for some of them.
"""

import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import urllib3
from consul.base import HTTPClient, Response
from consul.std import parse_duration

from sanderling import settings

CONNECTIONS_KEPT: Final = 64  # a worker waits for some thirty keys at once

Callback = Callable[[Response], Any]
Params = Sequence[tuple[str, Any]] | None
Headers = dict[str, str] | None


class ConsulHttp(HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """Safe to share between threads. Raises `urllib3.exceptions.HTTPError` when there is no answer in time.

    Nothing of the environment counts, no answer sends it elsewhere, and an https agent must prove itself by the settings' CA.
    """

    def __init__(self, bounds: settings.Coordination, host: str, port: int, scheme: str) -> None:
        super().__init__(host, port, scheme)
        self.base_uri = ""  # the pool knows the way
        self._timeout_s = bounds.request_timeout_s
        self._headers = {"Accept-Encoding": "identity"}  # the agent is on this node: packing costs more than it saves
        if bounds.token:
            self._headers["X-Consul-Token"] = bounds.token
        if scheme == "https":
            self._pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
                host,
                port,
                maxsize=CONNECTIONS_KEPT,
                cert_reqs="CERT_REQUIRED",
                ca_certs=bounds.ca_file,
                cert_file=bounds.cert_file or None,
                key_file=bounds.key_file or None,
                ssl_minimum_version=ssl.TLSVersion.TLSv1_2,
            )
        else:
            self._pool = urllib3.HTTPConnectionPool(host, port, maxsize=CONNECTIONS_KEPT)

    def get(self, callback: Callback, path: str, params: Params = None, headers: Headers = None) -> Any:
        return self._asked(callback, "GET", path, params, headers)

    def put(self, callback: Callback, path: str, params: Params = None, data: str | bytes = "", headers: Headers = None) -> Any:
        return self._asked(callback, "PUT", path, params, headers, data)

    def delete(
        self, callback: Callback, path: str, params: Params = None, data: str | bytes = "", headers: Headers = None
    ) -> Any:
        return self._asked(callback, "DELETE", path, params, headers, data)

    def post(self, callback: Callback, path: str, params: Params = None, data: str | bytes = "", headers: Headers = None) -> Any:
        return self._asked(callback, "POST", path, params, headers, data)

    def close(self) -> None:
        self._pool.close()

    def _asked(
        self, callback: Callback, method: str, path: str, params: Params, headers: Headers, data: str | bytes | None = None
    ) -> Any:
        # a blocking query says nothing until its wait, and up to a sixteenth more, is over
        wait_s = parse_duration(str(dict(params or ()).get("wait", "0s"))) * 17 / 16
        answer = self._pool.request(
            method,
            self.uri(path, list(params or ())),
            body=data,
            headers=self._headers | (headers or {}),
            timeout=urllib3.Timeout(connect=self._timeout_s, read=self._timeout_s + wait_s),
            retries=False,
            redirect=False,
        )
        return callback(Response(answer.status, answer.headers, answer.data.decode(errors="replace")))
