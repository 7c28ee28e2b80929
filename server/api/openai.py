"""`/v1`: OpenAI's API over sessions, for clients that speak it already."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from server.api.auth import AnyDoor, Door, one_session
from server.api.context import Running, SessionHeader
from server.api.generate import naming
from server.api.openai_schemas import (
    COMPLETION_TOKENS,
    ChatBody,
    Completing,
    CompletionBody,
    ModelCard,
    ModelList,
)
from server.api.openai_shapes import ChatLayout, Chunks, Labels, Layout, TextLayout, whole_object
from server.api.problems import RESPONSES, Problem
from server.api.schemas import DEFAULT_MAX_TOKENS
from server.api.streams import connected, event, respond
from server.engine import Delta, Sampling
from server.flows.answering import Answer, Question, new_completion_id, tokens_of
from server.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["openai"], responses=RESPONSES)

Pieces = AsyncGenerator[tuple[int, Delta | Answer], None]


@router.get("/models", response_model=ModelList)
async def models(_: AnyDoor, running: Running, request: Request) -> ModelList:
    """The model that is served. Sessions are no models: name them apart."""
    return ModelList(data=[_card(running, request)])


@router.get("/models/{model:path}", response_model=ModelCard)
async def model(model: str, _: AnyDoor, running: Running, request: Request) -> ModelCard:
    """One model, by its exact name."""
    _check_model(running, model)
    return _card(running, request)


@router.post("/chat/completions", response_model=None)
async def chat_completions(
    body: ChatBody,
    request: Request,
    door: AnyDoor,
    running: Running,
    x_session_id: SessionHeader = None,
) -> dict[str, Any] | StreamingResponse:
    """Answer a chat. With a session it answers as it has learned to, and the completion's id can
    get feedback; without one the base model answers and nothing is kept.

    With `n` each choice can get feedback by its own `completion_id`; the first one's is the `id`.
    """
    _check_model(running, body.model)
    session_id = await _enter(door, body, x_session_id)
    wanted = body.max_completion_tokens or body.max_tokens
    logprobs, top = bool(body.logprobs), body.top_logprobs or 0
    sampling = replace(
        _sampling(body, wanted or DEFAULT_MAX_TOKENS, logprobs, top),
        schema=None if body.response_format is None else body.response_format.schema_text,
    )
    question = Question(
        door.who.tenant,
        session_id,
        body.turns,
        sampling,
        wanted,
        default_tokens=DEFAULT_MAX_TOKENS,
        in_context=body.in_context,
    )
    labels = Labels.of(running, new_completion_id("chatcmpl"), session_id)
    layout = ChatLayout(running.encoding, logprobs)
    return await _answer(running, request, body, question, labels, layout, "messages")


@router.post("/completions", response_model=None)
async def completions(
    body: CompletionBody,
    request: Request,
    door: AnyDoor,
    running: Running,
    x_session_id: SessionHeader = None,
) -> dict[str, Any] | StreamingResponse:
    """Go on from a bare text, without a chat template.

    With a session its adapter acts from the prompt's last token on, where its gate lets it: prompts
    are compared as those of chats are, so it answers texts near to what it was taught. Feedback on
    the completion teaches how that text goes on.
    """
    _check_model(running, body.model)
    session_id = await _enter(door, body, x_session_id)
    sampling = _sampling(
        body, body.max_tokens or COMPLETION_TOKENS, body.logprobs is not None, body.logprobs or 0
    )
    turns = [{"role": "user", "content": body.prompt}]
    question = Question(
        door.who.tenant,
        session_id,
        turns,
        sampling,
        body.max_tokens,
        default_tokens=COMPLETION_TOKENS,
        raw=True,
    )
    labels = Labels.of(running, new_completion_id(), session_id)
    layout = TextLayout(running.encoding, body.prompt, bool(body.echo), body.logprobs)
    return await _answer(running, request, body, question, labels, layout, "prompt")


async def _answer(
    running: Runtime,
    request: Request,
    body: Completing,
    question: Question,
    labels: Labels,
    layout: Layout,
    place: str,
) -> dict[str, Any] | StreamingResponse:
    count = body.n or 1
    ids = [labels.choice_id(index) for index in range(count)]
    pieces = _pieces(running, question, ids, place)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = Chunks(labels, layout, with_usage)
        return await respond(request, _events(pieces, chunks, count))
    answers = await connected(request, _whole(pieces, count))
    return whole_object(labels, layout, answers)


async def _pieces(running: Runtime, question: Question, ids: list[str], place: str) -> Pieces:
    """The answers in pieces, their errors naming their field."""
    with naming(place):
        async with aclosing(running.answering.answers(question, ids)) as pieces:
            async for piece in pieces:
                yield piece


async def _whole(pieces: Pieces, count: int) -> list[Answer]:
    found: dict[int, Answer] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            if isinstance(piece, Answer):
                found[index] = piece
    return [found[index] for index in range(count)]


async def _events(pieces: Pieces, chunks: Chunks, count: int) -> AsyncGenerator[str, None]:
    begun: set[int] = set()
    found: dict[int, Answer] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            if index not in begun:
                begun.add(index)
                for chunk in chunks.begin(index):
                    yield event(chunk)
            if isinstance(piece, Answer):
                found[index] = piece
                yield event(chunks.end(index, piece))
            elif piece.text or piece.logprobs:
                yield event(chunks.piece(index, piece.text, tokens_of(piece)))
    for chunk in chunks.usage([found[index] for index in range(count)]):
        yield event(chunk)
    yield event("[DONE]")


def _sampling(body: Completing, max_tokens: int, logprobs: bool, top: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=tuple(body.stop or ()),
        seed=body.seed,
        logprobs=logprobs,
        top_logprobs=top,
    )


async def _enter(door: Door, body: Completing, header: str | None) -> str | None:
    """The session that answers; None for the base alone."""
    named = one_session(header, body.session_id)
    entry = await door.enter_any(named, "generate", body.n or 1)
    return None if entry is None else entry.session_id


def _check_model(running: Runtime, name: str) -> None:
    served = running.artifact.name
    if name != served:
        raise Problem("not-found", f"there is no model {name!r}: this server has {served!r}")


def _card(running: Runtime, request: Request) -> ModelCard:
    return ModelCard(
        id=running.artifact.name,
        created=request.app.state.started_at,
        context_tokens=running.artifact.context_tokens,
    )
