"""`/admin/keys`: operators make, list and revoke keys while the server runs."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from server.api.audit import audited
from server.api.auth import Operator
from server.api.context import Running
from server.api.keyring import DEFAULT_TENANT, Keyring
from server.api.problems import RESPONSES, invalid
from server.api.schemas import Wire
from server.sessions import Role, new_key_id
from server.settings import TENANT_PATTERN

YEARS_S = 10 * 365 * 86400

router = APIRouter(prefix="/admin/keys", tags=["admin"], responses=RESPONSES)


class KeyBody(Wire):
    """Body of `POST /admin/keys`."""

    tenant: str | None = Field(
        None,
        pattern=TENANT_PATTERN,
        description="whose sessions a client's key opens; an operator's key acts for it unless "
        f"X-Tenant says otherwise, {DEFAULT_TENANT!r} where it is left out",
    )
    role: Role
    name: str = Field("", max_length=200, description="for people: who has it, and what for")
    expires_in_s: int | None = Field(None, ge=1, le=YEARS_S, description="by default never")


class KeyRow(BaseModel):
    """A stored key, without its text."""

    id: str
    tenant: str
    role: Role
    name: str
    last4: str = Field(description="the last four characters of its text")
    created_at: float = Field(description="Unix time, seconds")
    expires_at: float | None = Field(description="Unix time, seconds; null: never")


class MadeKey(KeyRow):
    """A new key. Nobody can read its text again."""

    key: str


class KeysAnswer(BaseModel):
    """A page of the stored keys, newest first, and how many there are."""

    total: int
    offset: int
    keys: list[KeyRow]


@router.post("", response_model=MadeKey, status_code=201)
async def make(
    body: KeyBody, who: Operator, running: Running, request: Request, response: Response
) -> MadeKey:
    """Make a key. Its text is in this answer and nowhere else; Redis keeps a hash.

    From the first one on, this server and every other on the same Redis asks for keys, also after
    all stored keys are revoked.
    """
    if body.tenant is None and body.role == "client":
        raise invalid("tenant", "Field required for a client's key")
    tenant, key_id = body.tenant or DEFAULT_TENANT, new_key_id()
    fields = {"key": key_id, "role": body.role, "of_tenant": tenant, "name": body.name}
    async with audited(running, who, "make key", **fields):
        made, text = await running.store.access.make_key(
            key_id,
            tenant,
            body.role,
            name=body.name,
            lifetime_s=body.expires_in_s,
            alone=_alone(request),
        )
    response.headers["Cache-Control"] = "no-store"
    return MadeKey(**asdict(made), key=text)


@router.get("", response_model=KeysAnswer)
async def listed(
    _: Operator,
    running: Running,
    offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> KeysAnswer:
    """The stored keys by page, expired ones included. Keys of the environment are not listed."""
    page = await running.store.access.keys(offset=offset, limit=limit)
    rows = [KeyRow(**asdict(key)) for key in page.keys]
    return KeysAnswer(total=page.total, offset=offset, keys=rows)


@router.delete("/{key_id}", status_code=204)
async def revoke(
    key_id: Annotated[str, Path(max_length=64, description="id of a stored key")],
    who: Operator,
    running: Running,
    request: Request,
) -> None:
    """Revoke a key, at once and on every replica, with all session tokens made with it."""
    async with audited(running, who, "revoke key", key=key_id):
        await running.store.access.revoke_key(key_id, alone=_alone(request))


def _alone(request: Request) -> bool:
    """Whether only stored keys let operators in."""
    keyring: Keyring = request.app.state.keyring
    return not keyring.operated
