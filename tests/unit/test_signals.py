"""Waiting for a signal."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab.parts.daemons import waited
from sanderling.signals import Told


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    signal.set_wakeup_fd(-1)
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


def test_a_signal_is_heard_while_the_main_thread_runs_no_python() -> None:
    told = Told(signal.SIGUSR1)
    asleep, wake = os.pipe()
    main = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    heard = []

    def signalled() -> None:
        waited(lambda: main.read_text().split()[1:2] == [hex(asleep)], within_s=10.0, what="the main thread sleeps in its read")
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # interrupts this thread, and so not that read
        heard.append(told.wait(2.0))
        os.close(wake)

    other = threading.Thread(target=signalled)
    other.start()
    os.read(asleep, 1)
    other.join()
    os.close(asleep)
    assert heard == [True]


def test_a_signal_that_is_a_call_ends_no_wait() -> None:
    called = threading.Event()
    told = Told(signal.SIGUSR1, calls={signal.SIGUSR2: called.set})
    signal.raise_signal(signal.SIGUSR2)
    assert called.wait(10.0)
    assert not told.is_set()
    signal.raise_signal(signal.SIGUSR1)
    assert told.wait(10.0)


def test_a_call_that_fails_makes_nobody_deaf() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    told = Told(signal.SIGUSR1, calls={signal.SIGUSR2: broken})
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR1)
    assert told.wait(10.0)
