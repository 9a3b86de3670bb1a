"""What operators have marked: gateways that get nothing new, and where a disk is to be or must not be."""

from collections.abc import Collection, Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

MARKS_KEY: Final = "marks"


class Marks(BaseModel):
    """The value of `marks` in coordination, a copy of the records. A mark guides choices; it never leaves an export unserved.

    `drained` names gateways, `pins` and `avoid` go by the disk's id.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    drained: frozenset[str] = frozenset()
    pins: Mapping[str, str] = {}
    avoid: Mapping[str, frozenset[str]] = {}

    def welcome(self, disk_id: str, gateways: Collection[str]) -> list[str]:
        """Those of the gateways on which no mark says that the disk should not be."""
        unwelcome = self.drained | self.avoid.get(disk_id, frozenset())
        return [name for name in gateways if name not in unwelcome]
