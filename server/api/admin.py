"""`/admin`: the operator's view of every tenant's sessions and of the engine."""

import asyncio
import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from server.api.admin_schemas import (
    ITEMS_SHOWN,
    LOG_LINES,
    CompareAnswer,
    CompareBody,
    ComparedAnswer,
    ComparedToken,
    LogLine,
    PinBody,
    RollbackBody,
    SessionDetail,
    VersionAnswer,
)
from server.api.audit import audited
from server.api.auth import Operator
from server.api.context import Running, SessionPath
from server.api.generate import naming
from server.api.problems import RESPONSES
from server.api.schemas import (
    SessionAnswer,
)
from server.api.sessions import existing, wire, wire_item
from server.api.streams import connected
from server.flows.comparing import Side, compare
from server.flows.exporting import peft_zip
from server.runtime import Runtime
from server.sessions import Event, Version

router = APIRouter(prefix="/admin", tags=["admin"], responses=RESPONSES)

_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]")


@router.get("/sessions/{session_id}", response_model=SessionDetail)
async def session(session_id: SessionPath, who: Operator, running: Running) -> SessionDetail:
    """One session: versions with losses and norms, feedback and log.

    The tenant is the header `X-Tenant`, `default` without it.
    """
    pointer = await existing(running, who, session_id)
    store, name = running.store, (who.tenant, session_id)
    start = max(0, pointer.items - ITEMS_SHOWN)
    return SessionDetail(
        tenant=pointer.tenant,
        base_fingerprint=pointer.base_fingerprint,
        versions=[wire_version(version) for version in await store.versions(*name)],
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
    await existing(running, who, session_id)
    version = body.adapter_version
    async with audited(running, who, "rollback", session_id, adapter_version=version):
        return wire(await running.store.rollback(who.tenant, session_id, version))


@router.post("/sessions/{session_id}/reset", response_model=SessionAnswer)
async def reset(session_id: SessionPath, who: Operator, running: Running) -> SessionAnswer:
    """Make a session untaught; its feedback is refused, and kept versions can be gone back to."""
    await existing(running, who, session_id)
    async with audited(running, who, "reset", session_id):
        return wire(await running.store.reset(who.tenant, session_id))


@router.post("/sessions/{session_id}/pin", response_model=SessionAnswer)
async def pin(
    body: PinBody, session_id: SessionPath, who: Operator, running: Running
) -> SessionAnswer:
    """Have a session keep its version; feedback waits in its log until it is unpinned.

    Forgetting, rollback and reset change it all the same.
    """
    await existing(running, who, session_id)
    async with audited(running, who, "pin" if body.pinned else "unpin", session_id):
        pointer = await running.houses.pin(who.tenant, session_id, body.pinned)
    if pointer.pending and not pointer.pinned:
        running.background.spawn(running.teacher.finish(pointer), f"unpinned {session_id}")
    return wire(pointer)


@router.get(
    "/sessions/{session_id}/export",
    response_class=Response,
    responses={200: {"content": {"application/zip": {}}}},
)
async def export(
    session_id: SessionPath,
    who: Operator,
    running: Running,
    adapter_version: Annotated[
        int | None, Query(ge=1, lt=2**53, description="a kept version; default newest")
    ] = None,
) -> Response:
    """A session's adapter as a zip that `PeftModel.from_pretrained` loads once it is unpacked.

    The tenant's house is in it: an untaught session's is the house's, and a taught one's is derived
    anew over both their items where they answer side by side here.
    """
    await existing(running, who, session_id)
    chosen, state = await running.chooser.exported(who.tenant, session_id, adapter_version)
    number = chosen.adapter_version
    about: dict[str, Any] = {"session_id": session_id, "adapter_version": number}
    if chosen.contained_house:
        about["house_version"] = chosen.contained_house
    async with audited(running, who, "export", session_id, adapter_version=number):
        content = await asyncio.to_thread(peft_zip, running.artifact, state, about)
    name = f"{_FILE_NAME.sub('_', session_id)}-{number}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="application/zip", headers=headers)


@router.post(
    "/sessions/{session_id}/compare",
    response_model=CompareAnswer,
    response_model_exclude_none=True,
)
async def compare_answers(
    body: CompareBody,
    request: Request,
    session_id: SessionPath,
    who: Operator,
    running: Running,
) -> CompareAnswer:
    """Answer a prompt by the base and by the session, and have both score both answers."""
    await existing(running, who, session_id)
    with naming(body.place):
        comparing = compare(
            running.answering,
            who.tenant,
            session_id,
            body.turns,
            body.max_tokens,
            body.adapter_version,
        )
        found = await connected(request, comparing)
    return CompareAnswer(
        session_id=session_id,
        adapter_version=found.adapter_version,
        adapter_used=found.adapter_used,
        house_version=found.house_version or None,
        in_context=None if found.shown is None else list(found.shown),
        base=_side(running, found.base),
        session=_side(running, found.session),
    )


@router.get("/engine")
async def engine(_: Operator, running: Running) -> dict[str, Any]:
    """The engine's queues, batch, slots, rates and prefix cache, and the model that it serves."""
    artifact = running.artifact
    return {
        "model": artifact.name,
        "encoder": artifact.encoder,
        "base_fingerprint": artifact.fingerprint,
        "rule_hash": artifact.rule_hash,
        "context_tokens": artifact.context_tokens,
        "scope": artifact.spec.scope,
        "rank": artifact.spec.rank,
        "steps": artifact.rule.steps,
        **asdict(running.engine.status()),
    }


def wire_version(version: Version) -> VersionAnswer:
    """A version as operators see it."""
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
        house_version=int(record.house.partition(".")[2] or 0) or None,
    )


def _side(running: Runtime, side: Side) -> ComparedAnswer:
    text_of = running.encoding.token_text
    return ComparedAnswer(
        text=side.text,
        finish_reason="length" if side.finish_reason == "length" else "stop",
        tokens=[
            ComparedToken(
                id=token.id,
                token=text_of(token.id),
                base_logprob=token.base,
                session_logprob=token.session,
            )
            for token in side.tokens
        ],
    )


def _line(event: Event) -> LogLine:
    return LogLine(at=event.at, type=event.type, fields=dict(event.fields))
