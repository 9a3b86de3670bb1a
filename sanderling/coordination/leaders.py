"""Who leads: "nobody" is an answer, "cannot know" is `Unavailable`."""

from sanderling.coordination.base import Coordination, Entry
from sanderling.errors import Unavailable
from sanderling.model.leaders import PREFIX, Leader, leader_key


def leader_of(coordination: Coordination, service: str) -> Leader | None:
    """Who leads this service, or None when nobody does."""
    entry = coordination.get(leader_key(service))
    return None if entry is None else _who_locks(entry)


def leaders(coordination: Coordination) -> dict[str, Leader | None]:
    """Every service that ever had a leader, with the one it has now."""
    return {entry.key.removeprefix(PREFIX): _who_locks(entry) for entry in coordination.list(PREFIX).entries}


def _who_locks(entry: Entry) -> Leader | None:
    if entry.consul_session is None:
        return None
    leader = Leader.from_value(entry.value)
    if leader is None:
        raise Unavailable(f"{entry.key} is locked but does not say by whom", dependency="coordination", key=entry.key)
    return leader
