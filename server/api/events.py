"""`GET /sessions/{id}/events`: what a session learns, told as it happens."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from server.api.auth import ReadSession
from server.api.context import Running
from server.api.keyring import check_still
from server.api.problems import RESPONSES
from server.api.streams import event, respond
from server.flows.watching import Deleted, Standing
from server.runtime import Runtime
from server.sessions import Event

router = APIRouter(prefix="/sessions", tags=["sessions"], responses=RESPONSES)

NAMES: Final[Mapping[str, str]] = {
    "create": "created",
    "import": "imported",
    "feedback": "feedback",
    "promote": "adapted",
    "refuse": "refused",
    "forget": "forgotten",
    "rollback": "rolled_back",
    "reset": "reset",
    "pin": "pinned",
    "unpin": "unpinned",
}
"""What the log's words are called in the stream. One that is not here goes by its own."""
BEGINNINGS: Final = frozenset({"create", "import"})
"""Events whose `from` says in words what the session comes from; of all others it is a version."""
HEARTBEAT = ": still here\n\n"

LastEvent = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^[0-9]{1,15}-[0-9]{1,9}$",
        description="the last event that was seen: what came after it is told first",
    ),
]


@router.get(
    "/{session_id}/events",
    response_model=None,
    response_class=Response,  # no JSON
    responses={
        200: {
            "description": "server-sent events",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'id: 1700000000000-0\nevent: ready\ndata: {"session_id": '
                    '"customer-17", "adapter_version": 3}\n\n'
                    'id: 1700000000500-0\nevent: adapted\ndata: {"session_id": "customer-17", '
                    '"at": 1700000000.5, "adapter_version": 4, "items": [5]}\n\n',
                }
            },
        },
        204: {"description": "with Last-Event-ID: the session was deleted since"},
    },
)
async def events(
    entry: ReadSession,
    request: Request,
    running: Running,
    last_event_id: LastEvent = None,
) -> Response:
    """Tell what happens to a session, on whichever replica, as server-sent events.

    `ready` comes first and says which version answers now. Then, as they happen: `created`,
    `imported`, `feedback`, `adapted`, `untaught` (nothing is left to answer from), `refused`,
    `forgotten`, `rolled_back`, `reset`, `pinned`, `unpinned`, and at last `deleted`, which ends the
    stream. The session need not be there yet. Reconnect with `Last-Event-ID` and nothing is missed,
    as far as the log reaches back.
    """
    if last_event_id is not None:
        pointer = await running.store.pointer(entry.tenant, entry.session_id)
        if not pointer.exists:
            return Response(status_code=204)  # browsers stop reconnecting then
    return await _stream(request, running, entry.tenant, entry.session_id, last_event_id)


async def _stream(
    request: Request, running: Runtime, tenant: str, session_id: str, after: str | None
) -> StreamingResponse:
    return await respond(request, _told(request, running, tenant, session_id, after))


async def _told(
    request: Request, running: Runtime, tenant: str, session_id: str, after: str | None
) -> AsyncGenerator[str, None]:
    named = {"session_id": session_id}
    async with aclosing(running.watching.watch(tenant, session_id, after)) as watched:
        async for told in watched:
            await check_still(request, running)  # a stream outlives many a token
            if told is None:
                yield HEARTBEAT
            elif isinstance(told, Standing):
                yield event(named | {"adapter_version": told.version}, "ready", told.position)
            elif isinstance(told, Deleted):
                yield event(named, "deleted")
            else:
                name, data = wire(told)
                yield event(named | data, name, told.id)


def wire(told: Event) -> tuple[str, dict[str, Any]]:
    """An event's name and data as clients see it."""
    fields = dict(told.fields)
    data: dict[str, Any] = {"at": told.at}
    name = NAMES.get(told.type, told.type)
    if "version" in fields:
        data["adapter_version"] = int(fields["version"])
        if told.type == "promote" and not data["adapter_version"]:
            name = "untaught"
    if "from" in fields:
        if told.type in BEGINNINGS:
            data["from"] = fields["from"]
        else:
            data["from_version"] = int(fields["from"])
    if "first" in fields:
        data["items"] = list(range(int(fields["first"]), int(fields["last"]) + 1))
    for place in ("items", "restored", "refused"):
        if place in fields:
            data[place] = [int(number) for number in fields[place].split(",") if number]
    if "reason" in fields:
        data["reason"] = fields["reason"]
    return name, data
