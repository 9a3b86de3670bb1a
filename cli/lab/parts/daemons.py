"""Processes that the lab starts: known by pid and start time, killed by pid, logged to a file, and never left behind."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sanderling.clock import SystemClock

CLOCK = SystemClock()


def waited(until: Callable[[], bool], *, within_s: float, what: str, every_s: float = 0.02) -> None:
    """Poll until it is true; an AssertionError naming `what` when it is not within the bound."""
    never, deadline = threading.Event(), CLOCK.monotonic() + within_s
    while not until():
        assert CLOCK.monotonic() < deadline, f"not within {within_s} s: {what}"
        CLOCK.wait(never, every_s)


def start_time(pid: int) -> str | None:
    """The process's start time in clock ticks (field 22 of /proc/PID/stat), None when it is gone or a zombie without threads.

    A killed process is a zombie while its other threads finish what they are doing in the kernel, its locks on files held.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} and int(fields[17]) <= 1 else fields[19]


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that we started."""

    name: str
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    def signal(self, number: int) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self, *, within_s: float = 10.0) -> None:
        """SIGKILL and wait until it is gone, reaping it when it is our child."""
        self.signal(signal.SIGKILL)
        self.wait(within_s=within_s)

    def terminate(self, *, within_s: float = 20.0) -> None:
        """SIGTERM and wait; SIGKILL when that is not enough."""
        self.signal(signal.SIGTERM)
        try:
            self.wait(within_s=within_s)
        except AssertionError:
            self.kill()

    def wait(self, *, within_s: float) -> None:
        def gone() -> bool:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            return not self.alive

        waited(gone, within_s=within_s, what=f"{self.name} (pid {self.pid}) ends")


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    netns: str | None = None,
    cwd: Path | None = None,
) -> Daemon:
    """Start a process in a session of its own, in a network namespace if one is named; output goes to `log`."""
    inside = ["ip", "netns", "exec", netns] if netns else []
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*inside, *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    started = start_time(process.pid)
    assert started is not None, f"{name} ended at once: {log.read_text(errors='replace')[-2000:]}"
    return Daemon(name, process.pid, started)


def run(argv: Sequence[str], *, netns: str | None = None, env: Mapping[str, str] | None = None, within_s: float = 60.0) -> str:
    """Run a command to its end and return its output; an AssertionError with all it said when it fails."""
    inside = ["ip", "netns", "exec", netns] if netns else []
    done = subprocess.run(
        [*inside, *argv], capture_output=True, text=True, timeout=within_s, env={**os.environ, **(env or {})}, check=False
    )
    assert done.returncode == 0, f"{' '.join(argv)} → {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def family(pid: int) -> list[Daemon]:
    """The processes below one, at any depth."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            parents[int(stat.parent.name)] = (int(rest.split()[1]), name.partition("(")[2])
    found: list[Daemon] = []
    for child, (parent, name) in parents.items():
        started = start_time(child)
        if parent == pid and started is not None:
            found += [Daemon(name, child, started), *family(child)]
    return found
