"""Certificates as the settings name them, looked at when a process starts: what could only fail later is refused then."""

import ssl
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from sanderling.errors import SettingsRefused

_SAME: Final[Mapping[str, str]] = {}


def check(group: str, *, ca_file: str, cert_file: str, key_file: str, now: datetime, names: Mapping[str, str] = _SAME) -> None:
    """`SettingsRefused` when a file cannot be read or holds no certificate, when one is not valid now, or the key is another's.

    Empty names are of files that are not used. `names` says what the options of this group are called where that differs.
    """

    def refused(option: str, why: str) -> SettingsRefused:
        return SettingsRefused(f"[{group}] {names.get(option, option)}: {why}")

    for option, file in (("ca_file", ca_file), ("cert_file", cert_file)):
        if not file:
            continue
        try:
            held = x509.load_pem_x509_certificates(Path(file).read_bytes())
        except OSError as error:
            raise refused(option, f"{file} cannot be read: {error.strerror}") from error
        except ValueError:
            raise refused(option, f"{file} holds no certificate in PEM form") from None
        if all(now >= one.not_valid_after_utc for one in (held if option == "ca_file" else held[:1])):
            raise refused(option, f"{file} has expired; make a new one")
        if all(now < one.not_valid_before_utc for one in (held if option == "ca_file" else held[:1])):
            raise refused(option, f"{file} is not valid yet; see whether the clock is right")
    if cert_file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert_file, key_file, password=_none)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise refused("key_file", f"{key_file} cannot be used with {cert_file}: {reason}") from error


def _none() -> str:
    raise ValueError("it wants a passphrase, which nobody is there to type; store it without one")
