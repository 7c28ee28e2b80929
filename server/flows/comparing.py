"""The same prompt answered by the base and by a session, and each answer scored by both.

It knows how questions are answered, nothing of sessions' storage or HTTP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.engine import FinishReason, RequestTooLong, Sampling
from server.flows.answering import Answer, Answering, ChoiceError, Question, whole


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

    Scores are the adapter's also where the gate would leave the prompt to the base.

    Raises:
        PromptError, EngineError, SessionStoreError, VersionUnusable.
    """

    async def ask(session: str | None, sampling: Sampling, version: int | None) -> Answer:
        question = Question(
            tenant,
            session,
            turns,
            sampling,
            sampling.max_tokens,
            version=version,
            keep_completion=False,
        )
        return await whole(answering.answer(question, ""))

    # One after the other, so that nothing goes on for a caller who left.
    base = await ask(None, Sampling(max_tokens), None)
    session = await ask(session_id, Sampling(max_tokens), version)
    version = session.adapter_version  # whatever is promoted meanwhile

    async def scored(answer: Answer) -> Side:
        text, reason = answer.finished.text, answer.finished.finish_reason
        sampling = Sampling(max_tokens, choices=(text,), logprobs=True)
        try:
            by_base = await ask(None, sampling, None)
            by_session = await ask(session_id, sampling, version)
        except (RequestTooLong, ChoiceError):
            return Side(text, reason, ())
        pairs = zip(by_base.sampled, by_session.sampled, strict=True)
        tokens = tuple(Scored(one.id, one.logprob, other.logprob) for one, other in pairs)
        return Side(text, reason, tokens)

    used = session.finished.adapter_used
    return Comparison(version, used, await scored(base), await scored(session))
