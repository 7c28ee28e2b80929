"""`/house`: a tenant's house, which all its sessions build upon. No session token opens it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from server.api.adapt import (
    IdempotencyKey,
    digest_of,
    feedback_lesson,
    learned_later,
    lesson_of,
    naming_field,
    stored_key,
)
from server.api.admin import wire_version
from server.api.admin_schemas import RollbackBody, VersionAnswer
from server.api.audit import audited
from server.api.auth import AnyDoor, Door, Tenant
from server.api.context import Running
from server.api.feedback_schemas import (
    FeedbackBody,
    Forgot,
    ItemAnswer,
    ItemPage,
    Learned,
    Lessons,
)
from server.api.problems import RESPONSES
from server.api.sessions import ItemPath, wire_item
from server.flows.housing import no_house
from server.flows.outcome import Appended, Forgotten, Outcome, of_refusal
from server.runtime import Runtime
from server.sessions import HOUSE, Pointer

router = APIRouter(prefix="/house", tags=["house"], responses=RESPONSES)


class HouseBody(Lessons):
    """Body of `POST /house/adapt`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "examples": [
                    {
                        "prompt": "When do you open?",
                        "completion": "Come by from nine to five.",
                    }
                ]
            }
        }
    )


class HouseAnswer(BaseModel):
    """Where a house stands."""

    adapter_version: int = Field(description="0 is untaught: sessions begin with the base")
    created_at: float = Field(description="Unix time, seconds")
    updated_at: float = Field(description="Unix time, seconds")
    items: int = Field(description="feedback items ever sent, whatever became of them")
    pending_items: int
    applied_items: int
    versions: list[VersionAnswer] = Field(description="kept ones, oldest first")


@router.get("", response_model=HouseAnswer)
async def read(tenant: Tenant, running: Running) -> HouseAnswer:
    """Where the tenant's house stands."""
    return await _wire(running, await _existing(running, tenant))


@router.post("/adapt", response_model=Learned, response_model_exclude_none=True)
async def adapt(
    body: HouseBody,
    tenant: Tenant,
    door: AnyDoor,
    running: Running,
    idempotency_key: IdempotencyKey = None,
) -> Learned:
    """Teach the house: what all sessions of the tenant answer, unless they were taught otherwise.

    Examples and preferences as `POST /adapt` takes them; so are the answer and what the guard says.
    Every session follows at its next use.
    """
    await door.count(None, "feedback", len(body.examples))
    extra = {} if body.steps is None else {"steps": body.steps}
    lessons = [lesson_of(example, extra) for example in body.examples]
    async with _teaching(running, door, body, len(lessons)):
        if body.dry_run:
            return _learned(await running.teacher.dry_run(tenant, HOUSE, lessons, body.steps))
        key, digest = stored_key(idempotency_key), digest_of(body, "examples", "steps")
        appended = await running.teacher.append(tenant, HOUSE, lessons, key, digest)
        return await _taught(running, tenant, appended, body.steps)


@router.post("/feedback", response_model=Learned, response_model_exclude_none=True)
async def feedback(
    body: FeedbackBody,
    tenant: Tenant,
    door: AnyDoor,
    running: Running,
    idempotency_key: IdempotencyKey = None,
) -> Learned:
    """Teach the house with a session's completion: how good it was, or what it should have been.

    The completion may be of any session of the tenant; its prompt becomes the house's to know. The
    session itself is not taught. With `adapt` false it waits for the house's next feedback.
    """
    await door.count(None, "feedback")
    completion = await running.store.completion(tenant, body.completion_id)
    lesson = feedback_lesson(body, completion.payload)
    digest = digest_of(body, "completion_id", "rating", "correction", "adapt")
    key = stored_key(idempotency_key)
    async with _teaching(running, door, body):
        if key is None:
            appended = await running.teacher.append_once(tenant, HOUSE, lesson, digest)
        else:
            appended = await running.teacher.append(tenant, HOUSE, [lesson], key, digest)
        if not body.adapt:
            return await _waiting(running, tenant, appended)
        return await _taught(running, tenant, appended, None)


