"""Where the service is and who we are: the client file, which only its owner can read."""

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sanderling.errors import Malformed, Unauthenticated


@dataclass(frozen=True, slots=True)
class Access:
    """What a client file holds. `token` is kept out of `repr`; `by_up` marks a file that `sanderling up` may write again."""

    url: str
    token: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    by_up: bool = False

    def __repr__(self) -> str:
        return f"Access(url={self.url!r})"


def own_file() -> Path:
    """The user's own client file."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sanderling" / "client.json"


def files() -> list[Path]:
    """Where a client file is looked for: $SANDERLING_CLIENT alone if it is set, else the user's own, else that of `up` here."""
    named = os.environ.get("SANDERLING_CLIENT")
    return [Path(named)] if named else [own_file(), Path("sanderling-state") / "client.json"]


def find() -> Access:
    """The first client file there is; `Unauthenticated` says how to get one."""
    for file in files():
        with contextlib.suppress(FileNotFoundError):
            return read(file)
    looked = " or ".join(str(file) for file in files())
    raise Unauthenticated(
        f"no client file at {looked}; start `sanderling up`, or on the machine with the records run `sanderling token init`"
    )


def read(file: Path) -> Access:
    """What the file holds; `Malformed` when it cannot be used, FileNotFoundError when it is not there."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(file, f"cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:  # which holds the token, as a UnicodeDecodeError does
        raise _unusable(file, f"is not JSON: {error.msg}, line {error.lineno}") from None
    except (ValueError, RecursionError):
        raise _unusable(file, "is not JSON in UTF-8") from None
    if not isinstance(held, dict):
        raise _unusable(file, "holds no JSON object")
    texts: dict[str, Any] = {field: held.get(field, default) for field, default in _TEXTS.items()}
    for field, value in texts.items():
        if not isinstance(value, str):
            raise _unusable(file, f"cannot be used: {field}: is missing or no text")
    if not _WORD.fullmatch(texts["token"]):
        raise _unusable(file, "cannot be used: token: is not one word of printable ASCII")
    return Access(**texts, by_up=bool(held.get("by_up")))


_TEXTS: Final = {"url": None, "token": None, "ca_file": "", "cert_file": "", "key_file": ""}
_WORD: Final = re.compile(r"[!-~]+")


def _unusable(file: Path, why: str) -> Malformed:
    return Malformed(f"the client file {file} {why}; write it again, or remove it")


def write(file: Path, access: Access) -> None:
    """Write a client file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(asdict(access), out, indent=2)
    fresh.replace(file)
