"""`POST /adapt`, `POST /feedback`, `GET /jobs/{id}`: how a session is taught."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path
from fastapi.responses import JSONResponse

from server.api.auth import AnyDoor, Door, one_session
from server.api.context import Running, SessionHeader
from server.api.feedback_schemas import (
    MAX_EXAMPLES,
    AdaptAnswer,
    AdaptBody,
    ExampleBody,
    FeedbackBody,
    JobAnswer,
    Lessons,
)
from server.api.problems import RESPONSES, Problem, invalid
from server.api.schemas import (
    Wire,
)
from server.engine import EngineBusy, EngineFailed, EngineStopped
from server.flows.outcome import Appended, Lesson, LessonError, Outcome
from server.flows.teaching import PINNED
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
    door: AnyDoor,
    running: Running,
    idempotency_key: IdempotencyKey = None,
    x_session_id: SessionHeader = None,
) -> AdaptAnswer | JSONResponse:
    """Teach a session with examples of what it should answer.

    The examples are in the log, durably, before anything is learned; the adapter is then derived
    over all of the session's feedback. `accepted` false means that the guard refused the result:
    the version stays as it is and `reason` says why. An update that goes too far is taken at a half
    or a quarter of its length where that will do; `reason` says so.
    """
    entry = await door.enter(one_session(x_session_id, body.session_id), "teach")
    await entry.teach(len(body.examples))
    tenant, session_id = entry.tenant, entry.session_id
    body = body.model_copy(update={"session_id": session_id})
    # Kept with the items, so that whoever finishes them after a crash takes as many.
    extra = {} if body.steps is None else {"steps": body.steps}
    lessons = [lesson_of(example, extra) for example in body.examples]
    teacher = running.teacher
    with naming_field(body):
        if body.dry_run:
            return _wire(await teacher.dry_run(tenant, session_id, lessons, body.steps))
        key = stored_key(idempotency_key)
        digest = digest_of(body, "session_id", "examples", "steps")
        appended = await teacher.append(tenant, session_id, lessons, key, digest)
    if body.wait:
        return await taught(running, tenant, session_id, appended, body.steps)
    if appended.outcome is None:
        work = teacher.teach(
            tenant, session_id, appended.items, body.steps, key, appended.incarnation
        )
        running.background.spawn(work, f"a job of session {session_id}")
    return _accepted(session_id, appended)


@router.post(
    "/feedback",
    response_model=AdaptAnswer,
    response_model_exclude_none=True,
    responses={202: {"model": JobAnswer, "description": "`adapt` was false: it is in the log"}},
)
async def feedback(
    body: FeedbackBody,
    door: AnyDoor,
    running: Running,
    idempotency_key: IdempotencyKey = None,
    x_session_id: SessionHeader = None,
) -> AdaptAnswer | JSONResponse:
    """Say how good a completion was, or what it should have been: its session learns from it.

    `completion_id` is the `id` of an answer of `/generate` or of a chat completion with a session.
    The same feedback on the same completion is taught once, with or without an `Idempotency-Key`;
    without one it is taken anew once it does not count any more (superseded, forgotten, refused, or
    taken back by rollback or reset). Ratings alone teach little: all of a session's together weigh
    at most half of what its corrections do.
    """
    session_id, appended = await tell(running, door, body, idempotency_key, x_session_id)
    if not body.adapt:
        return _accepted(session_id, appended)
    return await taught(running, door.who.tenant, session_id, appended, None)


@router.get("/jobs/{job_id}", response_model=JobAnswer, response_model_exclude_none=True)
async def job(
    job_id: Annotated[str, Path(max_length=200)], door: AnyDoor, running: Running
) -> JobAnswer:
    """What became of feedback that was not waited for.

    A job is answered from the session's log, so it outlives the server and any replica knows it.
    """
    named = _JOB.fullmatch(job_id)
    items = range(int(named["first"]), int(named["last"]) + 1) if named else range(0)
    if named is None or not 1 <= len(items) <= MAX_EXAMPLES:
        raise Problem("not-found", f"there is no job {job_id!r}")
    entry = await door.enter(named["session"], "read")
    outcome = await running.teacher.outcome(entry.tenant, entry.session_id, items)
    return job_answer(entry.session_id, items, outcome)


async def tell(
    running: Runtime,
    door: Door,
    body: FeedbackBody,
    idempotency_key: str | None,
    of_session: str | None = None,
) -> tuple[str, Appended]:
    """Put feedback on a completion into its session's log; ``of_session`` is whose it should be.

    Returns:
        The session's id, and what was appended.

    Raises:
        Problem, SessionStoreError, SessionFull: nothing was kept.
    """
    entry, completion = await door.enter_completion(running.store, body.completion_id, "teach")
    tenant, session_id = entry.tenant, entry.session_id
    if of_session not in (None, session_id):
        raise invalid("X-Session-ID", "the completion is of another session", location="header")
    await entry.teach(1)
    lesson = feedback_lesson(body, completion.payload)
    digest = digest_of(body, "completion_id", "rating", "correction", "adapt")
    key = stored_key(idempotency_key)
    with naming_field(body):
        if key is None:
            appended = await running.teacher.append_once(tenant, session_id, lesson, digest)
        else:
            appended = await running.teacher.append(tenant, session_id, [lesson], key, digest)
    return session_id, appended


@contextmanager
def naming_field(body: Lessons | FeedbackBody) -> Iterator[None]:
    """Turn what is wrong with a lesson into the problem of the field that it came in.

    Raises:
        Problem.
    """
    try:
        yield
    except LessonError as error:
        if isinstance(body, Lessons):
            field = f"examples[{error.index}]"
        else:
            field = "rating" if body.correction is None else "correction"
        raise invalid(field, str(error)) from error


def lesson_of(example: ExampleBody, extra: Mapping[str, Any]) -> Lesson:
    """An example as the flows take it."""
    if example.chosen is not None:
        return Lesson(example.turns, example.chosen, "preference", example.rejected, extra=extra)
    return Lesson(example.turns, example.completion or "", extra=extra)


def feedback_lesson(body: FeedbackBody, completion: Mapping[str, Any]) -> Lesson:
    """Feedback on a completion as the flows take it."""
    extra: dict[str, Any] = {"completion_id": body.completion_id}
    if body.comment is not None:
        extra["comment"] = body.comment
    if not body.adapt:
        extra["deferred"] = True
    if body.correction is not None and body.rating is not None:
        extra["rating"] = body.rating
    text, cut = completion["text"], completion.get("finish_reason") == "length"
    turns, wanted, raw = completion["messages"], body.correction, completion.get("raw", False)
    if wanted is None:
        return Lesson(turns, text, "rating", None, body.rating or 0, cut, raw, extra)
    if wanted == text and not cut:
        return Lesson(turns, wanted, "correction", raw=raw, extra=extra)
    return Lesson(turns, wanted, "correction", text, cut=cut, raw=raw, extra=extra)


async def taught(
    running: Runtime, tenant: str, session_id: str, appended: Appended, steps: int | None
) -> AdaptAnswer:
    """Learn what was appended.

    Raises:
        Problem: not now, or the engine failed on it; it is in the log. SessionStoreError.
    """
    if appended.outcome is not None:
        return _wire(appended.outcome)
    job = f"GET /jobs/{_job_id(session_id, appended.items)}"
    with learned_later("the log", job):
        return _wire(
            await running.teacher.teach(
                tenant, session_id, appended.items, steps, appended.key, appended.incarnation
            )
        )


@contextmanager
def learned_later(where: str, asked_at: str) -> Iterator[None]:
    """Say of feedback that the engine cannot learn now that it is kept, and who tells when it was;
    of what it failed on, who tells what became of it.

    Raises:
        Problem.
    """
    try:
        yield
    except EngineFailed as error:
        detail = f"{error}. The feedback is in {where}: {asked_at} tells what became of it"
        raise Problem("internal", detail) from error
    except (EngineBusy, EngineStopped) as error:
        name = "busy" if isinstance(error, EngineBusy) else "unavailable"
        raise Problem(
            name,
            f"{error}. The feedback is in {where} and will be learned without being sent again: "
            f"{asked_at} tells when",
        ) from error


def _wire(outcome: Outcome) -> AdaptAnswer:
    waiting = True if outcome.reason == PINNED else None  # what is left out is so by far the most
    return AdaptAnswer(**asdict(outcome), waiting=waiting)


def job_answer(session_id: str, items: Sequence[int], outcome: Outcome | None) -> JobAnswer:
    """Feedback that is in the log, and what became of it so far."""
    return JobAnswer(
        id=_job_id(session_id, items),
        session_id=session_id,
        status="pending" if outcome is None else "done",
        result=None if outcome is None else _wire(outcome),
    )


def _accepted(session_id: str, appended: Appended) -> JSONResponse:
    """Feedback is in the log, and the answer does not wait for more."""
    job = job_answer(session_id, appended.items, appended.outcome)
    return JSONResponse(
        job.model_dump(mode="json", exclude_none=True),
        status_code=202,
        headers={"Location": f"/jobs/{job.id}"},
    )


def _job_id(session_id: str, items: Sequence[int]) -> str:
    return f"{session_id}~{items[0]}-{items[-1]}"


def stored_key(key: str | None) -> str | None:
    """A client's key as the store keeps it, apart from the keys that the server draws itself."""
    return None if key is None else "client-" + hashlib.sha256(key.encode()).hexdigest()


def digest_of(body: Wire, *fields: str) -> str:
    """Names a request by the fields that decide what is taught."""
    content = body.model_dump(mode="json", include=set(fields))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
