"""`POST /sessions/{id}/tokens`: what a page gets in place of a key."""

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from server.api.audit import audited
from server.api.auth import AnyDoor, Tenant
from server.api.context import Running, SessionPath
from server.api.problems import RESPONSES
from server.api.schemas import Wire
from server.sessions import SCOPES, Scope

DEFAULT_S = 900
LONGEST_S = 86400

router = APIRouter(prefix="/sessions", tags=["sessions"], responses=RESPONSES)


class TokenBody(Wire):
    """Body of `POST /sessions/{id}/tokens`."""

    expires_in_s: int = Field(DEFAULT_S, ge=1, le=LONGEST_S)
    scopes: list[Scope] = Field(
        list(SCOPES),
        min_length=1,
        max_length=len(SCOPES),
        description="generate: answers; teach: /adapt, /feedback and forgetting; read: the "
        "session, its feedback and jobs; delete: the session",
    )


class TokenAnswer(BaseModel):
    """A session token."""

    token: str = Field(description="send it as `Authorization: Bearer TOKEN`")
    session_id: str
    scopes: list[Scope]
    expires_at: float = Field(description="Unix time, seconds")


@router.post("/{session_id}/tokens", response_model=TokenAnswer, status_code=201)
async def make(
    session_id: SessionPath,
    tenant: Tenant,
    door: AnyDoor,
    running: Running,
    response: Response,
    body: TokenBody | None = None,
) -> TokenAnswer:
    """Make a token that opens this session and nothing else, for a browser.

    It ends with its time, with the session, and with the key that made it. A request that names no
    session is about the token's. The session need not be there yet.
    """
    wanted, who = body or TokenBody(), door.who
    async with audited(running, who, "make token", session_id):
        text, expires_at = await running.store.access.make_token(
            tenant, session_id, who.name, wanted.scopes, wanted.expires_in_s, who.proof
        )
    response.headers["Cache-Control"] = "no-store"
    scopes = [scope for scope in SCOPES if scope in wanted.scopes]
    return TokenAnswer(token=text, session_id=session_id, scopes=scopes, expires_at=expires_at)
