"""From feedback items to a candidate adapter and its record.

adapter = adapt(session_init, items): the same items give the same adapter, whoever derives. It
changes nothing: promoting is up to the caller.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.artifact import Artifact
from adapters.chat import PromptError
from adapters.inner_loop import Example
from server.engine import (
    AdaptRequest,
    Candidate,
    Engine,
    EngineBusy,
    EngineFailed,
    InvalidRequest,
)
from server.flows.encoding import Encoding
from server.flows.outcome import Lesson, LessonError, Turns, finite
from server.sessions import Item, VersionRecord

logger = logging.getLogger(__name__)

BUSY_PATIENCE_S = 30.0
"""Feedback is in the log already, so it is worth waiting for a place in the engine's queue."""

UNTEACHABLE = "none of the items can be taught to the model that is served now"


@dataclass(frozen=True)
class Derived:
    """What a derivation gave: a candidate to promote, or the reason why there is none."""

    item_ids: tuple[int, ...]  # that the candidate was derived over
    candidate: Candidate | None
    reason: str | None  # why it must not be promoted; None when it may
    failure: EngineFailed | None = None  # where the server is to blame, not the feedback


class Deriver:
    """Derives candidates on one engine from one artifact."""

    def __init__(self, artifact: Artifact, engine: Engine, encoding: Encoding) -> None:
        self.artifact = artifact
        self._engine = engine
        self._encoding = encoding

    async def examples(self, lessons: Sequence[Lesson]) -> tuple[Example, ...]:
        """Encode new lessons.

        Raises:
            LessonError: control tokens typed as text, messages that the chat template refuses, or
                more tokens than the model's context.
        """
        found = []
        for index, lesson in enumerate(lessons):
            try:
                found.append(await self._example(lesson.turns, lesson.completion))
            except PromptError as error:
                raise LessonError(index, str(error)) from error
        return tuple(found)

    async def derive(self, tenant: str, items: Sequence[Item], steps: int | None) -> Derived:
        """Derive over stored items, in the order given.

        Raises:
            EngineStopped, EngineBusy: not now; the items can be derived over later.
        """
        examples, ids = [], []
        for item in items:
            try:
                found = await self._example(item.payload["messages"], item.payload["completion"])
            except PromptError as error:  # it was fine under the model that it was sent to
                logger.warning("item %d cannot be taught to this model: %s", item.id, error)
                continue
            examples.append(found)
            ids.append(item.id)
        if not examples:
            return Derived((), None, UNTEACHABLE)
        return await self._adapt(tuple(ids), AdaptRequest(tuple(examples), steps, tenant))

    async def try_out(
        self, tenant: str, items: Sequence[Item], lessons: Sequence[Lesson], steps: int | None
    ) -> Derived:
        """Derive over stored items and lessons that are not kept, which have no ids.

        Raises:
            LessonError, EngineStopped, EngineBusy, EngineFailed.
        """
        stored = [Lesson(item.payload["messages"], item.payload["completion"]) for item in items]
        examples = (await self.examples(stored)) + (await self.examples(lessons))
        ids = tuple(item.id for item in items)
        return await self._adapt(ids, AdaptRequest(examples, steps, tenant))

    def record(self, derived: Derived) -> VersionRecord:
        """What the version came from, to be kept with it."""
        candidate = derived.candidate
        assert candidate is not None
        return VersionRecord(
            start="session_init",
            item_ids=derived.item_ids,
            rule_hash=self.artifact.rule_hash,
            base_fingerprint=self.artifact.fingerprint,
            guard={
                "scale": candidate.verdict.scale,
                "step_losses": [finite(loss) for loss in candidate.step_losses],
                "gradient_norms": [finite(norm) for norm in candidate.gradient_norms],
                "duration_ms": candidate.duration_ms,
            },
            steps=candidate.steps,
            loss_before=finite(candidate.loss_before),
            loss_after=finite(candidate.loss_after),
            update_norm=finite(candidate.update_norm),
        )

    async def _example(self, turns: Turns, completion: str) -> Example:
        example = await self._encoding.example(turns, completion)
        tokens = len(example.prompt) + len(example.header) + len(example.completion)
        limit = self.artifact.context_tokens
        if tokens > limit:
            raise PromptError(
                f"prompt and completion have {tokens} tokens and the model's context {limit}: "
                "send a shorter one"
            )
        return example

    async def _adapt(self, ids: tuple[int, ...], request: AdaptRequest) -> Derived:
        try:
            candidate = await self._patiently(request)
        except InvalidRequest as error:
            return Derived(ids, None, str(error))
        except EngineFailed as error:
            return Derived(ids, None, f"the derivation failed: {error}", error)
        return Derived(ids, candidate, candidate.verdict.reason)

    async def _patiently(self, request: AdaptRequest) -> Candidate:
        deadline_s = time.monotonic() + BUSY_PATIENCE_S
        while True:
            try:
                return await self._engine.adapt(request)
            except EngineBusy as error:
                if time.monotonic() + error.retry_after_s > deadline_s:
                    raise
                await asyncio.sleep(error.retry_after_s)
