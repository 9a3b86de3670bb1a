"""Wake-ups: there is an operation to drive. One may come twice, late or never; the record decides what there is to do."""

from collections.abc import Callable

from rpc.bus import Endpoint
from rpc.messages import Message, Wake


def endpoint(wake: Callable[[str], None]) -> Endpoint:
    """What a conductor answers in namespace `operation`."""

    def handle(message: Wake) -> Message | None:
        wake(message.operation_id)
        return None

    return Endpoint("operation", {"wake": (Wake, handle)})
