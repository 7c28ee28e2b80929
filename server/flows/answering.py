"""A question to a session, from its pointer in Redis to the completion kept for feedback.

It knows the engine and the session store, no HTTP, and nothing about how adapters are taught.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from adapters.artifact import Artifact
from adapters.chat import EncodedPrompt, PromptError
from adapters.config import AdapterError
from adapters.snapshot import SnapshotError, loads
from adapters.state import AdapterState
from server.engine import (
    AdapterMismatch,
    AdapterRef,
    Delta,
    Engine,
    EngineStopped,
    Finished,
    GenerateRequest,
    Sampling,
)
from server.flows.encoding import Encoding
from server.sessions import Pointer, SessionStore, SnapshotLost, VersionNotFound

logger = logging.getLogger(__name__)

UNUSABLE = (SnapshotError, SnapshotLost, AdapterMismatch)
"""The version's bytes are gone or not ours: its adapter has to be derived again."""

Last = TypeVar("Last")
Mend = Callable[[Pointer], Awaitable[Pointer]]


class ChoiceError(PromptError):
    """A choice cannot be turned into tokens. ``index`` says which one."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class VersionUnusable(AdapterError, ValueError):
    """The version that was asked for cannot answer on the model that is served now."""


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


@dataclass(frozen=True)
class Sampled:
    """One sampled token with its log-probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Answer:
    """A whole answer, the last thing that `Answering.answer` gives."""

    id: str
    session_id: str | None
    adapter_version: int
    finished: Finished
    sampled: tuple[Sampled, ...]  # where log-probabilities were asked for


