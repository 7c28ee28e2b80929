"""What a version is made of: `GET /admin/sessions/{id}/versions/{n}/norms` says where in the model
it changed something, `…/influence` by which items."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from adapters.norms import weight_change, weight_changes
from server.api.auth import Operator
from server.api.context import Running, SessionPath
from server.api.problems import RESPONSES, Problem
from server.api.sessions import existing
from server.flows.influence import NotDivisible

VersionPath = Annotated[int, Path(ge=1, lt=2**53, description="a kept version")]

router = APIRouter(prefix="/admin", tags=["admin"], responses=RESPONSES)


class ModuleNorm(BaseModel):
    """How far one weight matrix is moved."""

    module: str = Field(description="its name in the base model")
    norm: float = Field(description="Frobenius norm of what is added to it, beyond session_init")


class NormsAnswer(BaseModel):
    """How far a version moves the weights that its adapter acts on."""

    session_id: str
    adapter_version: int
    norm: float = Field(
        description="of all modules together; `update_norm` is of the adapter's parameters instead"
    )
    modules: list[ModuleNorm] = Field(description="in the model's order")


@router.get("/sessions/{session_id}/versions/{version}/norms", response_model=NormsAnswer)
async def norms(
    session_id: SessionPath, version: VersionPath, who: Operator, running: Running
) -> NormsAnswer:
    """Per module, the norm of a version's `scale · B A` less that of session_init.

    A version whose bytes are not stored any more is derived again first. The tenant is the header
    `X-Tenant`, `default` without it.
    """
    await existing(running, who.tenant, session_id)
    chosen, state = await running.chooser.adapter(who.tenant, session_id, version)
    start, scale = running.artifact.start.tensors, state.spec.scale
    found = await asyncio.to_thread(weight_changes, state.tensors, start, scale)
    return NormsAnswer(
        session_id=session_id,
        adapter_version=chosen.number,
        norm=weight_change(state.tensors, start, scale),
        modules=[ModuleNorm(module=name, norm=norm) for name, norm in found.items()],
    )


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
    await existing(running, who.tenant, session_id)
    chosen, state = await running.chooser.adapter(who.tenant, session_id, version)
    try:
        found = await running.influences.of(chosen.pointer, chosen.number, state)
    except NotDivisible as error:
        raise Problem("conflict", str(error)) from error
    items = [ItemInfluence(item=one.item_id, share=one.share) for one in found]
    return InfluenceAnswer(session_id=session_id, adapter_version=chosen.number, items=items)
