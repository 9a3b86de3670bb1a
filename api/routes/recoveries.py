"""/v1/recoveries: rebuilding the index of disks from what their images say, when the records are lost."""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from api.auth import Allowed, Caller
from api.changes import ChangeOf
from api.context import ContextOf
from sanderling.model import plans
from sanderling.model.operations import OperationKind
from sanderling.records.assignments import RECOVERY

router = APIRouter(tags=["disks"])


@router.post("/v1/recoveries", status_code=202)
def create(context: ContextOf, caller: Annotated[Caller, Depends(Allowed("disk:recover"))], change: ChangeOf) -> JSONResponse:
    """Index every disk that an image describes and that is not indexed. Nothing is changed on any image."""
    repeated = change.admitted(caller, OperationKind.RECOVER_DISKS)
    if repeated is not None:
        return repeated
    if change.dry_run:
        plan = plans.plan(OperationKind.RECOVER_DISKS, context.settings.conductor)
        return JSONResponse({"dry_run": True, "plan": plan.model_dump(mode="json"), "notes": []}, 200)
    return change.assign(caller, RECOVERY, may_wait=False)
