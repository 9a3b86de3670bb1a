"""What a check is, and how all of them are made at once, each within a bound, whatever becomes of it."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sanderling.clock import Clock
from sanderling.errors import Problem, Unavailable


class Role(StrEnum):
    API = "api"
    CONDUCTOR = "conductor"
    WORKER = "worker"
    LEADER = "leader"


ALL: Final = frozenset(Role)
DRIVING: Final = frozenset({Role.API, Role.CONDUCTOR, Role.LEADER})


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, what was seen, and what to do about it; nothing to do when it is ok."""

    what: str
    state: State
    seen: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert (self.state is State.OK) == (not self.fix), f"{self.what}: only what is not ok is to be mended, and that always"


Look = Callable[[], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """`look` yields each finding as soon as it is made. When it raises a `Problem`, `fix` says what to do."""

    name: str
    look: Look
    fix: str
    roles: frozenset[Role] = field(default=ALL)


def ok(what: str, seen: str) -> Finding:
    return Finding(what, State.OK, seen)


def warn(what: str, seen: str, fix: str) -> Finding:
    return Finding(what, State.WARN, seen, fix)


def fail(what: str, seen: str, fix: str) -> Finding:
    return Finding(what, State.FAIL, seen, fix)


class _Looking:
    """One check at work in a thread of its own."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._look, name=f"check {check.name}", daemon=True)
        self._thread.start()

    def findings(self, timeout_s: float) -> tuple[Sequence[Finding], bool]:
        """What it has found within this time, and whether it has ended."""
        self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        return list(self._found), ended

    def _look(self) -> None:
        try:
            for finding in self._check.look():
                self._found.append(finding)
        except Problem as problem:
            self._found.append(fail(self._check.name, problem.detail, self._fix(problem)))
        except Exception as error:  # noqa: BLE001  whatever it is, it is told; its text may hold a password, and is not
            said = f"this could not be looked at: {type(error).__name__}"
            self._found.append(fail(self._check.name, said, f"{self._check.fix}; if that is well, report this"))

    def _fix(self, problem: Problem) -> str:
        """What is asked through a part that is away is not what is to be mended."""
        needed = str(problem.context.get("dependency", ""))
        is_anothers = isinstance(problem, Unavailable) and needed and not self._check.name.startswith(needed)
        return f"bring {needed} back first; see what is said of it here" if is_anothers else self._check.fix


def examine(checks: Sequence[Check], *, timeout_s: float, clock: Clock) -> tuple[Sequence[Finding], bool]:
    """All findings, in the order of the checks, and whether every check ended: one that did not has failed, is left behind."""
    deadline = clock.monotonic() + timeout_s
    findings: list[Finding] = []
    all_ended = True
    for check, looking in [(check, _Looking(check)) for check in checks]:
        found, ended = looking.findings(max(0.0, deadline - clock.monotonic()))
        findings += found
        if not ended:
            all_ended = False
            findings.append(fail(check.name, f"no answer within {timeout_s:g} s", check.fix))
    return findings, all_ended
