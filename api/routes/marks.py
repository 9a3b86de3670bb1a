"""/v1/disks/{disk}/marks: where operators want a disk to be, and where it must not be."""

from typing import Annotated, Self

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import Field, model_validator

from api import rules
from api.auth import Allowed, Caller
from api.changes import ChangeOf
from api.context import ContextOf
from api.rules import Body
from api.situations import Seen
from sanderling.errors import InvalidInput
from sanderling.model.operations import OperationKind
from sanderling.records import disks, marks, operations
from sanderling.records.assignments import marks_of

router = APIRouter(tags=["disks"])

GATEWAYS_MAX = 100
Gateway = Annotated[str, Field(min_length=1, max_length=255)]


class NewMarks(Body):
    """All marks of the disk: what is left out is taken away."""

    pin: Gateway | None = None
    avoid: Annotated[list[Gateway], Field(max_length=GATEWAYS_MAX, default_factory=list)]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.avoid)) < len(self.avoid):
            raise rules.refused("names a gateway twice", "name each once", field="avoid")
        if self.pin in self.avoid:
            raise rules.refused("names a gateway that is to be avoided too", "take it out of one of the two", field="pin")
        return self


@router.put("/v1/disks/{disk}/marks", status_code=202)
def put(
    disk: str,
    body: NewMarks,
    context: ContextOf,
    caller: Annotated[Caller, Depends(Allowed("disk:mark"))],
    change: ChangeOf,
) -> JSONResponse:
    """Say where the disk is to be (`pin`) and where it must not be (`avoid`); balancing, or an assignment, then moves it."""

    def decide(seen: Seen) -> JSONResponse:
        _refuse_unknown(seen, body)
        with context.records.read() as session:
            row = disks.find(session, disk)
            change.check_match(session, row)
            was, found = marks.of(session, row.id), disks.describe(row)
            is_at_rest = operations.open_on(session, row.id) is None
        wanted = {"pin": body.pin, "avoid": sorted(body.avoid)}
        notes = _notes(seen, body)
        is_so = was == wanted and is_at_rest  # else what goes before may mark it otherwise
        if is_so:
            notes.append("nothing to do: the disk is marked so already")
        if change.dry_run or is_so:
            return JSONResponse({"dry_run": change.dry_run, "disk": found.name, "was": was, "marks": wanted, "notes": notes}, 200)
        return change.assign(
            caller,
            marks_of(found, pin=body.pin, avoid=frozenset(body.avoid)),
            notes=notes,
            check=lambda session: change.check_match(session, disks.get(session, found.id)),
        )

    return change.decided(caller, OperationKind.MARK_DISK, decide)


def _refuse_unknown(seen: Seen, body: NewMarks) -> None:
    named = [("pin", body.pin), *((f"avoid[{number}]", name) for number, name in enumerate(body.avoid))]
    fix = f"give one of: {', '.join(sorted(seen.known)) or 'none has been seen yet'}"
    errors = [
        {"field": field, "rule": f"no gateway is called {name[:64]}", "fix": fix}
        for field, name in named
        if name is not None and name not in seen.known
    ]
    if errors:
        raise InvalidInput.of_all(errors)


def _notes(seen: Seen, body: NewMarks) -> list[str]:
    notes = []
    if body.pin is not None and body.pin not in seen.layout.usable:
        notes.append(f"{body.pin} is offline or drained: the pin counts for nothing until it can be used")
    if body.avoid and seen.layout.usable <= frozenset(body.avoid):
        notes.append("every gateway that could be used is avoided: the disk stays where it is, or goes to one of them in need")
    return notes
