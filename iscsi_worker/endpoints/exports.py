"""Commands to this worker about one export. They change an intent and wake the loop; the result shows in coordination."""

from iscsi_worker.intents import Intents
from rpc.bus import Endpoint
from rpc.messages import ExportCommand
from sanderling import tracing
from sanderling.model.operations import Cause


def endpoint(intents: Intents) -> Endpoint:
    """`export.path_host` takes an export, `export.clean` gives it up; a command for another epoch than the present is refused."""

    def path_host(command: ExportCommand) -> None:
        intents.want(command.export, command.epoch, cause=_cause(command))

    def clean(command: ExportCommand) -> None:
        if command.destination:
            intents.hand_on(command.export, command.epoch, destination=command.destination, cause=_cause(command))
        else:
            intents.unwant(command.export, command.epoch, cause=_cause(command))

    return Endpoint("export", {"path_host": (ExportCommand, path_host), "clean": (ExportCommand, clean)})


def _cause(command: ExportCommand) -> Cause:
    return Cause(operation_id=command.operation_id, traceparent=tracing.current() or "")
