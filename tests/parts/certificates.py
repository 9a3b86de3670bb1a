"""A CA of a test's own, and the certificates it signs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, as files."""

    cert: str
    key: str


class Authority:
    """Its own certificate is `ca`, in the folder, where those that it signs lie too."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        own = _begun(self._name, self._name, self._key, valid_days=2).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.ca = str(_written(folder / f"{name}.pem", own.sign(self._key, SHA256()).public_bytes(Encoding.PEM)))

    def sign(self, name: str, *names: str, valid_days: float = 2) -> Signed:
        """One for these host names and addresses; with negative `valid_days` it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        asked = _begun(_named(name), self._name, key, valid_days=valid_days)
        if names:
            asked = asked.add_extension(x509.SubjectAlternativeName([_alternative(each) for each in names]), critical=False)
        cert = _written(self._folder / f"{name}.crt", asked.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Signed(str(cert), str(_written(self._folder / f"{name}.key", private)))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, valid_days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    first, last = sorted((now - timedelta(hours=1), now + timedelta(days=valid_days)))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    file.chmod(0o600)
    return file
