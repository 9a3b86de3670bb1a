"""F11: the journals of what has changed are deleted, overwritten, made unreadable and locked, with two conductors writing theirs.

A journal says what to look at. Without any of them everything must go on, and what is new be found by reading everything.
"""

import contextlib
import json
import random
import secrets
import threading
from collections.abc import Iterator
from functools import partial

import httpx

from cli.lab.lab import CLOCK, NODES, Lab, LabFailed
from cli.lab.scenarios.base import PATIENT_S, Scenario
from sanderling.coordination.changes import PREFIX

SECOND = "conductor-2"
CONDUCTORS = ("conductor-1", SECOND)
SEEN_S = 1.5  # everybody has seen that the journals are another's
PAUSE_S = 0.05  # a journal is hardly written before it is hurt again
TAKE_S = 8.0  # beyond the bound of reading everything: to make a disk, choose a gateway, start a process, on a busy machine
FOREIGN = (
    b"\xff\xfe not json",
    b"",
    b"[]",
    b'{"since": 7, "count": "many"}',
    json.dumps({"since": "a stranger", "count": 10**9, "keys": ["disks/none"] * 32}).encode(),
)


@contextlib.contextmanager
def two_conductors(lab: Lab) -> Iterator[None]:
    lab.cluster.add_conductor(SECOND).start()
    try:
        yield
    finally:
        lab.cluster.discard(SECOND)


def hurt(lab: Lab, dice: random.Random) -> None:
    """All journals, again and again, and then kept from everybody; meanwhile a disk is made and served."""
    with _garbled(lab, dice), _a_disk(lab, "garbled"):
        lab.hold(lab.span(1.0, 5.0))
    with _locked(lab), _a_disk(lab, "locked"):
        lab.hold(lab.span(1.0, 5.0))


@contextlib.contextmanager
def _a_disk(lab: Lab, way: str) -> Iterator[None]:
    """Made and served while all is wrong, within the bound of reading everything again."""
    own, name = lab.cluster.settings().iscsi_worker, f"new-{secrets.token_hex(4)}"
    with lab.keys() as keys:
        every_s = max(own.renew_interval_s, min(own.read_all_most_s, len(keys.list("").entries) * own.read_all_per_key_s))
    bound_s, began = every_s + own.renew_interval_s + TAKE_S, CLOCK.monotonic()
    try:
        lab.cluster.create_disk(name)
    except AssertionError as failed:
        lab.found("F11", f"a disk could not be made while journals were {way}: {str(failed)[:500]}")
        yield
        return
    took_s = lab.measured[f"a disk made while journals were {way} was served"] = CLOCK.monotonic() - began
    if took_s > bound_s:
        lab.found("F11", f"a disk made while journals were {way} was served after {took_s:.1f} s, not {bound_s:.1f} s")
    yield
    lab.cluster.delete_disk(name)


@contextlib.contextmanager
def _garbled(lab: Lab, dice: random.Random) -> Iterator[None]:
    """Each is deleted or overwritten as soon as it is there, by a thread, until the end of the block."""
    stopping, failed, count = threading.Event(), list[Exception](), 0
    journals = _url(lab)
    with httpx.Client(base_url=lab.cluster.consul.url, timeout=10.0) as consul:

        def go_on() -> None:
            nonlocal count
            try:
                while not CLOCK.wait(stopping, PAUSE_S):
                    found = consul.get(journals, params={"keys": ""})
                    for key in found.json() if found.status_code == httpx.codes.OK else ():
                        url, value = f"/v1/kv/{key}", dice.choice(FOREIGN)
                        count += _done(consul.delete(url) if dice.random() < 0.5 else consul.put(url, content=value))
                    consul.put(f"{journals}stranger/one", content=dice.choice(FOREIGN))
            except (httpx.HTTPError, ValueError) as error:
                failed.append(error)

        thread = threading.Thread(target=go_on, name="journals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join(30.0)
            consul.delete(f"{journals}stranger/one")
    if failed or not count:
        raise LabFailed(f"journals could not be hurt: {failed}")
    lab.did(f"journals deleted and overwritten, {count} times")


@contextlib.contextmanager
def _locked(lab: Lab) -> Iterator[None]:
    """A stranger holds them all, whether they are there or not: nobody is told anything by them, not even that they changed."""
    names = [f"conductor/{name}" for name in CONDUCTORS] + [f"iscsi_worker/{node}" for node in NODES]
    urls = [f"{_url(lab)}{name}" for name in names]
    with httpx.Client(base_url=lab.cluster.consul.url, timeout=10.0) as consul:
        session = consul.put("/v1/session/create", json={"Name": "a stranger", "LockDelay": "0s"}).json()["ID"]
        try:
            for url in urls:
                lab.until(partial(_taken, consul, url, session), within_s=5.0, what=f"{url} is locked by a stranger")
            lab.did(f"a stranger locks {', '.join(names)}")
            lab.hold(SEEN_S)
            yield
        finally:
            consul.put(f"/v1/session/destroy/{session}")
            for url in urls:
                consul.delete(url)


def _taken(consul: httpx.Client, url: str, session: str) -> bool:
    """Its writer may be faster."""
    consul.delete(url)
    return _done(consul.put(url, params={"acquire": session}, content=FOREIGN[-1]))


def _url(lab: Lab) -> str:
    return f"/v1/kv/{lab.cluster.settings().coordination.prefix}{PREFIX}"


def _done(answer: httpx.Response) -> bool:
    return answer.status_code == httpx.codes.OK and answer.text.strip() == "true"


SCENARIOS = (
    Scenario(
        "F11-journals",
        "journals of changes lost and garbled, two conductors",
        hurt,
        quick=1,
        full=4,
        keeps=True,
        patience_s=PATIENT_S,
        around=two_conductors,
    ),
)
