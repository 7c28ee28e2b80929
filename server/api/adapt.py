"""`POST /adapt`, `POST /feedback`, `GET /jobs/{id}`: how a session is taught."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Header, Path
from fastapi.responses import JSONResponse

from server.api.auth import Tenant
from server.api.context import Running
from server.api.problems import RESPONSES, Problem, invalid
from server.api.schemas import (
    MAX_EXAMPLES,
    AdaptAnswer,
    AdaptBody,
    FeedbackBody,
    JobAnswer,
    Wire,
)
from server.engine import EngineBusy, EngineStopped
from server.flows.outcome import Appended, Lesson, LessonError, Outcome
from server.runtime import Runtime

router = APIRouter(tags=["adapt"], responses=RESPONSES)

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="drawn by the client; a repeated request with the same key is taught once and "
        "answered the same, for a day",
    ),
]

# A job is named by its session and items, so that the log alone can answer for it.
_JOB = re.compile(r"(?P<session>[A-Za-z0-9._:@-]{1,128})~(?P<first>\d{1,12})-(?P<last>\d{1,12})")


@router.post(
    "/adapt",
    response_model=AdaptAnswer,
    response_model_exclude_none=True,
    responses={202: {"model": JobAnswer, "description": "`wait` was false: ask for the job"}},
)
async def adapt(
    body: AdaptBody,
    tenant: Tenant,
    running: Running,
    idempotency_key: IdempotencyKey = None,
) -> AdaptAnswer | JSONResponse:
    """Teach a session with examples of what it should answer.

    The examples are in the log, durably, before anything is learned; the adapter is then derived
    over all of the session's feedback. `accepted` false means that the guard refused the result:
    the version stays as it is and `reason` says why.
    """
    # Kept with the items, so that whoever finishes them after a crash takes as many.
    extra = {} if body.steps is None else {"steps": body.steps}
    lessons = [Lesson(e.turns, e.completion, extra=extra) for e in body.examples]
    teacher, session_id = running.teacher, body.session_id
    try:
        if body.dry_run:
            return _wire(await teacher.dry_run(tenant, session_id, lessons, body.steps))
        key, digest = _stored_key(idempotency_key), _digest(body, "session_id", "examples", "steps")
        appended = await teacher.append(tenant, session_id, lessons, key, digest)
    except LessonError as error:
        raise invalid(f"examples[{error.index}]", str(error)) from error
    if body.wait:
        return await _taught(running, tenant, session_id, appended, body.steps)
    if appended.outcome is None:
        work = teacher.teach(tenant, session_id, appended.items, body.steps, key)
        running.background.spawn(work, f"a job of session {session_id}")
    job = _job_answer(session_id, appended.items, appended.outcome)
    return JSONResponse(
        job.model_dump(mode="json", exclude_none=True),
        status_code=202,
        headers={"Location": f"/jobs/{job.id}"},
    )


@router.post("/feedback", response_model=AdaptAnswer, response_model_exclude_none=True)
async def feedback(
    body: FeedbackBody,
    tenant: Tenant,
    running: Running,
    idempotency_key: IdempotencyKey = None,
) -> AdaptAnswer:
    """Say what a completion should have been: its session learns the correction.

    `completion_id` is the `id` of an answer of `/generate` or of a chat completion with a session.
    The same correction of the same completion is taught once, with or without an `Idempotency-Key`.
    """
    completion = await running.store.completion(tenant, body.completion_id)
    session_id, kept = completion.session_id, completion.payload
    extra = {"completion_id": body.completion_id, "corrects": kept["text"]}
    if body.comment is not None:
        extra["comment"] = body.comment
    lesson = Lesson(kept["messages"], body.correction, "correction", extra)
    digest = _digest(body, "completion_id", "correction")
    key = _stored_key(idempotency_key)
    try:
        if key is None:
            appended = await running.teacher.append_once(tenant, session_id, lesson, digest)
        else:
            appended = await running.teacher.append(tenant, session_id, [lesson], key, digest)
    except LessonError as error:
        raise invalid("correction", str(error)) from error
    return await _taught(running, tenant, session_id, appended, None)


@router.get("/jobs/{job_id}", response_model=JobAnswer, response_model_exclude_none=True)
async def job(
    job_id: Annotated[str, Path(max_length=200)], tenant: Tenant, running: Running
) -> JobAnswer:
    """What became of feedback that was not waited for.

    A job is answered from the session's log, so it outlives the server and any replica knows it.
    """
    named = _JOB.fullmatch(job_id)
    items = range(int(named["first"]), int(named["last"]) + 1) if named else range(0)
    if named is None or not 1 <= len(items) <= MAX_EXAMPLES:
        raise Problem("not-found", f"there is no job {job_id!r}")
    session_id = named["session"]
    outcome = await running.teacher.outcome(tenant, session_id, items)
    return _job_answer(session_id, items, outcome)


async def _taught(
    running: Runtime, tenant: str, session_id: str, appended: Appended, steps: int | None
) -> AdaptAnswer:
    if appended.outcome is not None:
        return _wire(appended.outcome)
    try:
        return _wire(
            await running.teacher.teach(tenant, session_id, appended.items, steps, appended.key)
        )
    except (EngineBusy, EngineStopped) as error:
        name = "busy" if isinstance(error, EngineBusy) else "unavailable"
        raise Problem(
            name,
            f"{error}. The feedback is in the log and will be learned without being sent again: "
            f"GET /jobs/{_job_id(session_id, appended.items)} tells when",
        ) from error


def _wire(outcome: Outcome) -> AdaptAnswer:
    return AdaptAnswer(**asdict(outcome))


def _job_answer(session_id: str, items: Sequence[int], outcome: Outcome | None) -> JobAnswer:
    return JobAnswer(
        id=_job_id(session_id, items),
        session_id=session_id,
        status="pending" if outcome is None else "done",
        result=None if outcome is None else _wire(outcome),
    )


def _job_id(session_id: str, items: Sequence[int]) -> str:
    return f"{session_id}~{items[0]}-{items[-1]}"


def _stored_key(key: str | None) -> str | None:
    """A client's key as the store keeps it, apart from the keys that the server draws itself."""
    return None if key is None else "client-" + hashlib.sha256(key.encode()).hexdigest()


def _digest(body: Wire, *fields: str) -> str:
    """Names a request by the fields that decide what is taught."""
    content = body.model_dump(mode="json", include=set(fields))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
