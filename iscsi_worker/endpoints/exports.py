"""Commands to this worker about one export. They change an intent and wake the loop; the result shows in coordination."""

from collections.abc import Callable

from rpc.bus import Endpoint
from rpc.messages import ExportCommand
from sanderling.model.exports import Epoch, ExportId

Intent = Callable[[ExportId, Epoch], None]


def endpoint(want: Intent, unwant: Intent) -> Endpoint:
    """`export.path_host` takes an export, `export.clean` gives it up; a command for another epoch than the present is refused."""

    def path_host(command: ExportCommand) -> None:
        want(command.export, command.epoch)

    def clean(command: ExportCommand) -> None:
        unwant(command.export, command.epoch)

    return Endpoint("export", {"path_host": (ExportCommand, path_host), "clean": (ExportCommand, clean)})
