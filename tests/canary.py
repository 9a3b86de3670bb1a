"""Secrets that can be recognised wherever they lie."""

import base64
import hashlib
from collections.abc import Iterable, Mapping


def forms(secret: str) -> set[bytes]:
    """The secret as it could lie about: as it is, encoded, or as a digest that can be tried out."""
    plain = secret.encode()
    digests = [hashlib.new(name, plain).hexdigest().encode() for name in ("md5", "sha1", "sha256")]
    encoded = [base64.b64encode(plain).rstrip(b"=")[:-1], plain.hex().encode(), *digests]
    return {plain, *encoded}


def found(places: Mapping[str, bytes], secrets: Iterable[str], *, tokens: Iterable[str] = ()) -> list[tuple[str, str, bytes]]:
    """Where which secret lies, and in what form. By their digests tokens are known: 256 random bits cannot be tried out."""
    known = {hashlib.sha256(token.encode()).hexdigest().encode() for token in tokens}
    return [
        (place, secret[:10], form[:12])
        for place, content in places.items()
        for secret in [*secrets, *tokens]
        for form in forms(secret) - known
        if form in content
    ]
