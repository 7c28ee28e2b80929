"""`GET /admin/sessions/{id}/versions/{n}/influence`: by which items a version was made."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from server.api.auth import Operator
from server.api.context import Running, SessionPath, VersionPath
from server.api.problems import RESPONSES, Problem
from server.api.sessions import existing
from server.flows.influence import NotDivisible

router = APIRouter(prefix="/admin", tags=["admin"], responses=RESPONSES)


class ItemInfluence(BaseModel):
    """What one piece of feedback did to a version."""

    item: int
    share: float | None = Field(
        description="how far the adapter would be from where it is without the item, as a share of "
        "its way from the start; null where nothing can be derived without it"
    )


class InfluenceAnswer(BaseModel):
    """What each piece of feedback did to a version."""

    session_id: str
    adapter_version: int
    items: list[ItemInfluence]


@router.get("/sessions/{session_id}/versions/{version}/influence", response_model=InfluenceAnswer)
async def influence(
    session_id: SessionPath, version: VersionPath, who: Operator, running: Running
) -> InfluenceAnswer:
    """Per item of a version, how much of the adapter is due to it: the version is derived again
    without each, so it takes as many derivations as there are items, 16 at most. Nothing changes,
    and the tenant's budget does not pay. The tenant is the header `X-Tenant`, `default` without it.
    """
    await existing(running, who, session_id)
    chosen, state = await running.chooser.adapter(who.tenant, session_id, version)
    try:
        found = await running.influences.of(chosen.pointer, chosen.number, state)
    except NotDivisible as error:
        raise Problem("conflict", str(error)) from error
    items = [ItemInfluence(item=one.item_id, share=one.share) for one in found]
    return InfluenceAnswer(session_id=session_id, adapter_version=chosen.number, items=items)
