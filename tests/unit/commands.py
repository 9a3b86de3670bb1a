"""What a worker makes of commands, and key files to sign them with."""

from pathlib import Path

from cryptography.fernet import Fernet

from iscsi_worker.endpoints.exports import endpoint
from iscsi_worker.worker import Worker
from rpc.bus import Endpoint
from rpc.signing import Signing
from sanderling.clock import Clock
from sanderling.secrets import Keyring
from sanderling.settings import Secrets


def commanded(worker: Worker, signing: Signing | None = None) -> Endpoint:
    """How the worker is commanded; with `signing`, as if its settings named that key file."""
    return endpoint(worker._intents, signing or worker._signing, node=worker._node)


def keys(file: Path, *lines: str) -> Secrets:
    """Settings that name the file, which holds these keys, or a new one."""
    file.touch(mode=0o600)
    file.write_text("\n".join(lines or [Fernet.generate_key().decode()]) + "\n")
    return Secrets(key_file=str(file))


def signing(options: Secrets, clock: Clock) -> Signing:
    return Signing(options, Keyring(options), clock=clock)
