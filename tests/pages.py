"""The command blocks of the project's pages, and the test that answers for each.

A comment `<!-- typed by tests/…/test_x.py::test_y -->` in a page names the test of every shell block below it, up to the next
such comment. A reader does not see it; test_house.py sees that there is one, and test_docs.py types what names it.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Piece:
    """A block or a line of prose. `kind` is what a block is fenced with: sh for commands, nothing for what they print."""

    kind: str | None
    text: str
    test: str | None

    @property
    def is_commands(self) -> bool:
        return self.kind in {"sh", "bash", "shell", "console"}

    @property
    def is_output(self) -> bool:
        return self.kind == ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, comments left out, for a block of simple commands."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def pieces(page: str) -> Iterator[Piece]:
    """A page's blocks and lines of prose, in order."""
    test = kind = None
    block: list[str] = []
    for line in page.splitlines():
        if kind is not None:
            if line == "```":
                yield Piece(kind, "".join(block), test)
                kind, block = None, []
            else:
                block.append(f"{line}\n")
        elif line.startswith("```"):
            kind = line.removeprefix("```")
        elif typed := re.fullmatch(r"<!-- typed by (\S+) -->", line):
            test = typed[1]
        else:
            yield Piece(None, line, test)


def blocks(page: str, test: str) -> list[Piece]:
    """The page's shell blocks that name this test, by its function's name; an AssertionError when none does."""
    found = [each for each in pieces((ROOT / page).read_text()) if each.is_commands and (each.test or "").endswith(f"::{test}")]
    assert found, f"no block of {page} names {test}"
    return found
