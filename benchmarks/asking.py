"""An engine that is taught and asked, for figures that need whole answers; no times."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from adapters.chat import ChatEncoder, user_turn
from adapters.state import AdapterState
from adapters.support import Example
from server.engine import (
    AdapterRef,
    AdaptRequest,
    Candidate,
    Engine,
    Finished,
    GenerateRequest,
    Sampling,
)
from server.flows.in_context import Shown

ANSWER_TOKENS = 40


class Asker:
    """One started engine."""

    def __init__(self, engine: Engine, encoder: ChatEncoder) -> None:
        """Use a started engine."""
        self.encoder = encoder
        self._engine = engine
        self._numbers = itertools.count()

    def example(self, question: str, answer: str, rating: int = 0) -> Example:
        """Feedback on a question."""
        return replace(self.encoder.example(user_turn(question), answer), rating=rating)

    async def adapt(self, items: Sequence[Example]) -> Candidate:
        """Derive over ``items``."""
        return await self._engine.adapt(AdaptRequest(tuple(items)))

    async def answers(
        self, questions: Sequence[str], state: AdapterState | None = None, recall: bool = False
    ) -> list[str]:
        """What an adapter answers, behind its gate; without one, what the base does."""
        shown = [Shown(self.encoder.prompt(user_turn(question))) for question in questions]
        return await self.says(shown, state, recall)

    async def says(
        self,
        shown: Sequence[Shown],
        state: AdapterState | None = None,
        recall: bool = False,
        choices: tuple[str, ...] = (),
    ) -> list[str]:
        """What is answered to prompts with feedback in them, or picked from ``choices``."""

        async def load() -> AdapterState:
            assert state is not None
            return state

        ref = None if state is None else AdapterRef(f"asked/{next(self._numbers)}", load)
        sampling = Sampling(ANSWER_TOKENS, choices=choices)
        return await asyncio.gather(
            *(
                self._say(GenerateRequest(one.prompt, sampling, ref, recall=recall, seen=one.seen))
                for one in shown
            )
        )

    async def _say(self, request: GenerateRequest) -> str:
        async for event in self._engine.generate(request):
            if isinstance(event, Finished):
                return event.text
        raise RuntimeError("the engine ended an answer without finishing it")


def share(found: Sequence[str], wanted: Sequence[str]) -> float:
    """How many of the answers are exactly those wanted."""
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(found)
