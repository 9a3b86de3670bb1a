"""The memory that an export's process shares with the worker: its lease, its gate, and what it tells of itself.

The other side is tgt_guard.c, whose comments define the layout. Every access opens the file anew, so that a worker that
adopts a process finds it exactly as the one that started it did.
"""

import ctypes
import mmap
import os
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final

from sanderling.errors import SettingsRefused, TargetFailed

STATE_ENV: Final = "SANDERLING_GUARD_STATE"
FILE_ENV: Final = "SANDERLING_GUARD_FILE"
MAGIC: Final = b"SNDGUARD"
LAYOUT_VERSION: Final = 1
STATE_BYTES: Final = 4096


class Ended(IntEnum):
    """Why the guard ended its process; RUNNING also for one that something else killed."""

    RUNNING = 0
    LEASE_LAPSED = 1
    FENCED = 2


class _State(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_char * 8),
        ("version", ctypes.c_uint32),
        ("gate", ctypes.c_uint32),
        ("lease_until_ns", ctypes.c_int64),
        ("renewals", ctypes.c_uint32),
        ("in_flight", ctypes.c_uint32),
        ("held", ctypes.c_uint32),
        ("ended", ctypes.c_uint32),
        ("ended_at_ns", ctypes.c_int64),
        ("pid", ctypes.c_int32),
        ("connected", ctypes.c_uint32),
        ("start_time", ctypes.c_uint64),
        ("client", ctypes.c_char * 192),
    )


class GuardLibrary:
    """The compiled guard: preloaded into target processes, and called here for its ordered memory access."""

    def __init__(self, path: str) -> None:
        """`SettingsRefused` when it is not there or cannot be loaded: nothing may be served unguarded."""
        self.path = (Path(path) if path else Path(__file__).with_name("tgt_guard.so")).resolve()
        if any(mark in str(self.path) for mark in " :"):
            raise SettingsRefused(f"[iscsi_worker] guard: {self.path} has a space or colon, which LD_PRELOAD cannot carry")
        try:
            self._library = ctypes.CDLL(str(self.path))
        except OSError as error:
            source = Path(__file__).with_name("tgt_guard.c")
            raise SettingsRefused(
                f"[iscsi_worker] guard: {error}; compile it (`gcc -std=gnu11 -O2 -fPIC -shared -o {self.path} {source} -ldl "
                "-lpthread`, or `make guard` in a clone), or set [iscsi_worker] guard to where it is"
            ) from error
        self._library.sanderling_guard_renew.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        self._library.sanderling_guard_set_gate.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self._library.sanderling_guard_in_flight.argtypes = (ctypes.c_void_p,)
        self._library.sanderling_guard_in_flight.restype = ctypes.c_uint32

    def create(self, path: Path, *, lease_until_s: float) -> None:
        """Write the state that a process to be started will claim: gate closed, a lease until then (CLOCK_MONOTONIC)."""
        state = _State(magic=MAGIC, version=LAYOUT_VERSION, lease_until_ns=_ns(lease_until_s))
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(bytes(state).ljust(STATE_BYTES, b"\0"))

    def open(self, path: Path) -> "Guard":
        """`TargetFailed` when it is not there or of another version."""
        try:
            file = os.open(path, os.O_RDWR)  # many times a second: a Python file would take twice as many system calls
            try:
                shared = mmap.mmap(file, STATE_BYTES)
            finally:
                os.close(file)
        except (OSError, ValueError) as error:
            raise TargetFailed(f"the guard's state cannot be opened: {error}") from error
        return Guard(shared, self._library)


class Guard:
    """One process's shared state. Times are seconds of CLOCK_MONOTONIC."""

    def __init__(self, shared: mmap.mmap, library: ctypes.CDLL) -> None:
        self._shared, self._library = shared, library
        self._state = _State.from_buffer(shared)
        self._at = ctypes.addressof(self._state)
        if self._state.magic != MAGIC or self._state.version != LAYOUT_VERSION:
            version = self._state.version
            self.close()
            raise TargetFailed(f"the guard's state is of version {version}, not {LAYOUT_VERSION}", version=version)

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        del self._state  # it exports the map's buffer, which could not be closed otherwise
        self._shared.close()

    @property
    def pid(self) -> int:
        """The process that claimed this state; 0 when none has yet."""
        return int(self._state.pid)

    @property
    def start_time(self) -> int:
        """Of that process, in clock ticks since boot."""
        return int(self._state.start_time)

    @property
    def connected(self) -> bool:
        return bool(self._state.connected)

    @property
    def client(self) -> str:
        """The addresses of its RADOS client, as librados writes them; empty before it has connected."""
        return bytes(self._state.client).decode() if self.connected else ""

    @property
    def gate_open(self) -> bool:
        return bool(self._state.gate)

    @property
    def in_flight(self) -> int:
        """Operations the image has not answered yet. 0 after the gate was closed means that none will begin."""
        return int(self._library.sanderling_guard_in_flight(self._at))

    @property
    def held(self) -> int:
        """Operations that wait at the gate."""
        return int(self._state.held)

    @property
    def lease_until_s(self) -> float:
        return float(self._state.lease_until_ns / 1e9)

    @property
    def ended(self) -> tuple[Ended, float]:
        """Why the guard ended the process, and when."""
        return Ended(self._state.ended), self._state.ended_at_ns / 1e9

    def set_gate(self, *, is_open: bool) -> None:
        self._library.sanderling_guard_set_gate(self._at, int(is_open))

    def renew(self, *, until_s: float) -> bool:
        """Move the lease's deadline; False when the old one has passed."""
        return bool(self._library.sanderling_guard_renew(self._at, _ns(until_s)))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
