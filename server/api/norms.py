"""`GET /admin/sessions/{id}/versions/{n}/norms`: where in the model a version changed something."""

import asyncio
import math

from fastapi import APIRouter
from pydantic import BaseModel, Field

from adapters.norms import weight_changes
from server.api.auth import Operator
from server.api.context import Running, SessionPath, VersionPath
from server.api.problems import RESPONSES
from server.api.sessions import existing

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
    await existing(running, who, session_id)
    chosen, state = await running.chooser.adapter(who.tenant, session_id, version)
    start, scale = running.artifact.start.tensors, state.spec.scale
    found = await asyncio.to_thread(weight_changes, state.tensors, start, scale)
    return NormsAnswer(
        session_id=session_id,
        adapter_version=chosen.number,
        norm=math.hypot(*found.values()),
        modules=[ModuleNorm(module=name, norm=norm) for name, norm in found.items()],
    )
