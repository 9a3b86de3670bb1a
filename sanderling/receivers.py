"""What notifications are sent to: URLs of apprise, checked when they are given, and guarded again when they are used.

A URL is a secret as a whole, and whoever gave it may be hostile: no redirect is followed, nothing of an answer is passed on but
its status, and while something is being sent no connection is made to this host or its link.
"""

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import FrameType
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import apprise
from apprise.plugins.email import base as mail

from sanderling import settings
from sanderling.errors import DeliveryFailed, InvalidInput

URL_MAX: Final = 2048
PORT_MAX: Final = 65535
_HTTP: Final = frozenset({"json", "jsons", "xml", "xmls", "form", "forms"})
_MAIL: Final = frozenset({"mailto", "mailtos"})
_HOSTED: Final = _HTTP | _MAIL | {"mmost", "mmosts", "rocket", "rockets", "matrix", "matrixs", "gotify", "gotifys"}
_REFUSED_OPTIONS: Final = re.compile(r"verify|redirect|retry|wait|pgp\w*|wkd|rto|cto")
_METADATA: Final = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200")))  # of clouds; most are link-local
_STATUS: Final = re.compile(r"error=(\d{3})\b")


@dataclass(frozen=True, slots=True)
class Note:
    """What a receiver is told. `key` is the same each time this is sent; `event` is for receivers that are programs."""

    key: str
    title: str
    body: str
    is_severe: bool
    event: Mapping[str, Any]


def check(url: str, options: settings.Notifications) -> str:
    """How the receiver may be named: its schema, and its host where that is one. `InvalidInput` says what is wrong."""
    try:
        parts = urlsplit(url)
    except ValueError:  # which may repeat the URL
        raise _wrong("is not a URL: its host is no name and no address", "write an IPv6 address in brackets") from None
    schema = parts.scheme.lower() if url.isprintable() and " " not in url else ""
    allowed = [name.strip() for name in options.schemas.split(",") if name.strip()]
    if schema not in allowed:
        raise _wrong(f"names {schema or 'no'} kind of receiver, which is not allowed", f"use one of {', '.join(allowed)}")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if _REFUSED_OPTIONS.fullmatch(name.lower()):
            raise _wrong(f"sets the option {name}, which is not the receiver's to choose", "leave it out")
    made = _instance(url)
    if made is None:
        raise _wrong(f"is not a URL that apprise understands for {schema}", "see apprise's page for that kind of receiver")
    if len(made) != 1:
        raise _wrong("names several receivers, of which one alone could fail", "make a rule for each of them")
    if schema not in _HOSTED:
        return f"{schema}://…"
    if made.port is not None and not 1 <= made.port <= PORT_MAX:
        raise _wrong("names a port that there is not", f"give one from 1 to {PORT_MAX}, or leave it out")
    host = str(made.smtp_host if schema in _MAIL else made.host)
    if options.loopback == "off" and (host.lower() == "localhost" or _is_refused(host)):
        raise _wrong(f"leads to {host}, this host or its link", "name a receiver in a network, or set [notifications] loopback")
    return f"{schema}://{host}{f':{made.port}' if made.port else ''}"


def send(url: str, note: Note, options: settings.Notifications) -> None:
    """Deliver it, within the bound; `DeliveryFailed` says why not, and nothing that is secret.

    For the main thread of a process of its own: the bound is a signal, and the guard stays with the process.
    """
    made = _instance(url)
    if made is None:
        raise DeliveryFailed("the receiver's URL is not understood any more; delete the rule and make it again")
    schema = urlsplit(url).scheme.lower()
    if schema in _HTTP:
        made.headers["Idempotency-Key"] = note.key
    if schema in {"json", "jsons"}:
        made.payload_extras["event"] = dict(note.event)
    kind = apprise.NotifyType.FAILURE if note.is_severe else apprise.NotifyType.INFO
    with _heard() as said, _guarded(options), _bounded(options.timeout_s), _message_id(f"<{note.key}@sanderling>"):
        try:
            if made.notify(body=note.body, title=note.title, notify_type=kind):
                return
        except _TooLong:
            raise DeliveryFailed(f"the receiver did not take it within {options.timeout_s:g} s") from None
        except Exception as error:  # noqa: BLE001  what plugins raise is theirs, and may hold the URL
            said.append(type(error).__name__)
        raise DeliveryFailed(_reason(said))


def _wrong(rule: str, fix: str) -> InvalidInput:
    return InvalidInput.of("url", rule, fix)


def _instance(url: str) -> Any:
    asset = apprise.AppriseAsset(app_id="Sanderling", app_desc="Sanderling", app_url="", storage_mode="memory", plugin_paths=[])
    asset.http_redirects = False
    logging.getLogger("apprise").propagate = False  # its lines may hold the URL
    made = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
    if made is not None:
        made.redirects = False
    return made


def _is_refused(host: str) -> bool:
    try:
        address = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return any(_is_own(each) for each in (address, *_embedded(address)))


def _is_own(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
        or (address.is_reserved and not address.is_global)
    )


def _embedded(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    """IPv4 addresses that an IPv6 one leads to."""
    if isinstance(address, IPv6Address):
        yield from filter(None, (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())))
        if address.packed[:12] in {bytes(12), bytes.fromhex("0064ff9b") + bytes(8)}:
            yield IPv4Address(address.packed[12:])


class _TooLong(BaseException):
    """Nothing that a plugin catches."""


@contextlib.contextmanager
def _bounded(timeout_s: float) -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Guard:
    """Hears of every connection before it is made, whoever makes it: what a name resolves to is known only then."""

    def __init__(self) -> None:
        self.is_on = False
        self.refused = ""
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if self.is_on and event in {"socket.connect", "socket.sendto", "subprocess.Popen", "os.system"}:
            address = args[1] if event.startswith("socket.") and isinstance(args[1], tuple) else None
            if address is None or _is_refused(str(address[0])):
                self.refused = str(address[0]) if address else event
                raise PermissionError("refused by the guard of receivers")


_guards: list[_Guard] = []  # one: a hook cannot be taken away again


@contextlib.contextmanager
def _guarded(options: settings.Notifications) -> Iterator[None]:
    if not _guards:
        _guards.append(_Guard())
    guard = _guards[0]
    guard.is_on, guard.refused = options.loopback == "off", ""
    try:
        yield
    finally:
        guard.is_on = False


class _Heard(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What apprise logs, whatever this process does: the only place where it says why."""
    said: list[str] = []
    handler, logger = _Heard(said), logging.getLogger("apprise")
    level, propagates = logger.level, logger.propagate
    logger.propagate = propagates and logger.isEnabledFor(logging.WARNING)
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


@contextlib.contextmanager
def _message_id(value: str) -> Iterator[None]:
    """Apprise makes up a Message-ID for each attempt and takes none; with ours a mail server sees a repeat for what it is."""
    before = vars(mail)["make_msgid"]
    vars(mail)["make_msgid"] = lambda **_: value
    try:
        yield
    finally:
        vars(mail)["make_msgid"] = before


def _reason(said: list[str]) -> str:
    if _guards and _guards[0].refused:
        return f"the receiver's name leads to {_guards[0].refused}, this host or its link, where nothing is sent"
    for line in said:
        if status := _STATUS.search(line):
            return f"the receiver answered {status[1]}"
    return "the receiver cannot be reached, or does not accept what is sent"
