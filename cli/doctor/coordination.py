"""Consul: that it can be reached and has a quorum, that its gossip is as quick as failover needs, and what the token may do."""

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from urllib3.exceptions import HTTPError

import sanderling.coordination
from cli.doctor.base import Check, Finding, Role, fail, ok, warn
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.coordination.consul import client
from sanderling.errors import Unavailable
from sanderling.settings import Settings

FIX: Final = "see that the Consul agent of this host runs (systemctl status consul) and that [coordination] names it"
GOSSIP: Final = {
    "GossipLANProbeInterval": "500ms",
    "GossipLANProbeTimeout": "200ms",
    "GossipLANSuspicionMult": 3,
    "LeaveOnTerm": False,
    "SkipLeaveOnInt": True,
}
"""What etc/consul/sanderling.json asks for, by the names that an agent gives it."""

WRITTEN: Final = ("disks/", "exports/", "nodes/", "leaders/", "changes/", "doctor/")

Ask = Callable[[str, Any], tuple[int, Any]]
"""GET of a path, or PUT of a body to it: status and answer."""


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    if settings.coordination.backend != "consul":
        return []
    rights = "if Consul answers: give the token key_prefix, session_prefix and node_prefix write (docs/operations.md, section 4)"
    return [
        Check("consul", lambda: look(asking(settings, clock)), FIX),
        Check(
            "consul agent's name",
            lambda: look_at_name(asking(settings, clock), settings.sanderling.node),
            FIX,
            frozenset({Role.WORKER}),
        ),
        Check("consul rights", lambda: look_at_rights(settings, clock=clock), rights),
    ]


def asking(settings: Settings, clock: Clock) -> Ask:
    """Raises `Unavailable` when the agent does not answer."""
    http = client(settings.coordination, clock).http

    def read(response: Any) -> tuple[int, Any]:
        with contextlib.suppress(ValueError):
            return response.code, json.loads(response.body)
        return response.code, response.body

    def ask(path: str, body: Any) -> tuple[int, Any]:
        try:
            if body is None:
                return read(http.get(lambda response: response, path))
            return read(http.post(lambda response: response, path, data=json.dumps(body)))
        except HTTPError as error:
            url = settings.coordination.url
            raise Unavailable(f"Consul at {url} does not answer ({type(error).__name__})", dependency="consul") from error

    return ask


def look(ask: Ask) -> Iterable[Finding]:
    status, leader = ask("/v1/status/leader", None)
    if status != 200:
        yield fail("consul", f"the agent answers {status}: {str(leader)[:200]}", FIX)
        return
    _, peers = ask("/v1/status/peers", None)
    yield _quorum(leader, peers if isinstance(peers, list) else [], ask)
    status, agent = ask("/v1/agent/self", None)
    if status == 200:
        yield from _gossip(agent)
    else:
        fix = "to have them looked at, give the token agent_prefix read"
        yield warn("consul gossip", f"the token may not see the agent's settings ({status})", fix)


def _quorum(leader: object, peers: Sequence[str], ask: Ask) -> Finding:
    if not leader:
        fix = "bring back a majority of the Consul servers: consul operator raft list-peers, journalctl -u consul"
        return fail("consul quorum", f"no leader among {len(peers)} servers: nothing can be taken over", fix)
    _, members = ask("/v1/agent/members", None)
    servers = [m for m in members if m.get("Tags", {}).get("role") == "consul"] if isinstance(members, list) else []
    there = {f"{member.get('Addr')}:{member['Tags'].get('port')}" for member in servers if member.get("Status") == 1}
    alive = sum(re.sub(r"[][]", "", peer) in there for peer in peers)  # a server that has just come has no vote yet
    seen = f"leader {leader}, {alive if servers else '?'} of {len(peers)} servers alive"
    fix = "run three or five servers, each on a host of its own, and bring back those that are down"
    spare = (alive if servers else len(peers)) - (len(peers) // 2 + 1)
    return ok("consul quorum", seen) if spare > 0 else warn("consul quorum", f"{seen}: the loss of one more ends it", fix)


def _gossip(agent: Mapping[str, Any]) -> Iterable[Finding]:
    yield ok("consul", f"version {agent.get('Config', {}).get('Version', 'unknown')}")
    settings = agent.get("DebugConfig", {})
    other = [f"{name} is {settings.get(name)}, not {wanted}" for name, wanted in GOSSIP.items() if settings.get(name) != wanted]
    if other:
        fix = "copy etc/consul/sanderling.json to /etc/consul.d on every agent and restart it"
        yield warn("consul gossip", f"{'; '.join(other)}: a dead node is noticed late", fix)
    else:
        yield ok("consul gossip", "tuned as in etc/consul/sanderling.json")


def look_at_name(ask: Ask, node: str) -> Iterable[Finding]:
    status, agent = ask("/v1/agent/self", None)
    if status != 200:
        return
    name = agent.get("Config", {}).get("NodeName")
    if name == node:
        yield ok("consul agent's name", f"{name}, as [sanderling] node")
    else:
        fix = "give both the same name: a worker's consul session hangs on the health of the node of that name"
        yield fail("consul agent's name", f"{name}, but [sanderling] node is {node}", fix)


def look_at_rights(settings: Settings, *, clock: Clock) -> Iterable[Finding]:
    store = sanderling.coordination.connect(settings, clock=clock)
    try:
        yield from use(store, settings)
    finally:
        store.close()
    yield from _allowed(asking(settings, clock), settings.coordination.prefix)


def use(store: Coordination, settings: Settings) -> Iterable[Finding]:
    """A session, a lock and a key of one's own, all of which are gone afterwards."""
    key = f"doctor/{uuid.uuid4()}"
    session = store.open_session(f"doctor-{settings.sanderling.node}", check_ttl_s=settings.coordination.check_ttl_s)
    try:
        locked = store.acquire(key, b"", consul_session=session)
        released = locked and store.release(key, b"", consul_session=session)
        deleted = store.delete(key)
    finally:
        store.close_session(session)
    if locked and released and deleted:
        yield ok("consul rights", "a session can be opened, and a key locked, written and deleted")
    else:
        yield fail("consul rights", "a key of one's own cannot be locked and released", "look at Consul's log")


def _allowed(ask: Ask, prefix: str) -> Iterable[Finding]:
    """What Consul says itself of the token, where it says anything: without ACLs, and in some versions, it does not."""
    asked = [{"Resource": "key", "Access": "write", "Segment": f"{prefix}{noun}x"} for noun in WRITTEN]
    status, answer = ask("/v1/internal/acl/authorize", asked)
    if status != 200 or not isinstance(answer, list):
        return
    refused = [each.get("Segment") for each in answer if not each.get("Allow")]
    if refused:
        fix = f'give the token key_prefix "{prefix}" write'
        yield fail("consul rights", f"the token may not write {', '.join(map(str, refused))}", fix)
    else:
        yield ok("consul rights", f"the token may write everything under {prefix}")
