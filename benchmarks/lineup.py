"""Who meets whom: the contests of the benchmark, and the run over all of them.

Knows every contender by its front door; knows nothing about tables.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from adapters.artifact import Artifact
from benchmarks import serving
from benchmarks.contest import Contender, Contest, Standing, hold
from benchmarks.floor import Amount, Rates, adapt_amount, decode_amount, measure_rates
from benchmarks.models import Speech
from benchmarks.ours import Ours, running
from benchmarks.peers import Batching, Peft, Transformers
from benchmarks.serving import Serving
from benchmarks.vllm_peer import Vllm, vllm
from benchmarks.workload import Sizes, make_work
from server.runtime import settled

COLD, WARM = "innerloop, cold prefix", "innerloop, warm prefix"
FULL = "innerloop"  # where the adapter acts on the prompt too, no prefix is shared
BASE_COLD, BASE_WARM = "innerloop base, cold prefix", "innerloop base, warm prefix"
TRAINED = "PEFT LoRA + AdamW, one after the other"
NAMED = "PEFT LoRA generate(adapter_names)"
ACTIVATED = "PEFT aLoRA generate(adapter_names)"
SET = "PEFT LoRA set_adapter, generate"
PLAIN = "transformers generate, no adapter"
BATCHED = "transformers generate_batch, no adapter"
VLLM, VLLM_PLAIN = "vLLM, LoRA requests", "vLLM, no adapter"


@dataclass(frozen=True)
class Result:
    """A contest and how everybody stands, by name."""

    contest: Contest
    standings: dict[str, Standing]


@dataclass(frozen=True)
class Field:
    """All contenders, ready to run on the same weights."""

    cold: Ours
    warm: Ours
    peft: Peft
    plain: Transformers
    batched: Batching
    vllm: Vllm | None
    vllm_plain: Vllm | None
    speech: Speech
    shares_prefix: bool  # prompts are computed by the base alone


@dataclass(frozen=True)
class Floors:
    """What our own work has to compute and read, by task, sessions and contender's name."""

    rates: Rates
    amounts: dict[tuple[str, int, str], Amount]


async def run_all(
    artifact: Artifact, sizes: Sizes, vllm_python: Path | None = None
) -> tuple[list[Result], Serving, Floors]:
    """Hold every contest and measure serving alone, with a progress bar on stderr.

    Args:
        vllm_python: an interpreter that has vLLM, to have it as a contender.

    Raises:
        BenchmarkError: the work does not fit the model, or vLLM does not start.
    """
    async with _field(artifact, sizes, vllm_python) as field:
        adapting = [_adapting(field, sessions) for sessions in sizes.counts]
        decoding = [_decoding(field, sessions) for sessions in sizes.counts]
        goes = sum(len(contest.contenders) for contest in adapting + decoding)
        every = goes * (sizes.rounds + 1) + serving.rounds(sizes)
        with tqdm(total=every, file=sys.stderr) as bar:
            results = [Result(c, await hold(c, sizes.rounds, bar)) for c in adapting]
            with field.speech.spoken():
                results += [Result(c, await hold(c, sizes.rounds, bar)) for c in decoding]
            floors = _floors(artifact, sizes, field.shares_prefix)
            return results, await serving.measure(artifact, sizes, bar), floors


@asynccontextmanager
async def _field(
    artifact: Artifact, sizes: Sizes, vllm_python: Path | None
) -> AsyncIterator[Field]:
    work = make_work(artifact, sizes)
    speech = Speech(artifact)
    plain = Transformers(speech.twin(), work, sizes)
    batched = Batching(speech.twin(), work, sizes)
    peft = Peft(artifact, speech.twin(), work, sizes)
    async with AsyncExitStack() as stack:
        stack.callback(batched.close)
        cold, warm = [
            await stack.enter_async_context(running(artifact, speech.twin(), work, sizes, cache))
            for cache in (False, True)
        ]
        await warm.warm_up()
        rivals: list[Vllm | None] = [None, None]
        if vllm_python is not None:
            rivals = [
                stack.enter_context(vllm(vllm_python, artifact, work, sizes, taught=taught))
                for taught in (True, False)
            ]
        with _threads(sizes.threads), settled():
            activated = artifact.spec.scope == "activated"
            yield Field(cold, warm, peft, plain, batched, *rivals, speech, activated)


def _floors(artifact: Artifact, sizes: Sizes, shares_prefix: bool) -> Floors:
    work, amounts = make_work(artifact, sizes), dict[tuple[str, int, str], Amount]()
    for count in sizes.counts:
        for name in (COLD, WARM) if shares_prefix else (FULL,):
            cold = name is not WARM
            amounts["adapt", count, name] = adapt_amount(artifact, work, sizes, count, cold)
            amounts["decode", count, name] = decode_amount(artifact, work, sizes, count, True)
        for name in (BASE_COLD, BASE_WARM):
            amounts["decode", count, name] = decode_amount(artifact, work, sizes, count, False)
    return Floors(measure_rates(artifact), amounts)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let the peers, which run on this thread, use so many threads in an operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _adapting(field: Field, sessions: int) -> Contest:
    ours = {COLD: field.cold, WARM: field.warm} if field.shares_prefix else {FULL: field.cold}
    contenders = [
        Contender(name, partial(one.adapt, sessions), against=TRAINED) for name, one in ours.items()
    ]
    contenders.append(Contender(TRAINED, partial(field.peft.adapt, sessions)))
    return Contest("adapt", sessions, tuple(contenders))


def _decoding(field: Field, sessions: int) -> Contest:
    peft, like = field.peft, NAMED
    contenders = [Contender(NAMED, partial(peft.decode_named, sessions, "lora"))]
    if peft.activates:
        like = ACTIVATED
        run = partial(peft.decode_named, sessions, "alora")
        contenders.append(Contender(ACTIVATED, run, against=NAMED))
    if sessions == 1:
        contenders.append(Contender(SET, peft.decode_set, against=NAMED, same_as=NAMED))
    ours = {COLD: field.cold, WARM: field.warm} if field.shares_prefix else {FULL: field.cold}
    # Without a header, PEFT has no adapter that acts from the prompt's last token on.
    checked = like if peft.activates or not field.shares_prefix else None
    for name, one in ours.items():
        run = partial(one.decode, sessions, True)
        contenders.append(Contender(name, run, against=NAMED, same_as=checked))
    for name, one in {BASE_COLD: field.cold, BASE_WARM: field.warm}.items():
        run = partial(one.decode, sessions, False)
        contenders.append(Contender(name, run, against=PLAIN, same_as=PLAIN))
    run = partial(field.batched.decode, sessions)
    contenders.append(Contender(BATCHED, run, against=PLAIN, same_as=PLAIN))
    if field.vllm is not None and field.vllm_plain is not None:
        run = partial(field.vllm.decode, sessions)
        contenders.append(Contender(VLLM, run, against=NAMED))
        run = partial(field.vllm_plain.decode, sessions)
        contenders.append(Contender(VLLM_PLAIN, run, against=PLAIN))
    contenders.append(Contender(PLAIN, partial(field.plain.decode, sessions)))
    return Contest("decode", sessions, tuple(contenders))