class Answering:
    """Answers questions. ``mend`` derives a session's adapter again and returns its new pointer."""

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        store: SessionStore,
        encoding: Encoding,
        mend: Mend,
        completion_lifetime_s: int,
    ) -> None:
        self._artifact = artifact
        self._engine = engine
        self._store = store
        self._encoding = encoding
        self._mend = mend
        self._completion_lifetime_s = completion_lifetime_s
        self._shapes = artifact.shapes

    async def answer(
        self, question: Question, completion_id: str
    ) -> AsyncGenerator[Delta | Answer, None]:
        """Give the answer in pieces and, when it is kept for feedback, as a whole.

        Whatever can be refused is refused before the first piece.

        Raises:
            PromptError, EngineError, SessionStoreError, VersionUnusable.
        """
        prompt = await self._encoding.prompt(question.turns)
        self._check_choices(question.sampling.choices)
        sampling = self._sampling(question, prompt)
        request = GenerateRequest(prompt, sampling, tenant=question.tenant)
        sampled: list[Sampled] = []
        pointer = await self._pointer(question)
        async with aclosing(self._run(question, pointer, request)) as events:
            async for version, event in events:
                if isinstance(event, Delta):
                    pairs = zip(event.token_ids, event.logprobs or (), strict=False)
                    sampled += [Sampled(token, logprob) for token, logprob in pairs]
                    yield event
                elif event.finish_reason == "cancelled":
                    raise EngineStopped("the server is stopping; ask again in a moment")
                else:
                    whole = Answer(
                        completion_id, question.session_id, version, event, tuple(sampled)
                    )
                    if pointer is not None and question.keep_completion:
                        await self._keep(question, pointer, prompt, whole)
                    yield whole

    async def adapter(self, pointer: Pointer, version: int | None) -> tuple[int, AdapterState]:
        """A kept version's number and adapter; the newest for None, derived again if it is lost.

        Raises:
            SessionStoreError, EngineError.
            VersionUnusable: the session is untaught, or the version cannot be loaded.
        """
        pointer, number = await self._resolve(pointer, version)
        if number:
            try:
                return number, await self._load(pointer, number)
            except (*UNUSABLE, VersionNotFound) as error:
                pointer = await self._recover(pointer, version, error)
                number = pointer.version
        if not number:
            raise VersionUnusable(f"session {pointer.session_id!r} has no adapter: it is untaught")
        try:
            return number, await self._load(pointer, number)
        except UNUSABLE as error:
            raise _unusable(number, error) from error

    def _check_choices(self, choices: Sequence[str]) -> None:
        for index, choice in enumerate(choices):
            try:
                self._encoding.check_completion(choice)
            except PromptError as error:
                raise ChoiceError(index, str(error)) from error

    def _sampling(self, question: Question, prompt: EncodedPrompt) -> Sampling:
        if question.max_tokens is not None:
            return replace(question.sampling, max_tokens=question.max_tokens)
        room = self._artifact.context_tokens - len(prompt.ids)
        most = max(1, question.sampling.min_tokens, min(question.default_tokens, room))
        return replace(question.sampling, max_tokens=most)

    async def _pointer(self, question: Question) -> Pointer | None:
        if question.session_id is None:
            return None
        return await self._store.pointer(question.tenant, question.session_id)

    async def _run(
        self, question: Question, pointer: Pointer | None, request: GenerateRequest
    ) -> AsyncGenerator[tuple[int, Delta | Finished], None]:
        """Run on the engine, each event with the version that answers.

        A version that turns out to be trimmed, lost or foreign while it is loaded is replaced once.
        """
        if pointer is None:
            async with aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    yield 0, event
            return
        pointer, version = await self._resolve(pointer, question.version)
        started = False
        try:
            async with aclosing(self._generate(request, pointer, version)) as events:
                async for event in events:
                    started = True
                    yield version, event
            return
        except (*UNUSABLE, VersionNotFound) as error:
            if started:
                raise
            pointer = await self._recover(pointer, question.version, error)
        async with aclosing(self._generate(request, pointer, pointer.version)) as events:
            async for event in events:
                yield pointer.version, event

    async def _recover(self, pointer: Pointer, version: int | None, error: Exception) -> Pointer:
        """The pointer to use instead of one whose version cannot be loaded.

        Raises:
            VersionNotFound, VersionUnusable: ``version`` was asked for, and no other will do.
        """
        if version is not None:
            raise error if isinstance(error, VersionNotFound) else _unusable(version, error)
        if isinstance(error, VersionNotFound):  # promoted past it since the pointer was read
            return await self._store.pointer(pointer.tenant, pointer.session_id)
        logger.warning("session %s is derived again: %s", pointer.session_id, error)
        return await self._mend(pointer)

    async def _resolve(self, pointer: Pointer, version: int | None) -> tuple[Pointer, int]:
        """The version that answers, with the pointer that knows it; None is the newest."""
        if version is None:
            if pointer.version and pointer.base_fingerprint != self._artifact.fingerprint:
                pointer = await self._mend(pointer)
            return pointer, pointer.version
        if version and version != pointer.version:
            known = await self._store.version_record(pointer.tenant, pointer.session_id, version)
            if known.record.base_fingerprint != self._artifact.fingerprint:
                raise VersionUnusable(
                    f"version {version} belongs to another base model than the one "
                    "served now: leave adapter_version out to use the newest"
                )
        return pointer, version

    def _generate(
        self, request: GenerateRequest, pointer: Pointer, version: int
    ) -> AsyncGenerator[Delta | Finished, None]:
        if version == 0:
            return self._engine.generate(request)
        # The incarnation is in the key: a session deleted and made again counts from 1 again.
        key = f"{pointer.tenant}/{pointer.session_id}/{pointer.incarnation}.{version}"

        async def load() -> AdapterState:
            return await self._load(pointer, version)

        return self._engine.generate(replace(request, adapter=AdapterRef(key, load)))

    async def _load(self, pointer: Pointer, version: int) -> AdapterState:
        data = await self._store.snapshot(pointer.tenant, pointer.session_id, version)
        return loads(
            data,
            spec=self._artifact.spec,
            base_fingerprint=self._artifact.fingerprint,
            shapes=self._shapes,
        )

    async def _keep(
        self, question: Question, pointer: Pointer, prompt: EncodedPrompt, answer: Answer
    ) -> None:
        """Keep the completion so that feedback can be about it; an answer makes the session."""
        if not pointer.exists:
            await self._store.create(pointer.tenant, pointer.session_id)
        payload: dict[str, Any] = {
            "messages": [dict(turn) for turn in question.turns],
            "text": answer.finished.text,
            "activation_index": len(prompt.prefix),
            "adapter_version": answer.adapter_version,
        }
        await self._store.save_completion(
            pointer.tenant,
            pointer.session_id,
            answer.id,
            payload,
            lifetime_s=self._completion_lifetime_s,
        )


def _unusable(version: int, error: Exception) -> VersionUnusable:
    return VersionUnusable(
        f"version {version} cannot be loaded: leave adapter_version out to use the newest ({error})"
    )


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
