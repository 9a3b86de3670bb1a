"""Notification rules: which events of the history a receiver is told of."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict

TEST: Final = "notification.test"
GIVEN_UP: Final = "notification.given_up"
PATTERN: Final = re.compile(r"[a-z_*]+(\.[a-z_*]+)*")
KINDS_MAX: Final = 32

DEFAULT_KINDS: Final = ("alert.*", "disk.failed", "operation.failed", "gateway.*", "export.fenced")
SEVERE: Final = ("alert.*", "*.failed", "gateway.lost", "export.fenced", "export.lapsed", "export.refused")


class Rule(BaseModel):
    """What may be shown of a rule: `receiver` names it without what is secret in its URL.

    Every event up to `cursor` has been delivered, or is not its concern. `behind` are those that wait.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    kinds: tuple[str, ...]
    receiver: str
    created_by: str
    created_at: datetime
    cursor: int
    behind: int
    delivered: int
    delivered_at: datetime | None
    given_up: int
    failures: int
    failing_since: datetime | None
    next_attempt_at: datetime | None
    last_error: str | None


def is_silent(pattern: str) -> bool:
    """Whether it means what notification itself has done: told of that, a receiver that fails would cause more of it."""
    return pattern.startswith("notification.")


def is_meant(kinds: Sequence[str], rule: str, *, kind: str, resource_id: str | None) -> bool:
    """Whether a rule of that name is told of such an event. A test message is for the rule that it was made for alone."""
    if kind == TEST:
        return resource_id == rule
    return not is_silent(kind) and any(matches(pattern, kind) for pattern in kinds)


def matches(pattern: str, kind: str) -> bool:
    """`*` stands for any text, also for none and for dots."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), kind) is not None


def is_severe(kind: str) -> bool:
    """Whether a receiver that knows colours should show it in the worst."""
    return any(matches(pattern, kind) for pattern in SEVERE)
