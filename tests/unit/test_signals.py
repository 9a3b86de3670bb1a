"""Waiting for a signal."""

import signal
from collections.abc import Iterator

import pytest

from sanderling.signals import Told


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_comes_while_the_event_is_locked_by_the_wait_for_it_is_heard() -> None:
    told = Told(signal.SIGUSR1)
    with told._cond:  # type: ignore[attr-defined]  # as within the first and the last steps of wait()
        signal.raise_signal(signal.SIGUSR1)
    assert told.wait(10.0)


def test_the_first_signal_counts() -> None:
    told = Told(signal.SIGUSR1, signal.SIGUSR2)
    assert told.number is None
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR1)
    assert told.wait(10.0)
    assert told.number == signal.SIGUSR2
