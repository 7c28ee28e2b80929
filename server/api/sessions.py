"""`/sessions`: a client's view of its sessions and of what they were taught."""

import secrets
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from adapters.peft_io import PeftFormatError
from server.api.audit import audited
from server.api.auth import AnyDoor, DeleteSession, ReadSession, TeachSession
from server.api.body_limit import ZIP_TYPE, is_import
from server.api.context import Running
from server.api.feedback_schemas import (
    ForgetAnswer,
    ItemAnswer,
    ItemsAnswer,
)
from server.api.keyring import Caller
from server.api.problems import RESPONSES, Problem, invalid
from server.api.schemas import (
    MORE_THAN_DOTS,
    SESSION_ID_PATTERN,
    SessionAnswer,
    SessionBody,
)
from server.engine import EngineBusy, EngineStopped
from server.flows.forking import fork
from server.flows.spending import LEARNING
from server.runtime import Runtime
from server.sessions import Item, Pointer

router = APIRouter(prefix="/sessions", tags=["sessions"], responses=RESPONSES)

TENANTS_TOLD = 3

ItemPath = Annotated[int, Path(ge=1, lt=2**53, description="id of the feedback item")]
ImportedId = Annotated[
    str | None,
    Query(
        pattern=SESSION_ID_PATTERN,
        description="only with a zip, which has no fields: the session's id, drawn when left out",
    ),
    MORE_THAN_DOTS,
]
_ZIP_BODY = {
    "requestBody": {"content": {ZIP_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}


class ImportRoute(APIRoute):
    """A route for zips only, so that JSON finds the one behind it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match by the body's type too."""
        match, found = super().matches(scope)
        if match is Match.FULL and not is_import(scope):
            return Match.NONE, {}
        return match, found


async def bring(
    request: Request,
    door: AnyDoor,
    running: Running,
    response: Response,
    session_id: ImportedId = None,
) -> SessionAnswer:
    """Make a session whose version 1 is the adapter in a PEFT zip."""
    tenant, session_id = await door.enter_tenant(), session_id or secrets.token_hex(12)
    async with audited(running, door.who, "import", session_id):
        try:
            pointer = await running.importer.make(tenant, session_id, await request.body())
        except PeftFormatError as error:
            raise Problem("invalid", f"nothing was imported: {error}") from error
    response.headers["Location"] = f"/sessions/{session_id}"
    return wire(pointer)


router.add_api_route(
    "",
    bring,
    methods=["POST"],
    response_model=SessionAnswer,
    status_code=201,
    include_in_schema=False,  # `create` describes both, there being one path
    route_class_override=ImportRoute,
)


@router.post("", response_model=SessionAnswer, status_code=201, openapi_extra=_ZIP_BODY)
async def create(
    body: SessionBody,
    door: AnyDoor,
    running: Running,
    response: Response,
    session_id: ImportedId = None,
) -> SessionAnswer:
    """Make a session. Not needed before using one: it starts untaught on first use.

    With `fork` it begins with copies of what another session was taught, and goes its own way.
    With `house` false it does without the tenant's house; so does a fork of one that does.

    Sent as `application/zip`, the body is an adapter: a folder that PEFT saved, or an export of
    `GET /admin/sessions/{id}/export`. It is served as it is from the session's version 1 on, and
    takes no feedback; where it does not fit this server's model, it is refused with 422.
    """
    if session_id is not None:
        raise invalid("session_id", "JSON has this field itself: put it there", location="query")
    tenant, session_id = await door.enter_tenant(), body.session_id or secrets.token_hex(12)
    origin = {} if body.fork is None else {"fork": body.fork.session_id}
    if body.fork is not None:
        await door.afford(session_id, LEARNING)
    async with audited(running, door.who, "create", session_id, **origin):
        if body.fork is None:
            pointer = await running.store.create(
                tenant, session_id, only_new=True, alone=not body.house
            )
        else:
            pointer = await _fork(running, tenant, session_id, body)
    response.headers["Location"] = f"/sessions/{session_id}"
    return wire(pointer)


async def _fork(running: Runtime, tenant: str, session_id: str, body: SessionBody) -> Pointer:
    assert body.fork is not None
    source, version = body.fork.session_id, body.fork.adapter_version
    made = await fork(running.store, tenant, source, session_id, version, alone=not body.house)
    if made.items:
        work = (tenant, session_id, made.items, made.steps, None, made.incarnation)
        try:
            await running.teacher.teach(*work)
        except (EngineBusy, EngineStopped):  # it is there, and `pending_items` says what it lacks
            running.background.spawn(running.teacher.teach(*work), f"the fork {session_id}")
    return await running.store.pointer(tenant, session_id)


@router.get("/{session_id}", response_model=SessionAnswer)
async def read(entry: ReadSession, running: Running) -> SessionAnswer:
    """Where a session stands."""
    return wire(await existing(running, entry.who, entry.session_id))


@router.delete("/{session_id}", status_code=204)
async def delete(entry: DeleteSession, running: Running) -> None:
    """Delete a session with everything that belongs to it: feedback, versions, completions.

    A token of the session is gone with it.
    """
    async with audited(running, entry.who, "delete", entry.session_id):
        if not await running.store.delete(entry.tenant, entry.session_id):
            raise await _no_session(running, entry.who, entry.session_id)


@router.get("/{session_id}/feedback", response_model=ItemsAnswer, response_model_exclude_none=True)
async def items(
    entry: ReadSession,
    running: Running,
    offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ItemsAnswer:
    """What the session was taught and what became of it, by id."""
    pointer = await existing(running, entry.who, entry.session_id)
    found = await running.store.items(entry.tenant, entry.session_id, offset=offset, limit=limit)
    return ItemsAnswer(
        session_id=entry.session_id,
        total=pointer.items,
        offset=offset,
        items=[wire_item(item) for item in found],
    )


@router.get(
    "/{session_id}/feedback/{item}", response_model=ItemAnswer, response_model_exclude_none=True
)
async def read_item(entry: ReadSession, item: ItemPath, running: Running) -> ItemAnswer:
    """One feedback item."""
    return wire_item(await running.store.item(entry.tenant, entry.session_id, item))


@router.delete(
    "/{session_id}/feedback/{item}", response_model=ForgetAnswer, response_model_exclude_none=True
)
async def forget(entry: TeachSession, item: ItemPath, running: Running) -> ForgetAnswer:
    """Forget an item exactly: the session is derived again without it.

    The item's content is erased and every version that contained it is deleted. An earlier item
    that it had superseded counts again.
    """
    async with audited(running, entry.who, "forget", entry.session_id, item=item):
        forgotten = await running.rebuilder.forget(entry.tenant, entry.session_id, item)
    return ForgetAnswer(**asdict(forgotten))


async def existing(running: Runtime, who: Caller, session_id: str) -> Pointer:
    """The pointer of a session of the tenant that the caller acts for.

    Raises:
        Problem: there is no such session.
    """
    pointer = await running.store.pointer(who.tenant, session_id)
    if not pointer.exists:
        raise await _no_session(running, who, session_id)
    return pointer


async def _no_session(running: Runtime, who: Caller, session_id: str) -> Problem:
    """The problem of a session that is not there; operators are told where there is one."""
    others = await running.store.tenants_of(session_id) if who.operator else ()
    if not others:
        begins = "it begins with its first /generate or /adapt"
        return Problem("not-found", f"there is no session {session_id!r}: {begins}")
    return Problem(
        "not-found",
        f"the tenant {who.tenant!r} has no session {session_id!r}, but "
        f"{', '.join(map(repr, others[:TENANTS_TOLD]))} has: say for which tenant, with the header "
        "X-Tenant (commands: --tenant)",
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
        pinned=pointer.pinned,
        used_at=pointer.used_at,
        imported=pointer.imported,
        house=not pointer.alone,
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
        rejected=item.payload.get("rejected"),
        rating=item.payload.get("rating"),
        completion_id=item.payload.get("completion_id"),
        comment=item.payload.get("comment"),
    )
