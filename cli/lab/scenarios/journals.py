"""F11: the journals of what has changed are deleted, overwritten, made unreadable and locked, with two conductors writing theirs.

A journal says what to look at. Without any of them everything must go on, and what is new be found by reading everything.
"""

import contextlib
import json
import random
import secrets
import threading
from collections.abc import Iterator

import httpx

from cli.lab.lab import CLOCK, Lab, LabFailed
from cli.lab.scenarios.base import PATIENT_S, Scenario
from sanderling.coordination.changes import PREFIX

SECOND = "conductor-2"
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
    """All journals, again and again, in one way; meanwhile a disk is made and served."""
    way = dice.choice(("deleted", "overwritten", "both", "locked"))
    counts = {"hurt": 0}
    with _hurting(lab, random.Random(dice.random()), way, counts), _a_disk(lab):
        lab.hold(lab.span(2.0, 6.0))
    lab.did(f"journals {way} {counts['hurt']} times")
    if not counts["hurt"]:
        lab.found("F11", "no journal was hurt: it proves nothing")


@contextlib.contextmanager
def _a_disk(lab: Lab) -> Iterator[None]:
    """Made and served while all is wrong, within the bound of reading everything again."""
    own, name = lab.cluster.settings().iscsi_worker, f"new-{secrets.token_hex(4)}"
    with lab.keys() as keys:
        every_s = max(own.renew_interval_s, min(own.read_all_most_s, len(keys.list("").entries) * own.read_all_per_key_s))
    bound_s, began = every_s + own.renew_interval_s + TAKE_S, CLOCK.monotonic()
    try:
        lab.cluster.create_disk(name)
    except AssertionError as failed:
        lab.found("F11", f"a disk could not be made while journals were hurt: {str(failed)[:500]}")
    else:
        took_s = lab.measured["a disk made meanwhile was served"] = CLOCK.monotonic() - began
        if took_s > bound_s:
            lab.found("F11", f"a disk made while journals were hurt was served after {took_s:.1f} s, not {bound_s:.1f} s")
    yield
    lab.cluster.delete_disk(name)


@contextlib.contextmanager
def _hurting(lab: Lab, dice: random.Random, way: str, counts: dict[str, int]) -> Iterator[None]:
    """In a thread, until the end of the block; nothing of a stranger is left then."""
    stopping, failed = threading.Event(), list[Exception]()
    journals = lab.cluster.settings().coordination.prefix + PREFIX
    stranger = f"{journals}stranger/{secrets.token_hex(4)}"
    with httpx.Client(base_url=lab.cluster.consul.url, timeout=10.0) as consul:
        session = consul.put("/v1/session/create", json={"Name": "a stranger", "LockDelay": "0s"}).json()["ID"]

        def turn() -> None:
            found = consul.get(f"/v1/kv/{journals}", params={"keys": ""})
            for key in found.json() if found.status_code == httpx.codes.OK else ():
                is_hurt = _hurt_one(consul, key, way if way != "both" else dice.choice(("deleted", "overwritten")), dice, session)
                counts["hurt"] += is_hurt
            consul.put(f"/v1/kv/{stranger}", content=dice.choice(FOREIGN))

        def go_on() -> None:
            try:
                while not stopping.is_set():
                    turn()
                    CLOCK.wait(stopping, PAUSE_S)
            except (httpx.HTTPError, ValueError) as error:
                failed.append(error)

        thread = threading.Thread(target=go_on, name="journals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join(30.0)
            consul.put(f"/v1/session/destroy/{session}")
            consul.delete(f"/v1/kv/{stranger}")
    if failed:
        raise LabFailed(f"journals could not be hurt: {failed[0]!r}")


def _hurt_one(consul: httpx.Client, key: str, way: str, dice: random.Random, session: str) -> bool:
    match way:
        case "deleted":
            answer = consul.delete(f"/v1/kv/{key}")
        case "overwritten":
            answer = consul.put(f"/v1/kv/{key}", content=dice.choice(FOREIGN))
        case _:
            consul.delete(f"/v1/kv/{key}")
            answer = consul.put(f"/v1/kv/{key}", params={"acquire": session}, content=FOREIGN[-1])
    return answer.status_code == httpx.codes.OK and answer.text.strip() == "true"


SCENARIOS = (
    Scenario(
        "F11-journals",
        "journals of changes lost and garbled, two conductors",
        hurt,
        quick=1,
        full=5,
        keeps=True,
        patience_s=PATIENT_S,
        around=two_conductors,
    ),
)
