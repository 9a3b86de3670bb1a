"""Coordination in Consul, through py-consul and the Consul agent of this node.

Every change is one transaction. A change whose answer was lost is `Unavailable` and may yet have been made: read, then decide.
"""

import base64
import json
import threading
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import consul
import structlog
from consul.callback import CB
from urllib3.exceptions import HTTPError

from sanderling import settings, tls
from sanderling.clock import Clock
from sanderling.coordination.base import ABSENT, Acquire, Delete, Entry, Listing, Op, Put, Release, assert_sound
from sanderling.coordination.consul_http import ConsulHttp
from sanderling.errors import SessionLost, SettingsRefused, TooLarge, Unavailable

log = structlog.get_logger(__name__)

CHECK_MARK = "sanderling:"  # begins the id of every check of ours
RETRY_PAUSE_S = 0.02
STANDSTILL_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation as Consul takes it. `racing`: it fails only when another writer came between our read and our write."""

    kv: dict[str, Any]
    racing: bool = False


class ConsulCoordination:
    """Safe to share between threads. One request is bounded by `request_timeout_s`; a change may need a read before it."""

    def __init__(self, bounds: settings.Coordination, *, clock: Clock) -> None:
        self._bounds = bounds
        self._clock = clock
        self._client = client(bounds, clock)
        self._checks: dict[str, str] = {}  # check id by consul session
        self._lost: set[str] = set()
        self._interrupted: set[str] = set()  # prefixes whose last watch failed: the store may be another since
        self.failover_bound_s = 1.0 + bounds.request_timeout_s

    def get(self, key: str) -> Entry | None:
        with self._asking():
            _, item = self._client.kv.get(self._bounds.prefix + key, consistency="consistent")
            return self._entry(item) if item else None

    def list(self, prefix: str) -> Listing:
        return self._listing(prefix)

    def watch(self, prefix: str, *, index: int, timeout_s: float) -> Listing:
        if prefix in self._interrupted:
            listing = self._listing(prefix)
        else:
            try:
                # Consul takes index 0 for "do not wait" and wait 0 for its default of five minutes
                began = self._clock.monotonic()
                listing = self._listing(prefix, index=max(1, index), wait=_milliseconds(timeout_s))
            except Unavailable:
                self._interrupted.add(prefix)
                raise
            if listing.index == index and self._clock.monotonic() - began < min(timeout_s, STANDSTILL_PAUSE_S):
                self._clock.wait(threading.Event(), min(timeout_s, STANDSTILL_PAUSE_S))  # it neither waited nor has news
        self._interrupted.discard(prefix)
        return listing

    def put(self, key: str, value: bytes, *, expected: int | None = None) -> bool:
        return self.txn([Put(key, value, expected)])

    def delete(self, key: str, *, expected: int | None = None) -> bool:
        return self.txn([Delete(key, expected)])

    def acquire(self, key: str, value: bytes, *, consul_session: str, expected: int | None = None) -> bool:
        return self.txn([Acquire(key, value, consul_session, expected)])

    def release(self, key: str, value: bytes, *, consul_session: str) -> bool:
        return self.txn([Release(key, value, consul_session)])

    def txn(self, ops: Sequence[Op]) -> bool:
        """A plain write to a locked key would go through in Consul and forget its owner's LockIndex; so each unlocked key is
        read first and written by compare-and-set: taking or leaving a lock always changes the modify index.
        """
        assert_sound(ops)
        deadline = self._clock.monotonic() + self._bounds.request_timeout_s
        while (steps := self._steps(ops)) is not None:
            refused = self._submit(steps)
            if not refused:
                return True
            if not all(step.racing for step in refused):
                break
            if self._clock.monotonic() >= deadline:
                raise Unavailable("other writers kept changing the same keys; try again", dependency="consul")
        for consul_session in {op.consul_session for op in ops if isinstance(op, Acquire)}:
            if not self.session_is_live(consul_session):
                raise self._gone(consul_session)
        return False

    def open_session(self, name: str, *, check_ttl_s: float, lock_delay_s: int = 0) -> str:
        """The session has no TTL of its own (Consul waits for twice that): it hangs on serfHealth and on the check."""
        check_id = f"{CHECK_MARK}{name}:{uuid4()}"
        check = {"ttl": _milliseconds(check_ttl_s), "status": "passing"}
        with self._asking():
            self._sweep_checks(name)
            self._client.agent.check.register(f"{CHECK_MARK}{name}", check=check, check_id=check_id)
            try:
                consul_session = self._session_on(name, check_id, lock_delay_s)
            except (consul.ConsulException, HTTPError):
                self._client.agent.check.deregister(check_id)
                raise
        self._checks[consul_session] = check_id
        return consul_session

    def renew_session(self, consul_session: str) -> None:
        check_id = None if consul_session in self._lost else self._check_of(consul_session)
        if check_id is None or not self._feed(check_id):
            raise self._gone(consul_session)

    def session_is_live(self, consul_session: str) -> bool:
        live = self._checks_of(consul_session) is not None
        if not live:
            self._lost.add(consul_session)
        return live

    def close_session(self, consul_session: str) -> None:
        check_id = self._check_of(consul_session)
        if check_id is not None:
            with self._asking():
                self._client.agent.check.deregister(check_id)
                self._client.session.destroy(consul_session)
        self._gone(consul_session)

    def close(self) -> None:
        self._client.http.close()

    def _listing(self, prefix: str, **blocking: Any) -> Listing:
        with self._asking():
            index, items = self._client.kv.get(self._bounds.prefix + prefix, recurse=True, consistency="consistent", **blocking)
            return Listing(tuple(self._entry(item) for item in items or ()), max(1, int(index)))

    def _entry(self, item: dict[str, Any]) -> Entry:
        key = str(item["Key"]).removeprefix(self._bounds.prefix)
        return Entry(key, item["Value"] or b"", int(item["ModifyIndex"]), item.get("Session") or None)

    def _steps(self, ops: Sequence[Op]) -> tuple[_Step, ...] | None:
        """What to send for these ops, None when what we read already refuses one of them."""
        unlocked = [op.key for op in ops if isinstance(op, Put | Delete) and op.expected != ABSENT]
        seen = self._read(unlocked) if unlocked else {}
        found = [_steps_of(op, self._bounds.prefix + op.key, seen.get(op.key)) for op in ops]
        return None if None in found else tuple(step for steps in found for step in steps or ())

    def _read(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the keys that there are. `get` fails on a missing key, so each is read as a tree."""
        with self._asking():
            answer = self._send([{"Verb": "get-tree", "Key": self._bounds.prefix + key} for key in keys])
            items = [result["KV"] for result in answer["Results"] or ()]
            entries = [self._entry({**item, "Value": base64.b64decode(item["Value"] or "")}) for item in items]
        return {entry.key: entry for entry in entries}

    def _submit(self, steps: Sequence[_Step]) -> tuple[_Step, ...]:
        """Do all of it, or nothing and say which of the steps Consul refused."""
        with self._asking():
            errors = self._send([step.kv for step in steps])["Errors"]
            return tuple(steps[error["OpIndex"]] for error in errors or ())

    def _send(self, kvs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        # py-consul's own txn.put can neither ask for a consistent read nor tell a refusal from another client error
        body = json.dumps([{"KV": kv} for kv in kvs])
        answer: dict[str, Any] = self._client.http.put(_outcome, "/v1/txn", params=[("consistent", "1")], data=body)
        return answer

    def _checks_of(self, consul_session: str) -> Set[str] | None:
        """The checks that the session hangs on, by a consistent read; None when there is no such session."""
        try:
            UUID(consul_session)
        except ValueError:
            return None  # Consul answers 500 to an id that cannot be one
        with self._asking():
            _, info = self._client.session.info(consul_session, consistency="consistent")
            return {str(check) for check in info["Checks"] or ()} if info else None

    def _check_of(self, consul_session: str) -> str | None:
        """Our check that the session hangs on; None when the session is gone or was not opened here."""
        if consul_session not in self._checks:
            ours = [check for check in self._checks_of(consul_session) or () if check.startswith(CHECK_MARK)]
            if not ours:
                return None
            self._checks[consul_session] = ours[0]
        return self._checks[consul_session]

    def _session_on(self, name: str, check_id: str, lock_delay_s: int) -> str:
        """Open the session. Consul refuses until the check has reached the catalog, which takes a moment."""
        deadline, never = self._clock.monotonic() + self._bounds.request_timeout_s, threading.Event()
        checks = ["serfHealth", check_id]
        while True:
            try:
                return str(self._client.session.create(name, checks=checks, lock_delay=lock_delay_s))
            except consul.ConsulException:
                if self._clock.monotonic() >= deadline:
                    raise
            self._clock.wait(never, RETRY_PAUSE_S)

    def _feed(self, check_id: str) -> bool:
        """False when the agent knows no such check: newer agents say 404, older ones 500."""
        with self._asking():
            try:
                return bool(self._client.agent.check.ttl_pass(check_id))
            except consul.ConsulException as error:
                if "does not have associated TTL" in str(error):
                    return False
                raise

    def _sweep_checks(self, name: str) -> None:
        """Take off the checks that dead processes left on this agent; a critical check's session is dead already."""
        for check_id, check in self._client.agent.checks().items():
            if check_id.startswith(f"{CHECK_MARK}{name}:") and check["Status"] == "critical":
                self._client.agent.check.deregister(check_id)

    def _gone(self, consul_session: str) -> SessionLost:
        self._lost.add(consul_session)
        self._checks.pop(consul_session, None)
        return SessionLost(f"consul session {consul_session} is gone", consul_session=consul_session)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Every way in which Consul can fail us, as a problem."""
        where = f"Consul at {self._bounds.url}"
        try:
            yield
        except HTTPError as error:
            raise Unavailable(f"{where} does not answer: {error}", dependency="consul") from error
        except consul.ACLPermissionDenied as error:
            raise Unavailable(f"{where} refuses the token of [coordination] token: {error}", dependency="consul") from error
        except consul.ConsulException as error:
            if str(error).startswith("413 "):
                raise TooLarge(f"{where} refuses the request: {error}", dependency="consul") from error
            raise Unavailable(f"{where} failed: {error}", dependency="consul") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            said = f"{type(error).__name__}: {error}"  # the repr of some holds all that was sent or read
            raise Unavailable(f"{where} answered what Consul does not: {said}", dependency="consul") from error


def client(bounds: settings.Coordination, clock: Clock) -> Any:
    """py-consul's, on our HTTP; `SettingsRefused` for an address, a token, a prefix or a CA that cannot be."""
    try:
        url = urlsplit(bounds.url)
        host, port = url.hostname, url.port or 8500
    except ValueError:
        host, port = None, 0
    if host is None or url.scheme not in {"http", "https"} or url.path.strip("/"):
        raise SettingsRefused(f"[coordination] url: {bounds.url!r} is not http://host:port or https://host:port; mend it")
    if not all("!" <= character <= "~" for character in bounds.token):
        raise SettingsRefused("[coordination] token: is not one word of printable ASCII; mend it, or make a new one")
    if bounds.prefix.startswith("/"):
        raise SettingsRefused(f"[coordination] prefix: Consul's keys do not begin with a slash; drop it from {bounds.prefix!r}")
    tls.check("coordination", ca_file=bounds.ca_file, cert_file=bounds.cert_file, key_file=bounds.key_file, now=clock.wall())
    client = consul.Consul(host, port, scheme=url.scheme)
    client.http = ConsulHttp(bounds, host, port, url.scheme)
    client.token = None  # py-consul lets an environment variable win over settings, and sends none with a transaction
    return client


def _outcome(response: Any) -> dict[str, Any]:
    """A transaction's answer; a refusal (409) is one too."""
    answer = json.loads(response.body) if response.code == 409 else CB.json()(response)
    return {"Results": answer["Results"], "Errors": answer["Errors"]}


def _steps_of(op: Op, key: str, seen: Entry | None) -> tuple[_Step, ...] | None:
    """The steps of one op on a key that was seen so; None when that refuses it. Pure."""
    if isinstance(op, Release | Acquire):
        verb = "unlock" if isinstance(op, Release) else "lock"
        step = _Step({"Verb": verb, "Key": key, "Value": _text(op.value), "Session": op.consul_session})
        return (step,) if op.expected is None else (_Step(_unchanged(key, op.expected)), step)
    index, racing = (seen.modify_index if seen else ABSENT), op.expected is None
    if (seen and seen.consul_session) or op.expected not in {None, index}:
        return None
    if isinstance(op, Put):
        return (_Step({"Verb": "cas", "Key": key, "Value": _text(op.value), "Index": index}, racing),)
    unchanged = _Step(_unchanged(key, index), racing)
    if index == ABSENT:
        return (unchanged,)
    delete = _Step({"Verb": "delete-cas", "Key": key, "Index": index}, racing)
    return (delete,) if racing else (unchanged, delete)  # a delete-cas of a key that is gone succeeds


def _unchanged(key: str, expected: int) -> dict[str, Any]:
    if expected == ABSENT:
        return {"Verb": "check-not-exists", "Key": key}
    return {"Verb": "check-index", "Key": key, "Index": expected}


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
