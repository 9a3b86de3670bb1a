"""The life cycles in docs/how-it-works.md, drawn from the tables in sanderling/model.

`python -m tests.diagrams` prints the page as it should be, and `make sample` writes it.
"""

import re
import sys
from pathlib import Path

from sanderling.model.disks import DISKS
from sanderling.model.moves import MOVES
from sanderling.model.operations import OPERATIONS, STEPS

PAGE = Path(__file__).parents[1] / "docs/how-it-works.md"
DRAWN = {machine.noun: machine.diagram() for machine in (OPERATIONS, STEPS, MOVES, DISKS)}
_PLACE = re.compile(r"<!-- diagram: (?P<noun>\w+) -->\n.*?<!-- end of diagram -->", re.DOTALL)


def fresh(text: str) -> str:
    """The text with each diagram as its table is now; KeyError for a noun that has no table."""
    return _PLACE.sub(lambda place: _drawn(place["noun"]), text)


def places(text: str) -> list[str]:
    """The nouns that the text has a place for."""
    return [place["noun"] for place in _PLACE.finditer(text)]


def _drawn(noun: str) -> str:
    return f"<!-- diagram: {noun} -->\n```mermaid\n{DRAWN[noun]}\n```\n<!-- end of diagram -->"


if __name__ == "__main__":
    sys.stdout.write(fresh(PAGE.read_text()))
