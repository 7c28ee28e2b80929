"""`/healthz`, `/readyz` and `/metrics`: for whoever watches the process."""

import logging

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from server.api.auth import Operator
from server.api.context import Running
from server.api.problems import RESPONSES, Problem
from server.sessions import SessionStoreError

logger = logging.getLogger(__name__)
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
async def readyz(running: Running, request: Request) -> Ready:
    """Whether to send requests: Redis answers, the engine runs, nothing is stopping; else 503."""
    if request.app.state.stopping:
        raise Problem("unavailable", "not ready, the server is stopping: use another replica")
    try:
        await running.store.ping()
    except SessionStoreError as error:
        logger.warning("not ready: %s", error)
        raise Problem("unavailable", "not ready, Redis is away: see the server's log") from error
    if not running.engine.status().running:
        raise Problem("unavailable", "not ready, the engine does not run: see the server's log")
    artifact = running.artifact
    return Ready(
        model=artifact.name,
        base_fingerprint=artifact.fingerprint,
        context_tokens=artifact.context_tokens,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(_: Operator, running: Running) -> Response:
    """Counts and states for Prometheus; with keys, it has to send an operator's."""
    text = running.telemetry.exposition(running.engine.status())
    return Response(text, media_type=CONTENT_TYPE_LATEST)
