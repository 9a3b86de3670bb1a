"""The first token: made in the records themselves, by whoever may write them."""

import contextlib

from sanderling.errors import NotFound
from sanderling.records import tokens
from sanderling.records.database import Records


def grant(records: Records, name: str, *, replace: bool = False) -> str:
    """A new admin token's secret. `Conflict` when there is one of that name, unless it may be replaced."""
    with records.begin() as session:
        if replace:
            with contextlib.suppress(NotFound):
                tokens.remove(session, name, now=records.now(), actor=name)
        _, secret = tokens.create(session, name=name, role=tokens.Role.ADMIN, now=records.now(), actor=name)
    return secret
