"""Our contenders: the real engine, asked as the server's API asks it.

Knows the engine's front door; knows nothing about peers or tables.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from transformers import PreTrainedModel

from adapters.artifact import Artifact
from adapters.chat import EncodedPrompt
from adapters.state import AdapterState
from benchmarks.contest import Outcome
from benchmarks.workload import BenchmarkError, Sizes, Work
from server.engine import (
    AdapterRef,
    AdaptRequest,
    Candidate,
    Delta,
    Engine,
    EngineLimits,
    Finished,
    GenerateRequest,
    Sampling,
)

CACHE_BYTES = 2**30  # of the engine whose prompts are warm; large enough for all of them


class Ours:
    """One running engine and the work it is measured with."""

    def __init__(self, engine: Engine, artifact: Artifact, work: Work, sizes: Sizes) -> None:
        """Use an engine on ``artifact`` that has been started."""
        self.engine = engine
        self._work = work
        self._sizes = sizes
        states = [AdapterState(artifact.spec, t, artifact.fingerprint) for t in work.adapters]
        self._refs = [_ref(f"{session}/1", state) for session, state in enumerate(states)]
        self._versions = 0

    async def warm_up(self) -> None:
        """Answer every prompt once, so that the prefix cache has it: feedback follows an answer.

        Raises:
            BenchmarkError: the cache is too small for all prompts.
        """
        prompts = list(self._work.prompts)
        for examples in self._work.examples:
            prompts += [replace(prompts[0], prefix=e.prompt, header=e.header) for e in examples]
        for prompt in prompts:
            await ask(self.engine, GenerateRequest(prompt, Sampling(1)))
        finished = [
            (await ask(self.engine, GenerateRequest(prompt, Sampling(1))))[1] for prompt in prompts
        ]
        if any(
            item.cached_tokens < len(prompt.prefix)
            for item, prompt in zip(finished, prompts, strict=True)
        ):
            raise BenchmarkError("the prompts do not fit the prefix cache: lower --prompt-tokens")

    async def adapt(self, sessions: int) -> Outcome:
        """Let so many sessions learn at the same time, each from its own examples."""
        requests = [
            AdaptRequest(examples, self._sizes.steps) for examples in self._work.examples[:sessions]
        ]
        candidates: list[Candidate] = await asyncio.gather(*map(self.engine.adapt, requests))
        return Outcome(losses=candidates[0].step_losses)

    async def decode(self, sessions: int, taught: bool) -> Outcome:
        """Answer so many prompts at the same time, each under its own adapter or under none."""
        requests = [
            GenerateRequest(prompt, Sampling(self._sizes.new_tokens), ref if taught else None)
            for prompt, ref in zip(self._work.prompts[:sessions], self._refs, strict=False)
        ]
        answers = await asyncio.gather(*(ask(self.engine, r) for r in requests))
        return _outcome([pieces for pieces, _ in answers])

    async def stream(self, sessions: int) -> list[list[float]]:
        """The moments of every stream's pieces, so many sessions at the same time."""
        requests = [
            GenerateRequest(prompt, Sampling(self._sizes.stream_tokens), ref)
            for prompt, ref in zip(self._work.prompts[:sessions], self._refs, strict=False)
        ]
        answers = await asyncio.gather(*(ask(self.engine, r) for r in requests))
        return [[at for at, _ in pieces] for pieces, _ in answers]

    async def first_token_after_feedback(self) -> float:
        """Seconds from feedback to the first token of an answer that uses it."""
        examples = self._work.examples[0]
        began_s = time.perf_counter()
        candidate = await self.engine.adapt(AdaptRequest(examples, self._sizes.steps))
        self._versions += 1
        ref = _ref(f"taught/{self._versions}", candidate.state)
        prompt = EncodedPrompt(examples[0].prompt, examples[0].header)  # no gate is closed to it
        pieces, finished = await ask(self.engine, GenerateRequest(prompt, Sampling(1), ref))
        assert finished.adapter_used
        return pieces[0][0] - began_s


@asynccontextmanager
async def running(
    artifact: Artifact,
    model: PreTrainedModel,
    work: Work,
    sizes: Sizes,
    cache: bool,
    **more: int,
) -> AsyncIterator[Ours]:
    """An engine on ``model`` that keeps prompts, or that computes every prompt anew.

    ``more``: limits of the engine.
    """
    limits = EngineLimits(
        threads=sizes.threads,
        prefix_cache_bytes=CACHE_BYTES if cache else 0,
        **{"rows": max(sizes.sessions, EngineLimits().rows), **more},
    )
    own = replace(artifact, model=model)
    engine = Engine(own, limits)
    engine.start()
    try:
        yield Ours(engine, own, work, sizes)
    finally:
        await engine.stop(drain_s=0.0)


def _ref(name: str, state: AdapterState) -> AdapterRef:
    async def load() -> AdapterState:
        return state

    return AdapterRef(f"benchmark/{name}", load)


Pieces = list[tuple[float, Delta]]  # with the moment they came, in seconds


async def ask(engine: Engine, request: GenerateRequest) -> tuple[Pieces, Finished]:
    """The pieces of an answer with the moment each came, and how it ended."""
    pieces: Pieces = []
    async with aclosing(engine.generate(request)) as items:
        async for item in items:
            if isinstance(item, Finished):
                return pieces, item
            pieces.append((time.perf_counter(), item))
    raise BenchmarkError("the engine's answer ended without a last item")


def _outcome(rows: Sequence[Pieces]) -> Outcome:
    """Tokens by row, and how fast they came once every row had its first one."""
    everyone_s = max(pieces[0][0] for pieces in rows)
    later = [(at, piece) for pieces in rows for at, piece in pieces if at > everyone_s]
    return Outcome(
        answers=tuple(tuple(t for _, piece in pieces for t in piece.token_ids) for pieces in rows),
        decoded_tokens=sum(len(piece.token_ids) for _, piece in later),
        decoding_s=max(at for at, _ in later) - everyone_s,
    )
