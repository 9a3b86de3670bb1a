"""Which operation a caller's Idempotency-Key stands for: a repeat of the same request gets the same operation."""

from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sanderling.errors import Busy, IdempotencyMismatch
from sanderling.records.tables import IdempotencyRow


def find(session: Session, *, actor: str, key: str, digest: str) -> str | None:
    """The operation's id, or None when the caller has not used the key; `IdempotencyMismatch` for another request's key."""
    row = session.get(IdempotencyRow, (actor, key))
    if row is None:
        return None
    if row.digest != digest:
        raise IdempotencyMismatch(
            "this Idempotency-Key was sent before with another request; use a new key for a new request",
            operation_id=row.operation_id,
        )
    return row.operation_id


def remember(session: Session, *, actor: str, key: str, digest: str, operation_id: str, now: datetime) -> None:
    """Bind the key to an operation of this transaction; `Busy` when another request is binding it right now."""
    session.add(IdempotencyRow(actor=actor, key=key, digest=digest, operation_id=operation_id, created_at=now))
    try:
        session.flush()
    except IntegrityError as error:
        raise Busy("another request with this Idempotency-Key is being accepted; repeat it") from error
