"""The outbox: each operation cast once by a process that lives, again after one that died, noted for many at once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from api.outbox import Outbox
from rpc.bus import Bus
from sanderling.clock import ManualClock, SystemClock
from sanderling.errors import Unavailable
from sanderling.model.operations import OperationKind
from sanderling.records import operations
from sanderling.records.database import Records
from sanderling.records.operations import Outgoing
from sanderling.settings import Api
from sanderling.settings import Records as RecordsSettings
from tests.unit.api_app import KeptBus

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Place:
    """Records, and outboxes of processes that come and go."""

    def __init__(self, folder: Path) -> None:
        self.records = Records(RecordsSettings(url=f"sqlite:///{folder}/records.sqlite"), clock=SystemClock())
        self.records.migrate()
        self.clock, self.bus = ManualClock(), KeptBus()

    def outbox(self) -> Outbox:
        return Outbox(
            Api(outbox_batch=3, outbox_interval_s=1.0), records=self.records, bus=cast("Bus", self.bus), clock=self.clock
        )

    def submit(self, count: int) -> list[str]:
        with self.records.begin() as session:
            return [
                operations.submit(
                    session,
                    kind=OperationKind.STOP_DISK,
                    resource_id=f"{len(self.bus.cast_ids)}-{number}",
                    resource_name="db",
                    params={},
                    steps=(),
                    requested_by="test",
                    now=NOW + timedelta(seconds=number),
                ).id
                for number in range(count)
            ]

    def waiting(self) -> set[str]:
        with self.records.read() as session:
            return {outgoing.id for outgoing in operations.outbox(session, limit=99)}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.records.close()


def test_what_was_cast_is_not_cast_again_while_it_is_not_noted(place: Place) -> None:
    outbox, first = place.outbox(), place.submit(2)
    assert outbox.drain() == 2
    assert place.waiting() == set(first)
    second = place.submit(2)
    assert outbox.drain() == 2
    assert sorted(place.bus.cast_ids) == sorted(first + second)
    assert place.waiting() == set(), "as many as a batch have been cast"


def test_what_is_told_is_cast_once_and_more_than_fits_is_found_in_the_records(place: Place) -> None:
    outbox = place.outbox()
    assert outbox.drain() == 0
    few = place.submit(2)
    for each in few:
        outbox.wake(Outgoing(each, None))
    assert (outbox.drain(), place.bus.cast_ids) == (2, few)
    many = place.submit(5)
    for each in many:
        outbox.wake(Outgoing(each, None))
    assert [outbox.drain() for _ in range(3)] == [3, 2, 0]
    assert place.bus.cast_ids == few + many


def test_what_nobody_told_of_is_found_beside_what_was_told(place: Place) -> None:
    """Of a process that died, or of a request whose cast failed: once in `outbox_interval_s`, however much is told."""
    outbox = place.outbox()
    assert outbox.drain() == 0
    forgotten, told, later = place.submit(3)
    outbox.wake(Outgoing(told, None))
    assert (outbox.drain(), place.bus.cast_ids) == (1, [told])
    place.clock.advance(1.0)
    outbox.wake(Outgoing(later, None))
    assert (outbox.drain(), place.bus.cast_ids) == (2, [told, forgotten, later])


def test_a_backlog_goes_on_while_more_is_told(place: Place) -> None:
    outbox, backlog = place.outbox(), place.submit(7)
    assert outbox.drain() == 3
    outbox.wake(Outgoing(backlog[6], None))
    assert [outbox.drain() for _ in range(2)] == [3, 1]
    outbox.wake(Outgoing(backlog[6], None))
    assert (outbox.drain(), place.bus.cast_ids) == (0, backlog)


def test_what_was_cast_is_noted_once_the_interval_is_over(place: Place) -> None:
    outbox, asked = place.outbox(), place.submit(1)
    assert outbox.drain() == 1
    place.clock.advance(0.9)
    assert (outbox.drain(), place.waiting()) == (0, set(asked))
    place.clock.advance(0.1)
    assert (outbox.drain(), place.waiting()) == (0, set())


def test_what_a_process_cast_and_did_not_note_is_cast_by_the_next(place: Place) -> None:
    asked = place.submit(1)
    assert [place.outbox().drain() for _ in range(2)] == [1, 1]
    assert place.bus.cast_ids == asked * 2


def test_what_was_cast_before_the_broker_died_is_not_cast_again(place: Place) -> None:
    outbox, first = place.outbox(), place.submit(1)
    outbox.drain()
    place.bus.fault = Unavailable("away", dependency="bus")
    second = place.submit(1)
    with pytest.raises(Unavailable):
        outbox.drain()
    place.bus.fault = None
    assert outbox.drain() == 1
    assert place.bus.cast_ids == first + second


def test_what_was_cast_is_noted_also_while_nothing_more_can_be(place: Place) -> None:
    outbox, first = place.outbox(), place.submit(1)
    outbox.drain()
    place.bus.fault = Unavailable("away", dependency="bus")
    second = place.submit(1)
    assert place.waiting() == {*first, *second}
    place.clock.advance(1.0)
    with pytest.raises(Unavailable):
        outbox.drain()
    assert place.waiting() == set(second)
