"""`POST /feedback/batch`: many pieces of feedback in one request, each answered by itself."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter

from adapters.config import AdapterError
from server.api.adapt import IdempotencyKey, job_answer, taught, tell
from server.api.auth import AnyDoor, Door
from server.api.context import Running
from server.api.feedback_schemas import BatchAnswer, BatchBody, BatchElement, FeedbackBody
from server.api.handlers import to_problem
from server.api.problems import RESPONSES, Problem, ProblemDocument
from server.engine import EngineError
from server.flows.outcome import Appended
from server.runtime import Runtime
from server.sessions import SessionStoreError

router = APIRouter(tags=["adapt"], responses=RESPONSES)

_ANSWERED = (Problem, AdapterError, EngineError, SessionStoreError)
"""What an element can be refused for without the others being touched."""


@dataclass(frozen=True)
class _Told:
    number: int
    session_id: str
    appended: Appended


@router.post("/feedback/batch", response_model=BatchAnswer, response_model_exclude_none=True)
async def feedback_batch(
    body: BatchBody, door: AnyDoor, running: Running, idempotency_key: IdempotencyKey = None
) -> BatchAnswer:
    """Send up to 64 pieces of feedback, about completions of any of the tenant's sessions.

    Each element is in the log or is refused by itself, in their order, and is answered as
    `POST /feedback` would; a malformed body is refused as a whole, and nothing is kept. What is of
    one session is learned in one derivation: accepted or refused together. Sending the batch again
    teaches nothing twice, as with single feedback. Each element counts as a request of its own.
    """
    found: dict[int, BatchElement] = {}
    learn: dict[tuple[str, str], list[_Told]] = {}  # by session and incarnation
    for number, element in enumerate(body.feedback):
        # A key of each element's own, which no header can hold.
        key = None if idempotency_key is None else f"{number}\0{idempotency_key}"
        told = await _tell(running, door, number, element, key)
        if isinstance(told, BatchElement):
            found[number] = told
        elif not element.adapt:
            job = job_answer(told.session_id, told.appended.items, told.appended.outcome)
            found[number] = BatchElement(status=202, job=job)
        else:
            learn.setdefault((told.session_id, told.appended.incarnation), []).append(told)
    tenant = door.who.tenant
    learned = [_learn(running, tenant, name, group) for (name, _), group in learn.items()]
    for part in await asyncio.gather(*learned):  # sessions that come together learn together
        found |= part
    return BatchAnswer(results=[found[number] for number in range(len(body.feedback))])


async def _tell(
    running: Runtime, door: Door, number: int, element: FeedbackBody, key: str | None
) -> _Told | BatchElement:
    try:
        session_id, appended = await tell(running, door, element, key)
    except _ANSWERED as error:
        return _refused(error)
    return _Told(number, session_id, appended)


async def _learn(
    running: Runtime, tenant: str, session_id: str, group: Sequence[_Told]
) -> dict[int, BatchElement]:
    """Derive once over all of a session's elements; then each only has to be answered."""
    new = {item for told in group if not told.appended.outcome for item in told.appended.items}
    found = {}
    try:
        if new:
            own = Appended(tuple(sorted(new)), group[0].appended.incarnation, None)
            await taught(running, tenant, session_id, own, None)
        for told in group:
            result = await taught(running, tenant, session_id, told.appended, None)
            found[told.number] = BatchElement(status=200, result=result)
    except _ANSWERED as error:
        return {told.number: found.get(told.number, _refused(error)) for told in group}
    return found


def _refused(error: Exception) -> BatchElement:
    problem = to_problem(error)
    document = ProblemDocument.model_validate(
        {**problem.document(), "errors": list(problem.errors) or None}
    )
    return BatchElement(status=problem.status, problem=document)
