"""What a person on a chat page notices: how evenly text flows while others teach, how soon an
answer follows feedback, and what more sessions than slots cost.

No peer does this, so each figure stands beside the same engine without the load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import quantiles
from typing import NoReturn

from tqdm import tqdm

from adapters.artifact import Artifact
from adapters.snapshot import dumps, loads
from adapters.state import AdapterState, Tensors
from benchmarks.models import Speech
from benchmarks.ours import Ours, ask, running
from benchmarks.workload import Sizes, make_work
from server.engine import AdapterRef, Engine, GenerateRequest, Sampling

SHARES = (0.5, 1, 2, 4)  # live sessions for every slot
ADAPTS = 3  # a round, at least
REQUESTS = 8  # of every client, in the crowd


@dataclass
class Flow:
    """Seconds, quiet and while another session learns without a pause."""

    quiet_gaps: list[float] = field(default_factory=list)  # between two tokens of a stream
    busy_gaps: list[float] = field(default_factory=list)
    quiet_adapts: list[float] = field(default_factory=list)
    busy_adapts: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)  # from feedback, all prompts known


@dataclass(frozen=True)
class Crowd:
    """Tokens a second, round by round, of clients that each ask for another session's answer."""

    sessions: int
    slots: int
    kept: list[float]  # adapters without a slot wait in the host's memory
    loaded: list[float]  # they are read from their stored bytes again


@dataclass(frozen=True)
class Serving:
    """Both measurements."""

    flow: Flow
    crowds: list[Crowd]


async def measure(artifact: Artifact, sizes: Sizes, bar: tqdm[NoReturn]) -> Serving:
    """Run both; ``bar`` counts rounds."""
    return Serving(await _flow(artifact, sizes, bar), await _crowds(artifact, sizes, bar))


def rounds(sizes: Sizes) -> int:
    """Rounds that ``measure`` counts."""
    return (sizes.rounds + 1) * (1 + len(SHARES))


async def _flow(artifact: Artifact, sizes: Sizes, bar: tqdm[NoReturn]) -> Flow:
    work, flow, speech = make_work(artifact, sizes), Flow(), Speech(artifact)
    async with running(artifact, speech.twin(), work, sizes, cache=True) as ours:
        await ours.warm_up()
        with speech.spoken():
            for turn in range(sizes.rounds + 1):
                bar.set_description("text while others teach")
                one = Flow() if turn == 0 else flow  # the first round is thrown away
                acts = [_quiet(ours, sizes, one), _busy(ours, sizes, one)]
                for act in acts if turn % 2 else acts[::-1]:
                    await act
                one.first_tokens.append(await ours.first_token_after_feedback())
                bar.update()
    return flow


async def _quiet(ours: Ours, sizes: Sizes, flow: Flow) -> None:
    flow.quiet_gaps += await _gaps(ours, sizes)
    for _ in range(ADAPTS):
        flow.quiet_adapts.append(await _timed_adapt(ours))


async def _busy(ours: Ours, sizes: Sizes, flow: Flow) -> None:
    """Streams, one batch after another, for as long as it takes to learn a few times."""
    adapts: list[float] = []

    async def teach() -> None:
        while True:
            adapts.append(await _timed_adapt(ours))

    teaching = asyncio.create_task(teach())
    while len(adapts) < ADAPTS and not teaching.done():
        flow.busy_gaps += await _gaps(ours, sizes)
    teaching.cancel()
    with suppress(asyncio.CancelledError):
        await teaching
    while ours.engine.status().adapts_learning:  # what was cancelled ends at its next step
        await asyncio.sleep(0.001)
    flow.busy_adapts += adapts


async def _gaps(ours: Ours, sizes: Sizes) -> list[float]:
    streams = await ours.stream(sizes.sessions)
    return [b - a for times in streams for a, b in pairwise(times)]


async def _timed_adapt(ours: Ours) -> float:
    began_s = time.perf_counter()
    await ours.adapt(1)
    return time.perf_counter() - began_s


async def _crowds(artifact: Artifact, sizes: Sizes, bar: tqdm[NoReturn]) -> list[Crowd]:
    slots = sizes.sessions
    counts = [max(1, int(share * slots)) for share in SHARES]
    work = make_work(artifact, replace(sizes, sessions=max(counts)))
    requests = [
        GenerateRequest(prompt, Sampling(sizes.new_tokens), _stored(artifact, session, tensors))
        for session, (prompt, tensors) in enumerate(zip(work.prompts, work.adapters, strict=True))
    ]
    speech, limits = Speech(artifact), {"slots": slots, "rows": slots}
    crowds = [Crowd(count, slots, [], []) for count in counts]

    def engine(**more: int) -> AbstractAsyncContextManager[Ours]:
        return running(artifact, speech.twin(), work, sizes, True, **limits, **more)

    async with engine() as kept, engine(host_adapter_bytes=0) as loaded:
        with speech.spoken():
            for crowd in crowds:
                bar.set_description(f"{crowd.sessions} sessions, {slots} slots")
                asked = requests[: crowd.sessions]
                for turn in range(sizes.rounds + 1):
                    pairs = [(kept, crowd.kept), (loaded, crowd.loaded)]
                    for ours, rates in pairs if turn % 2 else pairs[::-1]:
                        rate = await _rate(ours.engine, asked, slots)
                        rates += [rate] if turn else []  # the first round is thrown away
                    bar.update()
    return crowds


def _stored(artifact: Artifact, session: int, tensors: Tensors) -> AdapterRef:
    """An adapter that has to be read from its stored bytes where the engine does not have it."""
    state = AdapterState(artifact.spec, tensors, artifact.fingerprint)
    data = dumps(state, "int8", artifact.start)  # the server's default

    async def load() -> AdapterState:
        return loads(
            data,
            spec=artifact.spec,
            base_fingerprint=artifact.fingerprint,
            shapes=artifact.shapes,
            start=artifact.start,
        )

    return AdapterRef(f"crowd/{session}/1", load)


async def _rate(engine: Engine, requests: Sequence[GenerateRequest], clients: int) -> float:
    """Tokens a second of clients that go round the sessions, each beginning at another one."""
    tokens = 0

    async def client(first: int) -> None:
        nonlocal tokens
        for turn in range(REQUESTS):
            request = requests[(first + turn * clients) % len(requests)]
            _, finished = await ask(engine, request)
            tokens += finished.completion_tokens

    began_s = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    return tokens / (time.perf_counter() - began_s)


def percentile(values: Sequence[float], share: int) -> float:
    """The value that ``share`` of a hundred lie below, of two values or more."""
    return quantiles(values, n=100, method="inclusive")[share - 1]
