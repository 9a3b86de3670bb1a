"""A leader: the one candidate that may carry out a service's duties. Its term is the fencing token of what it does."""

from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

PREFIX: Final = "leaders/"
CLUSTER: Final = "cluster"  # the one service that has a leader


class Leader(BaseModel):
    """The value of `leaders/<service>`. Who locks the key leads; the value of a key that is free tells who led last.

    `term` grows with every leadership. What a leader asks of others carries it, and they refuse one that is older than they
    have seen. `left` says that the duties had ended before the key was let go, so nobody need wait.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    node: str
    term: int
    since: datetime
    left: bool = False

    @classmethod
    def from_value(cls, value: bytes) -> "Leader | None":
        """None when the value is not a leader's."""
        try:
            return cls.model_validate_json(value)
        except ValidationError:
            return None

    def to_value(self) -> bytes:
        return self.model_dump_json().encode()


def leader_key(service: str) -> str:
    return PREFIX + service