@router.get("/feedback", response_model=ItemPage, response_model_exclude_none=True)
async def items(
    tenant: Tenant,
    running: Running,
    offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ItemPage:
    """What the house was taught and what became of it, by id."""
    pointer = await _existing(running, tenant)
    found = await running.store.items(tenant, HOUSE, offset=offset, limit=limit)
    return ItemPage(total=pointer.items, offset=offset, items=[wire_item(one) for one in found])


@router.get("/feedback/{item}", response_model=ItemAnswer, response_model_exclude_none=True)
async def read_item(tenant: Tenant, item: ItemPath, running: Running) -> ItemAnswer:
    """One feedback item of the house."""
    await _existing(running, tenant)
    return wire_item(await running.store.item(tenant, HOUSE, item))


@router.delete("/feedback/{item}", response_model=Forgot, response_model_exclude_none=True)
async def forget(tenant: Tenant, door: AnyDoor, item: ItemPath, running: Running) -> Forgot:
    """Forget an item of the house exactly, in the house and in every session of the tenant.

    No version that contains it is left; sessions in force are derived again without it.
    """
    await _existing(running, tenant)
    async with audited(running, door.who, "house forget", None, item=item):
        forgotten = await running.houses.forget(tenant, item)
    return Forgot(**_fields(forgotten, Forgot))


@router.post("/rollback", response_model=HouseAnswer)
async def rollback(
    body: RollbackBody, tenant: Tenant, door: AnyDoor, running: Running
) -> HouseAnswer:
    """Make a kept version of the house the one in force again; feedback that it lacks is refused.

    Version 0 is untaught: sessions go on with what they were taught themselves.
    """
    await _existing(running, tenant)
    version = body.adapter_version
    async with audited(running, door.who, "house rollback", None, adapter_version=version):
        pointer = await running.store.rollback(tenant, HOUSE, version)
    return await _wire(running, pointer)


@router.delete("", status_code=204)
async def delete(tenant: Tenant, door: AnyDoor, running: Running) -> None:
    """Delete the house with its feedback and versions, and whatever sessions have of it."""
    async with audited(running, door.who, "house delete"):
        await running.houses.delete(tenant)


@asynccontextmanager
async def _teaching(
    running: Runtime, door: Door, body: HouseBody | FeedbackBody, items: int = 1
) -> AsyncIterator[None]:
    """Write down what an operator teaches, and name the field that a lesson is wrong in."""
    async with audited(running, door.who, "house teach", None, items=items):
        with naming_field(body):
            yield


async def _taught(running: Runtime, tenant: str, appended: Appended, steps: int | None) -> Learned:
    if appended.outcome is not None:
        return _learned(appended.outcome)
    with learned_later("the house's log", "GET /house/feedback"):
        return _learned(
            await running.teacher.teach(
                tenant, HOUSE, appended.items, steps, appended.key, appended.incarnation
            )
        )


async def _waiting(running: Runtime, tenant: str, appended: Appended) -> Learned:
    pointer = await running.store.pointer(tenant, HOUSE)
    waits = "it is in the log, and is learned with the house's next feedback"
    return _learned(of_refusal(HOUSE, appended.items, pointer.version, waits))


def _learned(outcome: Outcome) -> Learned:
    return Learned(**_fields(outcome, Learned))


def _fields(value: Outcome | Forgotten, model: type[BaseModel]) -> dict[str, Any]:
    """What is told of a session's outcome, without the name that nobody else knows."""
    return {name: known for name, known in asdict(value).items() if name in model.model_fields}


async def _existing(running: Runtime, tenant: str) -> Pointer:
    pointer = await running.store.pointer(tenant, HOUSE)
    if not pointer.exists:
        raise no_house()
    return pointer


async def _wire(running: Runtime, pointer: Pointer) -> HouseAnswer:
    versions = await running.store.versions(pointer.tenant, HOUSE)
    return HouseAnswer(
        adapter_version=pointer.version,
        created_at=pointer.created_at,
        updated_at=pointer.updated_at,
        items=pointer.items,
        pending_items=pointer.pending,
        applied_items=pointer.applied,
        versions=[wire_version(version) for version in versions],
    )
