"""A question to a session, from its pointer in Redis to the completion kept for feedback.

It knows the engine and the session store, no HTTP, and nothing about how adapters are taught.
"""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from adapters.artifact import Artifact
from adapters.chat import EncodedPrompt, PromptError
from server import logs
from server.engine import (
    Delta,
    Engine,
    EngineStopped,
    Finished,
    GenerateRequest,
    Sampling,
    TopLogprobs,
)
from server.flows.choosing import Chooser, Standing
from server.flows.encoding import Encoding
from server.flows.in_context import InContext, InContextError, Shown
from server.flows.several import merged, several
from server.flows.spending import TOKENS, Spending, answered_tokens
from server.sessions import Pointer, SessionStore

Last = TypeVar("Last")


class ChoiceError(PromptError):
    """A choice cannot be turned into tokens. ``index`` says which one."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Question:
    """What is asked. Without a session the base answers and nothing is kept."""

    tenant: str
    session_id: str | None
    turns: Sequence[Mapping[str, str]]
    sampling: Sampling
    max_tokens: int | None = None  # None: `default_tokens`, or what the context has room for
    default_tokens: int = 128
    version: int | None = None  # None: the newest
    keep_completion: bool = True  # so that feedback can be about it
    recall: bool | None = None  # None: as the server is set
    in_context: int | None = None  # items to put into the prompt; None: as the server is set
    room_tokens: int | None = None  # left free by those items; None: what the answer may have
    raw: bool = False  # the turns' bare text, without a chat template, is gone on from


@dataclass(frozen=True)
class Sampled:
    """One sampled token with its log-probability."""

    id: int
    logprob: float
    top: TopLogprobs = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer, the last thing that `Answering.answer` gives."""

    id: str
    session_id: str | None
    adapter_version: int
    finished: Finished
    sampled: tuple[Sampled, ...]  # where log-probabilities were asked for
    house_version: int = 0  # of the tenant's house, where that took part
    shown: tuple[int, ...] | None = None  # items in the prompt, where they were asked for


@dataclass(frozen=True)
class Asked:
    """A question on its way to the engine."""

    question: Question
    standing: Standing | None  # None without a session
    shown: tuple[int, ...] | None
    choices_tokens: int  # of all choices together


