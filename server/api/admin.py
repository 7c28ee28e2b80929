"""`/admin`: the operator's view of every tenant's sessions and of the engine."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from server.api.auth import Operator
from server.api.context import Running, SessionPath
from server.api.problems import RESPONSES
from server.api.schemas import ItemAnswer, SessionAnswer, Wire
from server.api.sessions import existing, wire, wire_item
from server.sessions import Event, Version
from server.settings import TENANT_PATTERN

router = APIRouter(prefix="/admin", tags=["admin"], responses=RESPONSES)

LOG_LINES = 200
ITEMS_SHOWN = 1000


class SessionRow(SessionAnswer):
    """A session in the operator's list."""

    tenant: str


class SessionsAnswer(BaseModel):
    """A page of sessions, and how many there are under the same filter."""

    total: int
    offset: int
    sessions: list[SessionRow]


class VersionAnswer(BaseModel):
    """A kept version and what it came from."""

    adapter_version: int
    created_at: float = Field(description="Unix time, seconds")
    snapshot_bytes: int
    start: str = Field(description="where the derivation began")
    items: list[int] = Field(description="feedback items derived over")
    steps: int
    step_losses: list[float | None] = Field(description="inner loss at the start of each step")
    gradient_norms: list[float | None] = Field(description="at each step, before the clip")
    loss_before: float | None = Field(description="mean loss on the items, untaught")
    loss_after: float | None = Field(description="mean loss on the items, taught")
    update_norm: float | None = Field(description="distance of the adapter from its start")
    guard_scale: float | None = Field(description="factor on the update that the guard accepted")
    duration_ms: float | None
    rule_hash: str
    base_fingerprint: str


class LogLine(BaseModel):
    """One event of a session's log."""

    at: float = Field(description="Unix time, seconds")
    type: str
    fields: dict[str, str]


class SessionDetail(SessionRow):
    """One session as the operator sees it."""

    base_fingerprint: str = Field(description="of the model that the version in force belongs to")
    versions: list[VersionAnswer] = Field(description="kept ones, oldest first")
    feedback: list[ItemAnswer] = Field(description=f"by id, the last {ITEMS_SHOWN}")
    log: list[LogLine] = Field(description=f"newest first, at most {LOG_LINES} lines")


class RollbackBody(Wire):
    """Body of `POST /admin/sessions/{id}/rollback`."""

    adapter_version: int = Field(ge=0, description="a kept version, or 0 for untaught")


TenantQuery = Annotated[
    str | None, Query(pattern=TENANT_PATTERN, description="one tenant's sessions; all without it")
]


@router.get("/sessions", response_model=SessionsAnswer)
async def sessions(
    _: Operator,
    running: Running,
    tenant: TenantQuery = None,
    contains: Annotated[str, Query(max_length=128, description="part of the session id")] = "",
    taught: Annotated[bool | None, Query(description="only taught, or only untaught ones")] = None,
    sort: Annotated[
        Literal["updated_at", "created_at", "session_id", "adapter_version", "items"], Query()
    ] = "updated_at",
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> SessionsAnswer:
    """Sessions by page, with filter and order."""
    page = await running.store.sessions(
        tenant,
        offset=offset,
        limit=limit,
        contains=contains,
        taught=taught,
        sort="version" if sort == "adapter_version" else sort,
        descending=order == "desc",
    )
    rows = [SessionRow(tenant=p.tenant, **wire(p).model_dump()) for p in page.sessions]
    return SessionsAnswer(total=page.total, offset=offset, sessions=rows)


@router.get("/sessions/{session_id}", response_model=SessionDetail)
async def session(session_id: SessionPath, who: Operator, running: Running) -> SessionDetail:
    """One session: versions with losses and norms, feedback and log.

    The tenant is the header `X-Tenant`, `default` without it.
    """
    pointer = await existing(running, who.tenant, session_id)
    store, name = running.store, (who.tenant, session_id)
    start = max(0, pointer.items - ITEMS_SHOWN)
    return SessionDetail(
        tenant=pointer.tenant,
        base_fingerprint=pointer.base_fingerprint,
        versions=[_version(version) for version in await store.versions(*name)],
        feedback=[
            wire_item(item) for item in await store.items(*name, offset=start, limit=ITEMS_SHOWN)
        ],
        log=[_line(event) for event in await store.events(*name, limit=LOG_LINES)],
        **wire(pointer).model_dump(),
    )


@router.post("/sessions/{session_id}/rollback", response_model=SessionAnswer)
async def rollback(
    body: RollbackBody, session_id: SessionPath, who: Operator, running: Running
) -> SessionAnswer:
    """Make a kept version the one in force again; feedback that it lacks is refused."""
    await existing(running, who.tenant, session_id)
    pointer = await running.store.rollback(who.tenant, session_id, body.adapter_version)
    return wire(pointer)


@router.post("/sessions/{session_id}/reset", response_model=SessionAnswer)
async def reset(session_id: SessionPath, who: Operator, running: Running) -> SessionAnswer:
    """Make a session untaught; its feedback is refused, and kept versions can be gone back to."""
    await existing(running, who.tenant, session_id)
    return wire(await running.store.reset(who.tenant, session_id))


@router.get("/engine")
async def engine(_: Operator, running: Running) -> dict[str, Any]:
    """The engine's queues, batch, slots, rates and prefix cache, and the model that it serves."""
    artifact = running.artifact
    return {
        "model": artifact.name,
        "base_fingerprint": artifact.fingerprint,
        "rule_hash": artifact.rule_hash,
        "context_tokens": artifact.context_tokens,
        "scope": artifact.spec.scope,
        "rank": artifact.spec.rank,
        "steps": artifact.rule.steps,
        **asdict(running.engine.status()),
    }


def _version(version: Version) -> VersionAnswer:
    record, guard = version.record, version.record.guard
    return VersionAnswer(
        adapter_version=version.number,
        created_at=version.created_at,
        snapshot_bytes=version.snapshot_bytes,
        start=record.start,
        items=list(record.item_ids),
        steps=record.steps,
        step_losses=list(guard.get("step_losses", ())),
        gradient_norms=list(guard.get("gradient_norms", ())),
        loss_before=record.loss_before,
        loss_after=record.loss_after,
        update_norm=record.update_norm,
        guard_scale=guard.get("scale"),
        duration_ms=guard.get("duration_ms"),
        rule_hash=record.rule_hash,
        base_fingerprint=record.base_fingerprint,
    )


def _line(event: Event) -> LogLine:
    return LogLine(at=event.at, type=event.type, fields=dict(event.fields))
