"""`/sessions`: a client's view of its sessions and of what they were taught."""

import secrets
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from server.api.auth import Tenant
from server.api.context import Running, SessionPath
from server.api.problems import RESPONSES, Problem
from server.api.schemas import (
    ForgetAnswer,
    ItemAnswer,
    ItemsAnswer,
    SessionAnswer,
    SessionBody,
)
from server.runtime import Runtime
from server.sessions import Item, Pointer

router = APIRouter(prefix="/sessions", tags=["sessions"], responses=RESPONSES)

ItemPath = Annotated[int, Path(ge=1, lt=2**53, description="id of the feedback item")]


@router.post("", response_model=SessionAnswer, status_code=201)
async def create(
    body: SessionBody, tenant: Tenant, running: Running, response: Response
) -> SessionAnswer:
    """Make a session. Not needed before using one: it starts untaught on first use."""
    session_id = body.session_id or secrets.token_urlsafe(12)
    if (await running.store.pointer(tenant, session_id)).exists:
        raise Problem(
            "conflict", f"there is a session {session_id!r} already: use it, or take another id"
        )
    pointer = await running.store.create(tenant, session_id)
    response.headers["Location"] = f"/sessions/{session_id}"
    return wire(pointer)


@router.get("/{session_id}", response_model=SessionAnswer)
async def read(session_id: SessionPath, tenant: Tenant, running: Running) -> SessionAnswer:
    """Where a session stands."""
    return wire(await existing(running, tenant, session_id))


@router.delete("/{session_id}", status_code=204)
async def delete(session_id: SessionPath, tenant: Tenant, running: Running) -> None:
    """Delete a session with everything that belongs to it: feedback, versions, completions."""
    if not await running.store.delete(tenant, session_id):
        raise no_session(session_id)


@router.get("/{session_id}/feedback", response_model=ItemsAnswer, response_model_exclude_none=True)
async def items(
    session_id: SessionPath,
    tenant: Tenant,
    running: Running,
    offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ItemsAnswer:
    """What the session was taught and what became of it, by id."""
    pointer = await existing(running, tenant, session_id)
    found = await running.store.items(tenant, session_id, offset=offset, limit=limit)
    return ItemsAnswer(
        session_id=session_id,
        total=pointer.items,
        offset=offset,
        items=[wire_item(item) for item in found],
    )


@router.get(
    "/{session_id}/feedback/{item}", response_model=ItemAnswer, response_model_exclude_none=True
)
async def read_item(
    session_id: SessionPath, item: ItemPath, tenant: Tenant, running: Running
) -> ItemAnswer:
    """One feedback item."""
    return wire_item(await running.store.item(tenant, session_id, item))


@router.delete(
    "/{session_id}/feedback/{item}", response_model=ForgetAnswer, response_model_exclude_none=True
)
async def forget(
    session_id: SessionPath, item: ItemPath, tenant: Tenant, running: Running
) -> ForgetAnswer:
    """Forget an item exactly: the session is derived again without it.

    The item's content is erased and every version that contained it is deleted. An earlier item
    that it had superseded counts again.
    """
    return ForgetAnswer(**asdict(await running.rebuilder.forget(tenant, session_id, item)))


async def existing(running: Runtime, tenant: str, session_id: str) -> Pointer:
    """The pointer of a session.

    Raises:
        Problem: there is no such session.
    """
    pointer = await running.store.pointer(tenant, session_id)
    if not pointer.exists:
        raise no_session(session_id)
    return pointer


def no_session(session_id: str) -> Problem:
    """The problem of a session that is not there."""
    return Problem(
        "not-found",
        f"there is no session {session_id!r}: it begins with its first /generate or /adapt",
    )


def wire(pointer: Pointer) -> SessionAnswer:
    """A session as clients see it."""
    return SessionAnswer(
        session_id=pointer.session_id,
        adapter_version=pointer.version,
        created_at=pointer.created_at,
        updated_at=pointer.updated_at,
        items=pointer.items,
        pending_items=pointer.pending,
        applied_items=pointer.applied,
    )


def wire_item(item: Item) -> ItemAnswer:
    """A feedback item as clients see it."""
    return ItemAnswer(
        id=item.id,
        kind=item.kind,
        status=item.status,
        reason=item.reason,
        created_at=item.created_at,
        adapter_version=item.version,
        superseded_by=item.superseded_by,
        messages=item.payload.get("messages"),
        completion=item.payload.get("completion"),
        completion_id=item.payload.get("completion_id"),
        comment=item.payload.get("comment"),
    )
