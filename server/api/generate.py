"""`POST /generate`: a session's answer, whole or as it comes."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from adapters.chat import PromptError
from server.api.auth import AnyDoor, Entry, one_session
from server.api.context import Running, SessionHeader
from server.api.problems import RESPONSES, FieldError, Problem, invalid
from server.api.schemas import (
    DEFAULT_MAX_TOKENS,
    GenerateAnswer,
    GenerateBody,
    TokenLogprob,
    Usage,
)
from server.api.streams import connected, event, respond
from server.engine import Delta, Finished, GrammarRefused, RequestTooLong, Sampling
from server.flows.answering import Answer, ChoiceError, Question, new_completion_id, whole
from server.flows.encoding import Encoding
from server.flows.in_context import InContextError
from server.runtime import Runtime

router = APIRouter(tags=["generate"], responses=RESPONSES)


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    response_model_exclude_none=True,
    responses={
        200: {
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'event: delta\ndata: {"text": "Every"}\n\n'
                    'event: done\ndata: {"id": "cmpl-…", "text": "Every parcel …"}\n\n',
                }
            }
        }
    },
)
async def generate(
    body: GenerateBody,
    request: Request,
    door: AnyDoor,
    running: Running,
    x_session_id: SessionHeader = None,
) -> GenerateAnswer | StreamingResponse:
    """Answer a prompt or a chat as this session has learned to.

    A session that is not there yet starts untaught. With `stream` the answer comes as server-sent
    events: `delta` with the next piece of text, at last `done` with the same object that a plain
    call answers, or `error` with a problem document.
    """
    entry = await door.enter(one_session(x_session_id, body.session_id), "generate")
    pieces = _pieces(running, body, _question(body, entry))
    if body.stream:
        return await respond(request, _events(pieces))
    return await connected(request, whole(pieces))


async def _events(
    pieces: AsyncGenerator[Delta | GenerateAnswer, None],
) -> AsyncGenerator[str, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, GenerateAnswer):
                yield event(piece, "done")
            elif piece.text:
                yield event({"text": piece.text}, "delta")


async def _pieces(
    running: Runtime, body: GenerateBody, question: Question
) -> AsyncGenerator[Delta | GenerateAnswer, None]:
    """The answer in pieces, its last one as clients see it, its errors naming their field."""
    with naming(body.place):
        async with aclosing(running.answering.answer(question, new_completion_id())) as pieces:
            async for piece in pieces:
                yield _wire(running.encoding, piece) if isinstance(piece, Answer) else piece


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Turn what is wrong with a question into the problem of its field; turns came in ``place``."""
    try:
        yield
    except ChoiceError as error:
        raise invalid(f"choices[{error.index}]", str(error)) from error
    except PromptError as error:
        message = str(error)
        if place.endswith("prompt"):
            message = message.replace("messages[0].content", "the prompt")
        raise invalid(place, message) from error
    except InContextError as error:
        raise invalid("in_context", str(error)) from error
    except RequestTooLong as error:
        raise invalid(place, str(error)) from error
    except GrammarRefused as error:
        wrong = FieldError(location="body", path="response_format", message=str(error))
        raise Problem("unsupported", f"response_format: {error}", errors=[wrong]) from error


def usage(finished: Finished) -> Usage:
    """The tokens of a finished answer."""
    return Usage(
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        cached_tokens=finished.cached_tokens,
        total_tokens=finished.prompt_tokens + finished.completion_tokens,
    )


def _question(body: GenerateBody, entry: Entry) -> Question:
    sampling = Sampling(
        max_tokens=max(body.max_tokens or DEFAULT_MAX_TOKENS, body.min_tokens),
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=tuple(body.stop),
        seed=body.seed,
        logprobs=body.logprobs,
        choices=tuple(body.choices or ()),
        schema=None if body.response_format is None else body.response_format.schema_text,
    )
    return Question(
        entry.tenant,
        entry.session_id,
        body.turns,
        sampling,
        max_tokens=body.max_tokens,
        default_tokens=DEFAULT_MAX_TOKENS,
        version=body.adapter_version,
        recall=body.recall,
        in_context=body.in_context,
    )


def _wire(encoding: Encoding, answer: Answer) -> GenerateAnswer:
    finished = answer.finished
    fields: dict[str, Any] = {}
    if answer.shown is not None:
        fields["in_context"] = list(answer.shown)
    if answer.sampled:
        fields["logprobs"] = [
            TokenLogprob(id=token.id, token=encoding.token_text(token.id), logprob=token.logprob)
            for token in answer.sampled
        ]
    return GenerateAnswer(
        id=answer.id,
        session_id=answer.session_id or "",
        text=finished.text,
        finish_reason="length" if finished.finish_reason == "length" else "stop",
        adapter_version=answer.adapter_version,
        usage=usage(finished),
        adapter_used=finished.adapter_used,
        house_version=answer.house_version or None,
        choice_logprobs=finished.choice_logprobs,
        **fields,
    )
