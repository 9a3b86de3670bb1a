"""/v1/paths: every address that a disk answers on, who serves it, and where it is going."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session

from api import serving
from api.auth import Allowed, Caller
from api.context import ContextOf
from api.pages import Page, PageOf
from api.rules import Address
from sanderling.errors import InvalidInput
from sanderling.records import disks, moves
from sanderling.records.tables import PathRow

router = APIRouter(tags=["paths"])


@router.get("/v1/paths")
def index(
    context: ContextOf,
    _caller: Annotated[Caller, Depends(Allowed("path:read"))],
    page: PageOf,
    disk: Annotated[str | None, Query(max_length=63, description="Only paths of the disk of this name or id")] = None,
    disk_contains: Annotated[
        str | None, Query(max_length=63, description="Only paths of disks whose name contains this, in upper or lower case")
    ] = None,
    gateway: Annotated[str | None, Query(max_length=255, description="Only paths that this gateway has now")] = None,
    address: Annotated[Address | None, Query(description="Only the path with this address")] = None,
) -> dict[str, Any]:
    """Paths by disk and index, also while paths are being moved: `destination` and `move` are those of a move that has not ended.

    With `gateway` coordination must be readable; without, what it does not say is unknown.
    """
    usage = serving.exports(context) if gateway is not None else serving.exports_if_known(context)
    shown: list[dict[str, Any]] = []
    with context.records.read() as session:
        going = {move.export: move for move in moves.open_moves(session)}
        for row in _rows(session, page, disk=disk, disk_contains=disk_contains, address=address):
            path = {"disk": row.disk.name, "disk_id": row.disk_id} | serving.show_path(row.disk, row, usage)
            move = going.get(serving.export_of(row.disk, row))
            path |= {"destination": move.destination if move else None, "move": move.state.value if move else None}
            if gateway is None or path["gateway"] == gateway:
                shown.append(path)
            if len(shown) == page.limit:
                break
    return page.of("paths", shown, marker=f"{shown[-1]['disk']}/{shown[-1]['index']}" if shown else None)


def _rows(session: Session, page: Page, *, disk: str | None, disk_contains: str | None, address: str | None) -> Iterator[PathRow]:
    """Rows from the marker on; a filter that the records do not know may skip any number of them."""
    after = _position(page.marker) if page.marker is not None else None
    while True:
        rows = disks.paths(session, after=after, limit=page.limit, disk=disk, disk_contains=disk_contains, address=address)
        yield from rows
        if len(rows) < page.limit:
            return
        after = (rows[-1].disk.name, rows[-1].index)


def _position(marker: str) -> tuple[str, int]:
    name, _, index = marker.rpartition("/")
    if not (name and index.isascii() and index.isdigit() and len(index) < 4):
        raise InvalidInput.of("marker", "is not where a page ended", "use the next link of the page before")
    return name, int(index)
