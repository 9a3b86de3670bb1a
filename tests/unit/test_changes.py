"""Journals: what a reader is told of, and when it cannot tell what it missed."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.coordination.changes import KEPT, Changes, Journal
from sanderling.errors import Unavailable


class Written:
    """A key that takes what is written, or refuses, or fails."""

    def __init__(self) -> None:
        self.values: list[Changes] = []
        self.refuses = self.is_away = False

    def put(self, _: str, value: bytes) -> bool:
        if self.is_away:
            raise Unavailable("away", dependency="consul")
        if not self.refuses:
            self.values.append(Changes.model_validate_json(value))
        return not self.refuses


@given(st.lists(st.lists(st.integers(0, 9).map(str), max_size=2 * KEPT), max_size=8), st.integers(0, 8))
def test_a_reader_is_told_every_key_that_was_noted_since_it_looked_or_that_it_missed_some(
    noted: list[list[str]], at: int
) -> None:
    journal, written = Journal("kind", "name"), Written()
    for keys in noted:
        journal.note(keys)
        journal.write(written.put, again=True)
    at = min(at, len(written.values))
    known = written.values[at - 1] if at else None
    last = written.values[-1] if written.values else Changes(since="")
    since = [key for keys in noted[at:] for key in dict.fromkeys(keys)]
    assert last.after(known) == (tuple(since) if len(since) <= KEPT else None)


def test_a_reader_of_another_beginning_has_missed_some() -> None:
    first, second = (Changes(since=since, count=1, keys=("a",)) for since in "12")
    assert second.after(first) is None
    assert first.after(second.model_copy(update={"since": "1", "count": 2})) is None, "a count does not go back"


def test_what_could_not_be_told_is_told_later() -> None:
    journal, written = Journal("kind", "name"), Written()
    written.is_away = True
    journal.note(["a"])
    with pytest.raises(Unavailable):
        journal.write(written.put)
    written.is_away, written.refuses = False, True
    journal.note(["b"])
    assert not journal.write(written.put)
    assert not journal.is_written
    written.refuses = False
    assert journal.write(written.put)
    assert [changes.keys for changes in written.values] == [("a", "b")]
    assert journal.is_written


def test_nothing_is_written_twice_but_when_that_is_asked_for() -> None:
    journal, written = Journal("kind", "name"), Written()
    journal.note(["a"])
    for _ in range(2):
        assert journal.write(written.put)
    assert len(written.values) == 1
    assert journal.write(written.put, again=True)
    assert len(written.values) == 2


def test_who_notes_a_change_does_not_wait_for_a_store_that_hangs() -> None:
    journal, written, hangs, go = Journal("kind", "name"), Written(), threading.Event(), threading.Event()

    def slowly(key: str, value: bytes) -> bool:
        hangs.set()
        return go.wait(10) and written.put(key, value)

    journal.note(["a"])
    writing = threading.Thread(target=journal.write, args=(slowly,), daemon=True)
    writing.start()
    assert hangs.wait(10)
    noting = threading.Thread(target=journal.note, args=(["b"],), daemon=True)
    noting.start()
    noting.join(10)
    assert not noting.is_alive()
    go.set()
    writing.join(10)
    assert not journal.is_written, "what was noted meanwhile is still to be told"
    assert journal.write(written.put)
    assert [changes.keys for changes in written.values] == [("a",), ("a", "b")]
