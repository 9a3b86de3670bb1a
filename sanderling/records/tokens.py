"""Bearer tokens. A token is shown once, when it is made; only its digest is kept."""

import hashlib
import secrets
import uuid
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, bindparam, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sanderling.errors import Conflict, NotFound
from sanderling.records import events
from sanderling.records.statements import run
from sanderling.records.tables import TokenRow

USE_NOTED_EVERY: Final = timedelta(minutes=1)  # a write for each request would cost more than knowing to the second is worth

_OF_DIGEST: Final = select(*TokenRow.__table__.columns).where(TokenRow.digest == bindparam("digest"))


class Role(StrEnum):
    """Each may do what the one before it may."""

    READER = "reader"
    OPERATOR = "operator"
    ADMIN = "admin"


class Token(BaseModel):
    """What may be shown of a token."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    note: str


def create(
    session: Session, *, name: str, role: Role, now: datetime, actor: str, expires_at: datetime | None = None, note: str = ""
) -> tuple[Token, str]:
    """A new token and its secret, which nobody can read again; `Conflict` when the name is taken."""
    secret = f"sdl_{secrets.token_urlsafe(32)}"
    row = TokenRow(
        id=str(uuid.uuid4()),
        name=name,
        digest=_digest(secret),
        role=role.value,
        created_at=now,
        expires_at=expires_at,
        note=note,
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"there is a token {name} already; choose another name or delete it", field="name") from error
    events.append(session, "token.created", at=now, actor=actor, resource_id=row.id, data={"name": name, "role": role.value})
    return _describe(row), secret


def authenticate(session: Session, secret: str, *, now: datetime) -> Token | None:
    """The token that the secret belongs to, if it has not expired."""
    row = run(session, _OF_DIGEST, {"digest": _digest(secret)}).one_or_none()
    if row is None or (row.expires_at is not None and row.expires_at <= now):
        return None
    return _describe(row)


def use_is_due(token: Token, *, now: datetime) -> bool:
    """Whether the last use on record is old enough for `note_use`."""
    return token.last_used_at is None or now - token.last_used_at >= USE_NOTED_EVERY


def note_use(session: Session, token_id: str, *, now: datetime) -> None:
    row = session.get(TokenRow, token_id)
    if row is not None:
        row.last_used_at = now


def page(session: Session, *, marker: str | None = None, limit: int) -> list[Token]:
    """By name, after the name `marker`."""
    query = select(TokenRow).order_by(TokenRow.name).limit(limit)
    if marker is not None:
        query = query.where(TokenRow.name > marker)
    return [_describe(row) for row in session.scalars(query)]


def remove(session: Session, name: str, *, now: datetime, actor: str) -> Token:
    """The token, by name or id, is refused from now on. A name may look like an id, and then the name counts."""
    either = (TokenRow.name == name) | (TokenRow.id == name)
    row = session.scalars(select(TokenRow).where(either).order_by((TokenRow.name == name).desc())).first()
    if row is None:
        raise NotFound(f"there is no token {name}", token=name)
    session.delete(row)
    session.flush()
    events.append(session, "token.deleted", at=now, actor=actor, resource_id=row.id, data={"name": row.name})
    return _describe(row)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _describe(row: TokenRow | Row[*tuple[Any, ...]]) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        note=row.note,
    )
