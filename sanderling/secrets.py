"""Secrets at rest: sealed with a key that is not where they are kept, and opened by every key of before."""

import stat
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from sanderling import settings
from sanderling.errors import KeyMissing, SettingsRefused


class Keyring:
    """The keys of a process, read once: the first of the file seals, every one opens, so that keys can be exchanged."""

    def __init__(self, options: settings.Secrets) -> None:
        """Without a key file it has no keys. `SettingsRefused` when there is one that cannot be used, or that others can read."""
        keys = _keys(Path(options.key_file)) if options.key_file else []
        self._fernet = MultiFernet(keys) if keys else None

    @property
    def has_keys(self) -> bool:
        return self._fernet is not None

    def seal(self, text: str) -> str:
        """What may be stored. Sealing twice gives two different texts. `KeyMissing` when there are no keys."""
        return self._ring().encrypt(text.encode()).decode()

    def unseal(self, text: str) -> str:
        """What was sealed; `KeyMissing` when none of the keys opens it, or it is not what was sealed."""
        try:
            return self._ring().decrypt(text.encode()).decode()
        except InvalidToken:
            raise KeyMissing(
                "none of the keys in [secrets] key_file opens this secret; add the key that it was sealed with as a further line"
            ) from None

    def _ring(self) -> MultiFernet:
        if self._fernet is None:
            raise KeyMissing("there is no key to seal secrets with; make a file of one and name it in [secrets] key_file")
        return self._fernet


def new_key() -> str:
    """A line for a key file."""
    return Fernet.generate_key().decode()


def _keys(file: Path) -> list[Fernet]:
    try:
        mode = file.stat().st_mode
        lines = file.read_text("ascii").split()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsRefused(f"[secrets] key_file: {file} cannot be read ({reason}); make it, or name another") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise SettingsRefused(f"[secrets] key_file: {file} is open to others; chmod 640 or 600 it")
    if not lines:
        raise SettingsRefused(f"[secrets] key_file: {file} holds no key; write one into it")
    keys = []
    for number, line in enumerate(lines, 1):
        try:
            keys.append(Fernet(line))
        except ValueError:
            raise SettingsRefused(
                f"[secrets] key_file: line {number} of {file} is no key: 32 bytes in URL-safe base64; write such a one"
            ) from None
    return keys
