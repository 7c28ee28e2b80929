"""The same prompt answered by the base and by a session, and each answer scored by both.

It knows how questions are answered, nothing of sessions' storage or HTTP.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from server.engine import FinishReason, RequestTooLong, Sampling
from server.flows.answering import Answer, Answering, ChoiceError, Question, whole

Value = TypeVar("Value")


@dataclass(frozen=True)
class Scored:
    """A token of an answer, with the log-probability that base and session give it."""

    id: int
    base: float
    session: float


@dataclass(frozen=True)
class Side:
    """One of the two answers, scored as a whole: the end token is the last of ``tokens``.

    There are no tokens where the answer, cut off by its length, leaves no room for its end.
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[Scored, ...]


@dataclass(frozen=True)
class Comparison:
    """``adapter_used`` is false where the session's gate leaves this prompt to the base."""

    adapter_version: int
    adapter_used: bool
    house_version: int  # of the tenant's house, where that took part in the session's answer
    shown: tuple[int, ...] | None  # items in the session's prompt, where the server puts them there
    base: Side
    session: Side


async def compare(
    answering: Answering,
    tenant: str,
    session_id: str,
    turns: Sequence[Mapping[str, str]],
    max_tokens: int,
    version: int | None,
) -> Comparison:
    """Answer greedily by both and score both answers by both; nothing is kept.

    Scores are the adapter's also where the gate would leave the prompt to the base. With the
    server's `in_context`, base means the base without the session's items in its prompt.

    Raises:
        PromptError, EngineError, SessionStoreError, VersionUnusable.
    """

    async def ask(session: str | None, sampling: Sampling, version: int | None) -> Answer:
        question = Question(
            tenant,
            session,
            turns,
            sampling,
            max_tokens,
            version=version,
            keep_completion=False,
            # Otherwise a scored answer, shorter than what was asked for, would see more items.
            room_tokens=max_tokens,
        )
        return await whole(answering.answer(question, ""))

    base, session = await _together(
        ask(None, Sampling(max_tokens), None), ask(session_id, Sampling(max_tokens), version)
    )
    version = session.adapter_version  # whatever is promoted meanwhile

    async def scored(text: str) -> tuple[Scored, ...]:
        sampling = Sampling(max_tokens, choices=(text,), logprobs=True)
        try:
            by_base, by_session = await _together(
                ask(None, sampling, None), ask(session_id, sampling, version)
            )
        except (RequestTooLong, ChoiceError):
            return ()
        pairs = zip(by_base.sampled, by_session.sampled, strict=True)
        return tuple(Scored(one.id, one.logprob, other.logprob) for one, other in pairs)

    answers = [answer.finished for answer in (base, session)]
    texts = list(dict.fromkeys(finished.text for finished in answers))
    tokens = dict(zip(texts, await _together(*map(scored, texts)), strict=True))
    sides = [Side(one.text, one.finish_reason, tokens[one.text]) for one in answers]
    used = session.finished.adapter_used
    return Comparison(version, used, session.house_version, session.shown, *sides)


async def _together(*work: Coroutine[Any, Any, Value]) -> list[Value]:
    """What all of them give. One that raises ends the others, and so does a caller who leaves."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