class Answering:
    """Answers questions; ``chooser`` says which adapter does."""

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        store: SessionStore,
        encoding: Encoding,
        chooser: Chooser,
        spending: Spending,
        completion_lifetime_s: int,
        recall: bool = False,
        in_context: int = 0,
    ) -> None:
        self._artifact = artifact
        self._store = store
        self._encoding = encoding
        self._chooser = chooser
        self._spending = spending
        self._completion_lifetime_s = completion_lifetime_s
        self._recall = recall
        self._items_shown = in_context
        self._in_context = InContext(artifact, engine, encoding)

    async def answer(
        self, question: Question, completion_id: str
    ) -> AsyncGenerator[Delta | Answer, None]:
        """Give the answer in pieces and, when it is kept for feedback, as a whole.

        Whatever can be refused is refused before the first piece.

        Raises:
            PromptError, InContextError, EngineError, SessionStoreError, VersionUnusable.
        """
        async with aclosing(self.answers(question, [completion_id])) as pieces:
            async for _, piece in pieces:
                yield piece

    async def answers(
        self, question: Question, completion_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[int, Delta | Answer], None]:
        """As `answer`, but several answers at once, each piece with its answer's number.

        All are of the version in force now, unless it is lost meanwhile. With a seed each draws
        from a seed of its own that follows from it.
        """
        logs.note(session_id=question.session_id)
        prompt = await self._encoding.prompt(question.turns, question.raw)
        choices_tokens = self._choices_tokens(question.sampling.choices)
        sampling = self._sampling(question, prompt)
        recall = self._recall if question.recall is None else question.recall
        standing, shown = await self._shown(
            question,
            prompt,
            question.room_tokens or max(choices_tokens, default=sampling.max_tokens),
        )
        request = GenerateRequest(
            prompt if shown is None else shown.prompt,
            sampling,
            tenant=question.tenant,
            recall=recall,
            continues=question.raw,
            seen=None if shown is None else shown.seen,
        )
        ours = Asked(
            question, standing, None if shown is None else shown.items, sum(choices_tokens)
        )
        streams = [
            self._answer(ours, replace(request, sampling=own), completion_id)
            for own, completion_id in zip(
                several(sampling, len(completion_ids)), completion_ids, strict=True
            )
        ]
        async with aclosing(merged(streams)) as pieces:
            async for numbered in pieces:
                yield numbered

    async def _answer(
        self, asked: Asked, request: GenerateRequest, completion_id: str
    ) -> AsyncGenerator[Delta | Answer, None]:
        question, sampled = asked.question, list[Sampled]()
        whose, owed = (question.tenant, question.session_id), 0
        run = self._chooser.run(asked.standing, question.version, request)
        try:
            async with aclosing(run) as events:
                async for chosen, event in events:
                    if isinstance(event, Delta):
                        sampled += tokens_of(event)
                        owed += len(event.token_ids)
                        yield event
                    elif event.finish_reason == "cancelled":
                        raise EngineStopped("the server is stopping; ask again in a moment")
                    else:
                        spent, owed = answered_tokens(event, asked.choices_tokens), 0
                        await self._spending.charge(*whose, TOKENS, spent)
                        whole = Answer(
                            completion_id,
                            question.session_id,
                            chosen.adapter_version,
                            event,
                            tuple(sampled),
                            chosen.house_version(event),
                            asked.shown,
                        )
                        if asked.standing is not None and question.keep_completion:
                            await self._keep(question, asked.standing[0], request.prompt, whole)
                        yield whole
        finally:
            if owed:
                self._spending.charge_left(*whose, TOKENS, owed)

    def _choices_tokens(self, choices: Sequence[str]) -> list[int]:
        """How many tokens each choice has."""
        tokens = []
        for index, choice in enumerate(choices):
            try:
                tokens.append(self._encoding.completion_tokens(choice))
            except PromptError as error:
                raise ChoiceError(index, str(error)) from error
        return tokens

    def _sampling(self, question: Question, prompt: EncodedPrompt) -> Sampling:
        if question.max_tokens is not None:
            return replace(question.sampling, max_tokens=question.max_tokens)
        room = self._artifact.context_tokens - len(prompt.ids)
        most = max(1, question.sampling.min_tokens, min(question.default_tokens, room))
        return replace(question.sampling, max_tokens=most)

    async def _shown(
        self, question: Question, prompt: EncodedPrompt, answer_tokens: int
    ) -> tuple[Standing | None, Shown | None]:
        """Where the session stands, and the prompt with its items, where they are asked for."""
        count = self._count_shown(question)
        if question.session_id is None:
            return None, None
        standing = await self._chooser.standing(question.tenant, question.session_id)
        if not count:
            return standing, None
        derivation = await self._store.derivation(question.tenant, question.session_id)
        shown = await self._in_context.show(
            derivation, question.turns, prompt, count, answer_tokens
        )
        return (derivation.pointer, standing[1]), shown

    def _count_shown(self, question: Question) -> int:
        """How many items may be shown; what cannot be is refused only where it is asked for."""
        missing = None
        if question.session_id is None:
            missing = "an answer without a session has no feedback to show: name a session"
        elif question.raw or not self._in_context.possible:
            missing = "there are no earlier turns without a chat template: leave it out"
        if missing is None:
            return self._items_shown if question.in_context is None else question.in_context
        if question.in_context:
            raise InContextError(missing)
        return 0

    async def _keep(
        self, question: Question, pointer: Pointer, prompt: EncodedPrompt, answer: Answer
    ) -> None:
        """Keep the completion so that feedback can be about it; an answer makes the session.

        One that was there when it was asked and was deleted meanwhile is not made again: nothing
        is kept, and feedback on the answer finds no completion.
        """
        if not pointer.exists:
            pointer = await self._store.create(pointer.tenant, pointer.session_id)
        if not pointer.exists:  # deleted as soon as it was made
            return
        payload: dict[str, Any] = {
            "messages": [dict(turn) for turn in question.turns],
            "text": answer.finished.text,
            "finish_reason": answer.finished.finish_reason,
            "activation_index": len(prompt.prefix),
            "adapter_version": answer.adapter_version,
        }
        if question.raw:
            payload["raw"] = True
        await self._store.save_completion(
            pointer.tenant,
            pointer.session_id,
            answer.id,
            payload,
            lifetime_s=self._completion_lifetime_s,
            incarnation=pointer.incarnation,
        )


def tokens_of(delta: Delta) -> list[Sampled]:
    """A piece's tokens, where log-probabilities were asked for."""
    tops = delta.top_logprobs or ((),) * len(delta.token_ids)
    triples = zip(delta.token_ids, delta.logprobs or (), tops, strict=False)
    return [Sampled(token, logprob, top) for token, logprob, top in triples]


async def whole(pieces: AsyncGenerator[Delta | Last, None]) -> Last:
    """What comes after the last piece of an answer: all of it."""
    async with aclosing(pieces):
        async for piece in pieces:
            if not isinstance(piece, Delta):
                return piece
    raise RuntimeError("the engine ended an answer without finishing it")


def new_completion_id(prefix: str = "cmpl") -> str:
    """A name for a completion that nobody can guess."""
    return f"{prefix}-{secrets.token_urlsafe(18)}"
