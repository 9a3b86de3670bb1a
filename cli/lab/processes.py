"""One of Sanderling's own processes as the lab sees it: with an ini of its own, to be killed, paused, restarted, its log read."""

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cli.lab.parts.daemons import Daemon, spawn, waited
from sanderling.settings import Settings

STOP_WITHIN_S = 60.0


def write_ini(settings: Settings, file: Path) -> None:
    """Write settings as the file that a process reads them from."""
    lines = []
    for group in fields(settings):
        values = getattr(settings, group.name)
        lines += [f"[{group.name}]", *(f"{each.name} = {getattr(values, each.name)}" for each in fields(values))]
    file.write_text("\n".join(lines) + "\n")


@dataclass(slots=True)
class Process:
    """`program` is an entry point; the process is known by pid and start time, and what it printed is kept over restarts."""

    name: str
    program: str
    settings: Settings
    folder: Path
    netns: str
    daemon: Daemon | None = field(default=None, init=False)
    paused: bool = field(default=False, init=False)

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.daemon is not None and self.daemon.alive

    @property
    def pid(self) -> int:
        assert self.daemon is not None, f"{self.name} was never started"
        return self.daemon.pid

    def start(self, *, env: Mapping[str, str] | None = None) -> None:
        """Run it; whether it is ready shows elsewhere."""
        assert not self.alive, f"{self.name} runs already"
        ini = self.folder / f"{self.name}.ini"
        write_ini(self.settings, ini)
        program = Path(sys.executable).with_name(self.program)
        environment = {"SANDERLING_CONFIG": str(ini), "PYTHONUNBUFFERED": "1", **(env or {})}
        self.daemon = spawn(self.name, [str(program)], log=self.log_file, env=environment, netns=self.netns, cwd=self.folder)
        self.paused = False

    def kill(self) -> None:
        """SIGKILL to this process alone: what it started lives on."""
        if self.daemon is not None:
            self.daemon.kill()

    def terminate(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end and wait; an AssertionError with its log when it does not."""
        if self.daemon is not None:
            self.resume()
            self.daemon.signal(number)
            try:
                self.daemon.wait(within_s=STOP_WITHIN_S)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.tail()}") from error

    def pause(self) -> None:
        assert self.daemon is not None, f"{self.name} was never started"
        self.daemon.signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self.daemon is not None:
            self.daemon.signal(signal.SIGCONT)
        self.paused = False

    def restart(self, *, env: Mapping[str, str] | None = None) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start(env=env)

    def wait_until_dead(self, *, within_s: float = 150.0) -> None:
        """For a process that is to end by itself, such as one with an armed failpoint."""
        assert self.daemon is not None, f"{self.name} was never started"
        try:
            self.daemon.wait(within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from error

    def log(self, *, event: str | None = None) -> list[dict[str, Any]]:
        """Its log as it stands now, oldest first, over all its lives; of one event when that is named."""
        if not self.log_file.exists():
            return []
        lines = [
            line for line in self.log_file.read_text(errors="replace").split("\n") if line.startswith("{") and line.endswith("}")
        ]
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if event is None or entry.get("event") == event]

    def wait_for_log(self, event: str, *, after: int = 0, within_s: float = 90.0) -> dict[str, Any]:
        """The first entry with that event beyond the `after` first ones."""
        waited(lambda: len(self.log(event=event)) > after, within_s=within_s, what=f"{self.name} logs {event!r}; {self.log_file}")
        return self.log(event=event)[after]

    def tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:] if self.log_file.exists() else ""
