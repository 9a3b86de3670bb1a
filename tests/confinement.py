"""Runs a program with what a systemd unit leaves it, where no systemd runs: capabilities, files, system calls.

Only what the units of etc/systemd use is understood; users are not changed.
"""

import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # with EPERM
_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06
_NUMBER, _THIRD_ARGUMENT = 0, 32  # where struct seccomp_data has them
_WRITE, _EXEC = 2, 4


def service(unit: Path) -> dict[str, list[str]]:
    """The [Service] of a unit: each key with its values in order."""
    said: dict[str, list[str]] = {}
    for line in unit.read_text().partition("[Service]")[2].partition("\n[")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            said.setdefault(key, []).append(value)
    return said


def argv(unit: Path, program: list[str], *, writes: list[Path]) -> list[str]:
    """The words that start `program` confined by `unit`; under ProtectSystem=strict it may write in `writes` alone."""
    rights = " ".join(service(unit)["CapabilityBoundingSet"]).lower().replace("cap_", "+").split()
    bounds = ",".join(["-all", *rights])
    folders = [str(folder) for folder in writes]
    strict = service(unit)["ProtectSystem"] == ["strict"]
    mounts = " && ".join([*(f'mount --bind "${n}" "${n}"' for n in range(1, len(folders) + 1)), "mount -o remount,ro,bind /"])
    script = f'{mounts if strict else "true"} && shift {len(folders)} && exec "$@"'
    confined = ["setpriv", f"--bounding-set={bounds}", sys.executable, "-m", "tests.confinement", str(unit), *program]
    return ["unshare", "--mount", "sh", "-c", script, "sh", *folders, *confined]


def main() -> None:
    """Refuse what the unit refuses, and become the program: `python -m tests.confinement UNIT PROGRAM…`."""
    unit, *program = sys.argv[1:]
    said = service(Path(unit))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    rules = _filter(_allowed(said["SystemCallFilter"]), write_or_execute=said.get("MemoryDenyWriteExecute") == ["yes"])
    code = ctypes.create_string_buffer(b"".join(rules))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.execv(program[0], program)


def _allowed(filters: list[str]) -> set[int]:
    """The numbers of the system calls that are left, by systemd's own sets and the numbers of this machine's headers."""
    names: set[str] = set()
    for each in filters:
        of = _set(each.removeprefix("~"))
        names = names - of if each.startswith("~") else names | of
    defined = subprocess.run(
        ["gcc", "-dM", "-E", "-include", "sys/syscall.h", "-x", "c", "/dev/null"], capture_output=True, text=True, check=True
    ).stdout
    numbers = {}
    for line in defined.splitlines():
        _, name, number = f"{line} ".split(" ", 2)
        if name.startswith("__NR_") and number.strip().isdigit():
            numbers[name.removeprefix("__NR_")] = int(number)
    return {numbers[name] for name in names if name in numbers}


def _set(name: str) -> set[str]:
    done = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True)
    found: set[str] = set()
    for line in map(str.strip, done.stdout.splitlines()[1:]):
        if line.startswith("@"):
            found |= _set(line)
        elif line and not line.startswith("#"):
            found.add(line)
    return found


def _filter(allowed: set[int], *, write_or_execute: bool) -> list[bytes]:
    """The filter's instructions: these calls, and, where memory is one or the other, no mapping that is both."""

    def rule(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    mmap, mprotect = 9, 10  # of x86-64
    rules = [rule(_LOAD, _NUMBER)]
    if write_or_execute:
        assert os.uname().machine == "x86_64"
        rules += [
            rule(_EQUAL, mmap, 0, 5),
            rule(_LOAD, _THIRD_ARGUMENT),
            rule(_AND, _WRITE | _EXEC),
            rule(_EQUAL, _WRITE | _EXEC, 0, 1),
            rule(_RETURN, _REFUSE),
            rule(_RETURN, _ALLOW),
            rule(_EQUAL, mprotect, 0, 4),
            rule(_LOAD, _THIRD_ARGUMENT),
            rule(_ANY_BIT, _EXEC, 0, 1),
            rule(_RETURN, _REFUSE),
            rule(_RETURN, _ALLOW),
        ]
    for number in sorted(allowed):
        rules += [rule(_EQUAL, number, 0, 1), rule(_RETURN, _ALLOW)]
    return [*rules, rule(_RETURN, _REFUSE)]


if __name__ == "__main__":
    main()
