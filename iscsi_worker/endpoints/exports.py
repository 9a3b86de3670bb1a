"""Commands to this worker about one export. They change an intent and wake the loop; the result shows in coordination."""

from iscsi_worker.intents import Intents
from rpc.bus import Endpoint
from rpc.messages import ExportCommand
from rpc.signing import Signing
from sanderling import tracing
from sanderling.model.operations import Cause


def endpoint(intents: Intents, signing: Signing, *, node: str) -> Endpoint:
    """`export.path_host` takes an export, `export.clean` gives it up.

    A command that is not signed for this node, or that is for another epoch than the present, is refused.
    """

    def path_host(command: ExportCommand) -> None:
        signing.check("export.path_host", command, server=node)
        intents.want(command.export, command.epoch, cause=_cause(command))

    def clean(command: ExportCommand) -> None:
        signing.check("export.clean", command, server=node)
        if command.destination:
            intents.hand_on(command.export, command.epoch, destination=command.destination, cause=_cause(command))
        else:
            intents.unwant(command.export, command.epoch, cause=_cause(command))

    return Endpoint("export", {"path_host": (ExportCommand, path_host), "clean": (ExportCommand, clean)})


def _cause(command: ExportCommand) -> Cause:
    return Cause(operation_id=command.operation_id, traceparent=tracing.current() or "")
