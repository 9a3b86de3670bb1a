"""Every method of the coordination seam by name, for tests of what they have in common: how they fail."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from sanderling.clock import SystemClock
from sanderling.coordination import connect
from sanderling.coordination.base import Coordination
from sanderling.errors import Unavailable
from sanderling.settings import Coordination as Bounds
from sanderling.settings import Settings

ID = "00000000-0000-4000-8000-000000000001"
WITHIN_S = 30.0  # far above every bound that is asked for


def coordination(url: str, **bounds: Any) -> Coordination:
    return connect(Settings(coordination=Bounds(url=url, **{"request_timeout_s": 1.0, **bounds})), clock=SystemClock())


def within_bound(call: Callable[[], Any]) -> Any:
    """The call's result or problem; a call that has no end fails here, and keeps neither the test nor the run waiting."""
    done: Future[Any] = Future()

    def go() -> None:
        try:
            done.set_result(call())
        except Exception as error:  # noqa: BLE001  handed over to the caller
            done.set_exception(error)

    threading.Thread(target=go, daemon=True).start()
    return done.result(WITHIN_S)


CALLS: dict[str, Callable[[Coordination], Any]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: store.list(""),
    "watch": lambda store: store.watch("", index=1, timeout_s=0.2),
    "put": lambda store: store.put("a", b""),
    "delete": lambda store: store.delete("a"),
    "acquire": lambda store: store.acquire("a", b"", consul_session=ID),
    "release": lambda store: store.release("a", b"", consul_session=ID),
    "open_session": lambda store: store.open_session("test", check_ttl_s=5.0),
    "renew_session": lambda store: store.renew_session(ID),
    "session_is_live": lambda store: store.session_is_live(ID),
    "close_session": lambda store: store.close_session(ID),
}


def assert_unavailable(store: Coordination, *names: str) -> None:
    for name in names or CALLS:
        with pytest.raises(Unavailable) as caught:
            within_bound(partial(CALLS[name], store))
        assert caught.value.context["dependency"] == "consul", name
