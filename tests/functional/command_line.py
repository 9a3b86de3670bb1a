"""The command line as its own process, and the records looked at behind everybody's back."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.lab.cluster import Cluster
from sanderling.clock import SystemClock
from sanderling.records.database import Records

CLOCK = SystemClock()


class CommandLine:
    """`sanderling …` as an operator types it; what it printed, as JSON."""

    def __init__(self, client_file: Path, *, netns: str = "", **env: str) -> None:
        self.client_file = client_file
        self._env = {**os.environ, "SANDERLING_CLIENT": str(client_file), **env}
        self._inside = ["ip", "netns", "exec", netns] if netns else []

    def __call__(self, *words: str, typed: str = "") -> Any:
        done = self.run(*words, "--json", typed=typed)
        assert done.returncode == 0, done.stderr or done.stdout
        return json.loads(done.stdout)

    def run(self, *words: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        program = str(Path(sys.executable).with_name("sanderling"))
        return subprocess.run(
            [*self._inside, program, *words], env=self._env, input=typed, capture_output=True, text=True, timeout=120, check=False
        )

    def refused(self, *words: str, typed: str = "") -> str:
        """Why it was refused: one line, and no traceback."""
        done = self.run(*words, typed=typed)
        assert done.returncode in {1, 3, 5}, (done.returncode, done.stdout, done.stderr)
        said = done.stderr.strip().splitlines()[-1]
        assert said.startswith("sanderling: "), done.stderr
        assert "Traceback" not in done.stderr
        return said


@contextlib.contextmanager
def records(cluster: Cluster) -> Iterator[Any]:
    """A write transaction in the records, behind everybody's back."""
    opened = Records(cluster.settings().records, clock=CLOCK)
    try:
        with opened.begin() as session:
            yield session
    finally:
        opened.close()
