"""`/healthz` and `/readyz`: for whoever watches the process."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from server.api.context import Running
from server.api.problems import RESPONSES, Problem
from server.sessions import SessionStoreError

router = APIRouter(tags=["health"], responses=RESPONSES)


class Healthy(BaseModel):
    """The process answers."""

    status: str = "ok"


class Ready(BaseModel):
    """Everything that a request needs is there."""

    status: str = "ready"
    model: str
    base_fingerprint: str = Field(description="SHA-256 of the base model's weights")
    context_tokens: int


@router.get("/healthz", response_model=Healthy)
async def healthz() -> Healthy:
    """Whether the process is alive; says nothing about Redis or the engine."""
    return Healthy()


@router.get("/readyz", response_model=Ready)
async def readyz(running: Running) -> Ready:
    """Whether requests can be answered now: Redis answers and the engine runs; else 503."""
    try:
        await running.store.ping()
    except SessionStoreError as error:
        raise Problem("unavailable", f"not ready, Redis is away: {error}") from error
    if not running.engine.status().running:
        raise Problem("unavailable", "not ready, the engine does not run: see the server's log")
    artifact = running.artifact
    return Ready(
        model=artifact.name,
        base_fingerprint=artifact.fingerprint,
        context_tokens=artifact.context_tokens,
    )
