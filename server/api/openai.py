"""`/v1`: OpenAI's chat API over sessions, for clients that speak it already."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse

from server.api.auth import Tenant
from server.api.context import Running
from server.api.generate import naming
from server.api.openai_schemas import ChatBody, ChatUsage, ModelCard, ModelList
from server.api.problems import RESPONSES, Problem, invalid
from server.api.schemas import DEFAULT_MAX_TOKENS, SESSION_ID_PATTERN
from server.api.streams import connected, event, respond
from server.engine import Delta, Sampling
from server.flows.answering import Answer, Question, Sampled, new_completion_id, whole
from server.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["openai"], responses=RESPONSES)

SessionHeader = Annotated[
    str | None, Header(alias="X-Session-ID", pattern=SESSION_ID_PATTERN, description="the session")
]
Pieces = AsyncGenerator[Delta | Answer, None]


@router.get("/models", response_model=ModelList)
async def models(_: Tenant, running: Running, request: Request) -> ModelList:
    """The model that is served. Sessions are no models: name them apart."""
    return ModelList(data=[_card(running, request)])


@router.get("/models/{model:path}", response_model=ModelCard)
async def model(model: str, _: Tenant, running: Running, request: Request) -> ModelCard:
    """One model, by its exact name."""
    _check_model(running, model)
    return _card(running, request)


@router.post("/chat/completions", response_model=None)
async def chat_completions(
    body: ChatBody,
    request: Request,
    tenant: Tenant,
    running: Running,
    x_session_id: SessionHeader = None,
) -> dict[str, Any] | StreamingResponse:
    """Answer a chat. With a session it answers as it has learned to, and the completion's id can
    get feedback; without one the base model answers and nothing is kept.
    """
    _check_model(running, body.model)
    session_id = _session(body, x_session_id)
    shape = _Shape(running, body, session_id)
    pieces = _pieces(running, _question(body, tenant, session_id), shape.id)
    if body.stream:
        return await respond(request, _chunks(pieces, shape))
    return shape.whole(await connected(request, whole(pieces)))


class _Shape:
    """What one completion's objects have in common, and how they are laid out."""

    def __init__(self, running: Runtime, body: ChatBody, session_id: str | None) -> None:
        self.id = new_completion_id("chatcmpl")
        self.logprobs = bool(body.logprobs)
        self.include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._encoding = running.encoding
        self._common: dict[str, Any] = {
            "id": self.id,
            "created": int(time.time()),
            "model": running.artifact.name,
            "system_fingerprint": running.artifact.fingerprint[:16],
        }
        if session_id is not None:
            self._common["session_id"] = session_id

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The completion as one object."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.finished.text},
            "logprobs": self._logprobs(answer.sampled),
            "finish_reason": answer.finished.finish_reason,
        }
        return {
            **self._common,
            "object": "chat.completion",
            "adapter_version": answer.adapter_version,
            "adapter_used": answer.finished.adapter_used,
            "choices": [choice],
            "usage": _usage(answer),
        }

    def chunk(
        self, delta: dict[str, str], finish: str | None = None, sampled: Sequence[Sampled] = ()
    ) -> dict[str, Any]:
        """One piece of a stream."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": self._logprobs(sampled),
            "finish_reason": finish,
        }
        found = {**self._common, "object": "chat.completion.chunk", "choices": [choice]}
        return found | {"usage": None} if self.include_usage else found

    def closing(self, answer: Answer) -> list[dict[str, Any]]:
        """The last pieces of a stream: why it ended and, where asked for, what it took."""
        last = self.chunk({}, answer.finished.finish_reason)
        last["adapter_version"] = answer.adapter_version
        last["adapter_used"] = answer.finished.adapter_used
        if not self.include_usage:
            return [last]
        return [last, {**last, "choices": [], "usage": _usage(answer)}]

    def _logprobs(self, sampled: Sequence[Sampled]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = []
        for token in sampled:
            text = self._encoding.token_text(token.id)
            content.append(
                {
                    "token": text,
                    "logprob": token.logprob,
                    "bytes": list(text.encode()),
                    "top_logprobs": [],
                }
            )
        return {"content": content, "refusal": None}


async def _pieces(running: Runtime, question: Question, completion_id: str) -> Pieces:
    """The answer in pieces, its errors naming their field."""
    with naming("messages"):
        async with aclosing(running.answering.answer(question, completion_id)) as pieces:
            async for piece in pieces:
                yield piece


async def _chunks(pieces: Pieces, shape: _Shape) -> AsyncGenerator[str, None]:
    first = True
    async with aclosing(pieces):
        async for piece in pieces:
            if first:
                yield event(shape.chunk({"role": "assistant", "content": ""}))
                first = False
            if isinstance(piece, Answer):
                for chunk in shape.closing(piece):
                    yield event(chunk)
            elif piece.text or shape.logprobs:
                pairs = zip(piece.token_ids, piece.logprobs or (), strict=False)
                sampled = [Sampled(token, logprob) for token, logprob in pairs]
                yield event(shape.chunk({"content": piece.text}, None, sampled))
    yield event("[DONE]")


def _question(body: ChatBody, tenant: str, session_id: str | None) -> Question:
    wanted = body.max_completion_tokens or body.max_tokens
    sampling = Sampling(
        max_tokens=wanted or DEFAULT_MAX_TOKENS,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=tuple(body.stop or ()),
        seed=body.seed,
        logprobs=bool(body.logprobs),
    )
    return Question(
        tenant, session_id, body.turns, sampling, wanted, default_tokens=DEFAULT_MAX_TOKENS
    )


def _session(body: ChatBody, header: str | None) -> str | None:
    if header is not None and body.session_id not in (None, header):
        raise invalid("session_id", "differs from the header X-Session-ID: send one of them")
    return header or body.session_id


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


def _usage(answer: Answer) -> dict[str, Any]:
    finished = answer.finished
    return ChatUsage(
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        total_tokens=finished.prompt_tokens + finished.completion_tokens,
        prompt_tokens_details={"cached_tokens": finished.cached_tokens},
    ).model_dump()
