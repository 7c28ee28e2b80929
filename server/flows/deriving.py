"""From feedback items to a candidate adapter and its record.

adapter = adapt(start, items), where the start is session_init or a version of the tenant's house:
the same items from the same start give the same adapter, whoever derives. It changes nothing:
promoting is up to the caller.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapters.artifact import Artifact
from adapters.chat import PromptError
from adapters.snapshot import Precision, dumps
from adapters.support import Example
from server.engine import (
    AdaptRequest,
    Candidate,
    Engine,
    EngineBusy,
    EngineFailed,
    InvalidRequest,
)
from server.flows.encoding import Encoding
from server.flows.house import House
from server.flows.outcome import Lesson, LessonError, finite
from server.flows.spending import LEARNING, Spending, learned_tokens
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
    house: House | None = None  # that the candidate was derived from


class Deriver:
    """Derives candidates on one engine from one artifact."""

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        encoding: Encoding,
        spending: Spending,
        precision: Precision = "float32",
    ) -> None:
        """``precision`` is that of the adapters' stored bytes."""
        self._spending = spending
        self.artifact = artifact
        self._precision = precision
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
                found.append(await self._example(lesson))
            except PromptError as error:
                raise LessonError(index, str(error)) from error
        return tuple(found)

    async def derive(
        self,
        tenant: str,
        session_id: str,
        items: Sequence[Item],
        steps: int | None,
        again: VersionRecord | None = None,
        house: House | None = None,
        charged: bool = True,
    ) -> Derived:
        """Derive over stored items, in the order given; whose session it is pays, if ``charged``.

        Args:
            again: what is known of the version that is wanted back. Over the same items, from the
                same start and by the same rule, it is derived in the same minibatches, and the part
                of the update is taken that the guard accepted then.
            house: to derive from; None: from session_init.

        Raises:
            EngineStopped, EngineBusy: not now; the items can be derived over later.
        """
        examples, ids = [], []
        for item in items:
            try:
                found = await self._example(Lesson.of(item))
            except PromptError as error:  # it was fine under the model that it was sent to
                logger.warning("item %d cannot be taught to this model: %s", item.id, error)
                continue
            examples.append(found)
            ids.append(item.id)
        if not examples:
            return Derived((), None, UNTEACHABLE)
        start = None if house is None else house.state.tensors
        request = AdaptRequest(tuple(examples), steps, tenant, start=start)
        same = again is not None and again.house == ("" if house is None else house.name)
        if again is not None and same and again.item_ids == tuple(ids) and self.makes(again):
            # Versions from before there were minibatches do not name any.
            size = again.guard.get("items_a_step")
            request = replace(request, scale=again.guard.get("scale"), items_a_step=size)
        return replace(await self._adapt(session_id, tuple(ids), request, charged), house=house)

    async def try_out(
        self,
        tenant: str,
        session_id: str,
        items: Sequence[Item],
        lessons: Sequence[Lesson],
        steps: int | None,
        house: House | None = None,
    ) -> Derived:
        """Derive over stored items and lessons that are not kept, which have no ids.

        Raises:
            LessonError, EngineStopped, EngineBusy, EngineFailed.
        """
        stored = await self.examples([Lesson.of(item) for item in items])
        examples = stored + await self.examples(lessons)
        ids = tuple(item.id for item in items)
        start = None if house is None else house.state.tensors
        request = AdaptRequest(examples, steps, tenant, start=start)
        return replace(await self._adapt(session_id, ids, request), house=house)

    def makes(self, record: VersionRecord) -> bool:
        """Whether a derivation here gives what the record's gave, from the same items."""
        artifact = self.artifact
        return (record.rule_hash, record.base_fingerprint) == (
            artifact.rule_hash,
            artifact.fingerprint,
        )

    def record(self, derived: Derived) -> VersionRecord:
        """What the version came from, to be kept with it."""
        candidate, house = derived.candidate, derived.house
        assert candidate is not None
        return VersionRecord(
            start="session_init" if house is None else "house",
            item_ids=derived.item_ids,
            rule_hash=self.artifact.rule_hash,
            base_fingerprint=self.artifact.fingerprint,
            guard={
                "scale": candidate.verdict.scale,
                "items_a_step": candidate.items_a_step,
                "reason": candidate.verdict.reason,
                "step_losses": [finite(loss) for loss in candidate.step_losses],
                "gradient_norms": [finite(norm) for norm in candidate.gradient_norms],
                "duration_ms": candidate.duration_ms,
            },
            steps=candidate.steps,
            loss_before=finite(candidate.loss_before),
            loss_after=finite(candidate.loss_after),
            update_norm=finite(candidate.update_norm),
            house="" if house is None else house.name,
            house_items=() if house is None else house.items,
        )

    async def snapshot(self, derived: Derived) -> bytes:
        """The candidate's adapter as it is stored."""
        candidate = derived.candidate
        assert candidate is not None
        start = self.artifact.start
        return await asyncio.to_thread(dumps, candidate.state, self._precision, start)

    async def _example(self, lesson: Lesson) -> Example:
        example = await self._encoding.example(lesson)
        limit = self.artifact.context_tokens
        room = max(1, limit - len(example.prompt) - len(example.header))
        # What the model said fitted; as text again, with an end, it may be some tokens longer.
        if lesson.kind == "rating":
            example = replace(example, completion=example.completion[:room])
        elif lesson.kind == "correction":
            example = replace(example, rejected=example.rejected[:room])
        if example.tokens > limit:
            raise PromptError(
                f"prompt and completion have {example.tokens} tokens and the model's context "
                f"{limit}: send a shorter one"
            )
        return example

    async def _adapt(
        self, session_id: str, ids: tuple[int, ...], request: AdaptRequest, charged: bool = True
    ) -> Derived:
        try:
            candidate = await self._patiently(request)
        except InvalidRequest as error:
            return Derived(ids, None, str(error))
        except EngineFailed as error:
            return Derived(ids, None, f"the derivation failed: {error}", error)
        if charged:
            spent = learned_tokens(request, candidate.steps)
            # What was learned is not thrown away because it could not be charged.
            await self._spending.charge_if_possible(request.tenant, session_id, LEARNING, spent)
        verdict = candidate.verdict
        return Derived(ids, candidate, None if verdict.accepted else verdict.reason)

    async def _patiently(self, request: AdaptRequest) -> Candidate:
        deadline_s = time.monotonic() + BUSY_PATIENCE_S
        while True:
            try:
                return await self._engine.adapt(request)
            except EngineBusy as error:
                if time.monotonic() + error.retry_after_s > deadline_s:
                    raise
                await asyncio.sleep(error.retry_after_s)
