"""The fence of a leader's writes: the highest term that wrote, compared in the transaction that would write."""

from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sanderling.errors import StaleTerm
from sanderling.records.tables import TermRow


def hold(session: Session, service: str, term: int) -> None:
    """Return when nobody of a later term has written; what this transaction writes is then fenced until it ends.

    `StaleTerm` otherwise: a leader that was only asleep changes nothing any more.
    """
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(TermRow).values(service=service, term=term).on_conflict_do_nothing())
    raised = update(TermRow).where(TermRow.service == service, TermRow.term <= term).values(term=term)
    if session.execute(raised).rowcount == 1:  # type: ignore[attr-defined]
        return
    held = session.get_one(TermRow, service).term
    raise StaleTerm(f"the leader of term {held} has written since; this one is of term {term}", service=service, term=held)
