"""docs/operations.md as steps: what it tells an operator to type, write and copy, and on which host.

Invisible comments before a block say where: `on: san1 san2`, `on: all`, `file: PATH on all`,
`copy: PATH from san1 to all as PATH` (HOST in a path is the receiver's name), `reboot: san2`. `; when: …` after `on:` names what
has happened to a host by then.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.hosts.machines import NAMES

PAGE: Final = Path(__file__).parents[2] / "docs/operations.md"
_MARK: Final = re.compile(r"<!-- (on|file|copy|reboot): (.*?)(?:; (.*?))? -->")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do on some hosts; on none when it is a sample, which is only to be read."""

    kind: str
    section: str
    hosts: tuple[str, ...]
    text: str = ""
    source: str = ""
    path: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.section}: {self.kind} {' '.join(self.hosts)} {self.path or self.text.partition(chr(10))[0]}"


def steps() -> list[Step]:
    """In the page's order. An AssertionError for a shell block that no comment places."""
    found: list[Step] = []
    section, mark, language = "", "", ""
    block: list[str] | None = None
    for line in PAGE.read_text().splitlines():
        if block is not None:
            if line == "```":
                found += _placed(section, mark, language, "\n".join(block) + "\n")
                block, mark = None, ""
            else:
                block.append(line)
        elif line.startswith("```"):
            block, language = [], line[3:]
        elif line.startswith("#"):
            section, mark = line.lstrip("# "), ""
        elif line.startswith(("<!-- copy:", "<!-- reboot:")):
            found.append(_alone(section, line))
            mark = line if "reboot:" in line else ""
        elif line.startswith("<!--"):
            mark = line
    return found


def _placed(section: str, mark: str, language: str, text: str) -> list[Step]:
    match = _MARK.fullmatch(mark)
    if match is None:
        assert language != "sh", f"{section}: nothing says on which host this is typed:\n{text}"
        return [Step("unwritten", section, (), text, note="a sample")]
    kind, words, note = match.groups(default="")
    if kind == "reboot":
        return []
    if kind == "file":
        path, _, hosts = words.partition(" on ")
        return [Step("file", section, _names(hosts), text, path=path)]
    return [Step("type", section, _names(words), text, note=note)]


def _alone(section: str, line: str) -> Step:
    match = _MARK.fullmatch(line)
    assert match, line
    if match[1] == "reboot":
        return Step("reboot", section, _names(match[2]))
    words = re.fullmatch(r"(\S+) from (\S+) to (.*?)(?: as (\S+))?", match[2])
    assert words, line
    return Step("copy", section, _names(words[3]), source=words[2], text=words[1], path=words[4] or words[1])


def _names(words: str) -> tuple[str, ...]:
    chosen = NAMES if words == "all" else tuple(words.split())
    assert chosen, "a step for no host"
    assert set(chosen) <= set(NAMES), words
    return chosen
