"""What the fence of a leader's writes promises."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.errors import StaleTerm
from sanderling.records import events, terms
from sanderling.records.database import Records


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=SystemClock())
    opened.migrate()
    yield opened
    opened.close()


def write(records: Records, term: int, *, service: str = "cluster") -> None:
    with records.begin() as session:
        events.append(session, f"written.{term}", at=records.now(), actor="test")
        terms.hold(session, service, term)


def written(records: Records) -> list[str]:
    with records.read() as session:
        return [event.kind for event in events.page(session, after=0, limit=100)]


@pytest.mark.rows("W-LE-6", "LE-22")
def test_a_leader_of_an_earlier_term_writes_nothing_any_more(records: Records) -> None:
    write(records, 7)
    write(records, 7)
    write(records, 9)
    with pytest.raises(StaleTerm) as refusal:
        write(records, 8)
    assert refusal.value.context["term"] == 9
    assert written(records) == ["written.7", "written.7", "written.9"]


def test_a_term_that_was_held_in_a_transaction_that_failed_was_not_held(records: Records) -> None:
    with contextlib.suppress(RuntimeError), records.begin() as session:
        terms.hold(session, "cluster", 9)
        raise RuntimeError
    write(records, 8)


def test_services_have_terms_of_their_own(records: Records) -> None:
    write(records, 9)
    write(records, 1, service="another")
