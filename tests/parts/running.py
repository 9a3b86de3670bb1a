"""The real parts that `make real` left running, as tests find them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cli.lab.parts.daemons import start_time

STATE = "parts.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """A part that somebody else started: where it is, not how to stop it."""

    version: str
    url: str = ""
    amqp_url: str = ""
    conf: str = ""
    pool: str = ""
    node_name: str = ""


def folder() -> Path | None:
    """Where `make real` keeps its parts; $SANDERLING_REAL, or .real beside the Makefile. The full suite starts its own."""
    if os.environ.get("SANDERLING_FULL_SUITE") == "1":
        return None
    named = os.environ.get("SANDERLING_REAL")
    home = Path(named) if named else Path(__file__).parents[2] / ".real"
    return home if named or (home / STATE).exists() else None


def kept(name: str) -> Kept | None:
    """The part of that name, None when nothing is kept; an AssertionError when what the folder speaks of is gone."""
    home = folder()
    if home is None:
        return None
    state = json.loads((home / STATE).read_text())
    assert start_time(state["pid"]) == state["started"], f"the real parts of {home} are gone: `make real-down`, then try again"
    return Kept(**state["parts"][name])
