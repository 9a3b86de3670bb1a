"""Commands that only a holder of the key file can give: signed with everything that they are about, and good for a while.

The signature binds method, server, export, epoch, destination, operation and expiry (docs/decisions/0014-signed-commands.md).
"""

import hashlib
import hmac
import json

import structlog
from prometheus_client import Counter

from rpc.messages import ExportCommand
from sanderling.clock import Clock
from sanderling.errors import CommandExpired, NotAuthentic
from sanderling.secrets import Keyring
from sanderling.settings import Secrets

log = structlog.get_logger(__name__)

REFUSED = Counter("sanderling_commands_refused", "Commands that were not authentic, or too old or too new", ["reason"])

_PURPOSE = "commands to workers"


class Signing:
    """Signs and checks commands with the keys of the file at that moment; without a key file it does neither, and says so."""

    def __init__(self, options: Secrets, keyring: Keyring, *, clock: Clock) -> None:
        self._options, self._keyring, self._clock = options, keyring, clock
        if not keyring.has_keys:
            log.warning("commands to workers are not signed: whoever may use the broker may move exports; set [secrets] key_file")

    def signed(self, method: str, command: ExportCommand, *, server: str) -> ExportCommand:
        """The command, to be sent to this server within `command_valid_s`; `SecretUnreadable` when the keys cannot be read."""
        if not self._keyring.has_keys:
            return command
        expiring = command.model_copy(update={"expires_at": self._clock.wall().timestamp() + self._options.command_valid_s})
        key = self._keyring.derived(_PURPOSE)[0]
        return expiring.model_copy(update={"signature": _signature(key, method, expiring, server)})

    def check(self, method: str, command: ExportCommand, *, server: str) -> None:
        """Return when the command was signed for this server and holds now; `NotAuthentic` or `CommandExpired` otherwise."""
        if not self._keyring.has_keys:
            return
        if not command.signature:
            raise _refused("unsigned", NotAuthentic("the command is not signed; give its sender the key file of this node"))
        candidates = [_signature(key, method, command, server) for key in self._keyring.derived(_PURPOSE)]
        given = command.signature.encode("utf-8", "surrogatepass")
        if not any(hmac.compare_digest(each.encode(), given) for each in candidates):
            raise _refused("signature", NotAuthentic("the command was not signed for this server with a key of this node's file"))
        left_s, margin_s = command.expires_at - self._clock.wall().timestamp(), self._options.clock_difference_s
        if not -margin_s <= left_s <= self._options.command_valid_s + margin_s:
            raise _refused("expired", CommandExpired(f"the command holds for {left_s:.0f} s from now; compare the nodes' clocks"))


def _refused(reason: str, problem: NotAuthentic | CommandExpired) -> NotAuthentic | CommandExpired:
    REFUSED.labels(reason).inc()
    return problem


def _signature(key: bytes, method: str, command: ExportCommand, server: str) -> str:
    bound = [
        method,
        server,
        command.operation_id,
        command.disk_id,
        command.index,
        command.generation,
        command.counter,
        command.destination,
        command.expires_at,
    ]
    return hmac.new(key, json.dumps(bound).encode(), hashlib.sha256).hexdigest()
