"""Sealing secrets before they are kept: encrypted and authenticated (Fernet: AES-128-CBC and HMAC-SHA256) with a key from a file.

Other uses have keys of their own, derived from those of the file, so that nothing made for one use is good for another.

The file is read when a secret is first sealed or opened, and again when it has changed, so keys are rotated without a restart.
"""

import base64
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sanderling import settings
from sanderling.errors import InvalidInput, SecretUnreadable, SettingsRefused

_TOO_OPEN = 0o077
_NO_TEXT = "is not text in UTF-8"
_WITHOUT = "take out what is no key, a comment perhaps"


def add(file: Path) -> int:
    """Put a new key last in the file, its owner's alone, which is made if it is not there; how many it held before.

    The last key of several opens and does not seal or sign yet, so the file can be copied to one node after another.
    `InvalidInput` when it cannot be written.
    """
    lines = _lines(file) if file.exists() else []
    _replace(file, [*lines, Fernet.generate_key().decode()])
    return len(lines)


def promote(file: Path) -> int:
    """Move the last key to the front, so that it seals and signs; how many keys there are. `InvalidInput` when it is alone."""
    lines = _lines(file)
    if len(lines) < 2:
        raise InvalidInput.of(
            "FILE", f"{file} holds no second key", "add one with `sanderling key new`, and copy it to every node"
        )
    _replace(file, [lines[-1], *lines[:-1]])
    return len(lines)


def _lines(file: Path) -> list[str]:
    """The keys as they are written; `InvalidInput` when the file cannot be read."""
    try:
        return _written(file)
    except OSError as error:
        raise InvalidInput.of("FILE", f"{file} cannot be read: {error.strerror}", "name one that can") from error
    except UnicodeDecodeError:
        raise InvalidInput.of("FILE", f"{file} {_NO_TEXT}", _WITHOUT) from None


def _written(file: Path) -> list[str]:
    """The lines that are no comments. A UnicodeDecodeError has the keys in it, and is not to be passed on."""
    text = file.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _replace(file: Path, lines: Sequence[str]) -> None:
    """In one step: who reads the file finds all that it held or all that it will."""
    fresh = file.with_name(f"{file.name}.new")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
            written.write("".join(f"{line}\n" for line in lines))
            written.flush()
            os.fsync(written.fileno())
        if file.exists():
            os.chown(fresh, file.stat().st_uid, file.stat().st_gid)
        fresh.replace(file)
    except OSError as error:
        raise InvalidInput.of("FILE", f"{file} cannot be written: {error.strerror}", "name one that can") from error


@dataclass(frozen=True, slots=True)
class _Keys:
    sealing: MultiFernet
    masters: Sequence[bytes]

    def __repr__(self) -> str:
        return f"{len(self.masters)} keys"


class Keyring:
    """The keys of `[secrets] key_file`: the first seals, each opens. Threads may share it."""

    def __init__(self, options: settings.Secrets) -> None:
        """`SettingsRefused` when the file is there and others may read it, or it holds something else than keys."""
        self._file = Path(options.key_file) if options.key_file else None
        self._lock = threading.Lock()
        self._read_at: tuple[int, int] | None = None  # the file's inode and time of change
        self._keys: _Keys | None = None
        if self._file is not None:
            self._opened()

    @property
    def has_keys(self) -> bool:
        """Whether the settings name a key file."""
        return self._file is not None

    def derived(self, purpose: str) -> tuple[bytes, ...]:
        """32 bytes for this purpose alone from each key, in the file's order; `SecretUnreadable` when there is no key."""
        return tuple(
            HKDF(SHA256(), length=32, salt=None, info=f"sanderling {purpose}".encode()).derive(master)
            for master in self._opened().masters
        )

    def seal(self, secret: str) -> str:
        """Text that only a holder of the key can make anything of; `SecretUnreadable` when there is no key."""
        return self._opened().sealing.encrypt(secret.encode()).decode()

    def unseal(self, sealed: str) -> str:
        """The secret again; `SecretUnreadable` when it was sealed with no key of these, or is not what was sealed."""
        try:
            return self._opened().sealing.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable(
                f"a secret was sealed with a key that {self._file} does not hold; add that key as a line after the first"
            ) from None

    def _opened(self) -> _Keys:
        if self._file is None:
            raise SecretUnreadable(
                "no key seals secrets: make one with `sanderling key new`, and name its file in [secrets] key_file on every node"
            )
        with self._lock:
            try:
                stat = self._file.stat()
                if self._keys is None or self._read_at != (stat.st_ino, stat.st_mtime_ns):
                    self._keys = _read(self._file, stat.st_mode)
                    self._read_at = stat.st_ino, stat.st_mtime_ns
            except OSError as error:
                raise SecretUnreadable(f"[secrets] key_file: {self._file} cannot be read: {error.strerror}") from error
            return self._keys


def _read(file: Path, mode: int) -> _Keys:
    if mode & _TOO_OPEN:
        raise SettingsRefused(f"[secrets] key_file: others than its owner may use {file}; chmod 600 it")
    try:
        lines = _written(file)
        keys = [Fernet(line) for line in lines]
    except UnicodeDecodeError:
        raise SettingsRefused(f"[secrets] key_file: {file} {_NO_TEXT}; {_WITHOUT}") from None
    except ValueError:
        raise SettingsRefused(
            f"[secrets] key_file: {file} holds a line that is no key; make each with `sanderling key new`"
        ) from None
    if not keys:
        raise SettingsRefused(f"[secrets] key_file: {file} holds no key; make one with `sanderling key new`")
    return _Keys(MultiFernet(keys), [base64.urlsafe_b64decode(line) for line in lines])
