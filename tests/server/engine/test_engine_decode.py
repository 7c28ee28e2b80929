"""Answers are the model's own, whoever else is in the batch."""

import asyncio
from dataclasses import replace

import pytest
import torch
from engine_harness import World, collect, gather, holding, run, running, until

from adapters.chat import EncodedPrompt
from adapters.state import AdapterState
from server.engine import (
    AdapterRef,
    Engine,
    EngineFailed,
    EngineLimits,
    GenerateRequest,
    InvalidRequest,
    RequestTooLong,
    Sampling,
)

TEXTS = [
    "Where is my order?",
    "I want my money back, please, the shoes are too small.",
    "Hi",
    "Do you ship to Iceland? And how long does it take in winter, more or less?",
    "Can I change my address?",
]
SESSIONS = [None, "ann", "bob", "ann", "cem"]


def test_untaught_equals_transformers_generate(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            for text in TEXTS:
                answer = await collect(engine, world.request(text, max_tokens=20))
                ids = torch.tensor([world.prompt(text).ids])
                whole = world.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=20,
                    do_sample=False,
                )
                assert answer.tokens == whole[0, ids.shape[1] :].tolist()
                assert answer.text == world.decode(answer.tokens)

    run(main())


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_mixed_batch_equals_each_alone(world: World, full_world: World, scope: str) -> None:
    world = world if scope == "activated" else full_world
    pairs = [(text, session) for text in TEXTS for session in SESSIONS]

    async def main() -> None:
        async with running(world.artifact, rows=8, slots=2) as engine:
            requests = [world.request(*pair) for pair in pairs]
            answers = await gather(engine, requests)
            for request, answer in zip(requests, answers, strict=True):
                world.check_greedy(request, answer.tokens)
            different = {tuple(answer.tokens) for answer in answers}
            assert len(different) > 15, "the adapters change the answers"
            await until(lambda: engine.status().requests_finished == len(pairs))
            status = engine.status()
            assert status.decoding == status.slots_pinned == status.waiting == 0
            assert status.kv_bytes == 0, "an empty batch gives its memory back"
            assert status.generated_tokens == sum(len(a.tokens) for a in answers)

    run(main())


def test_requests_join_and_leave_while_others_go_on(world: World) -> None:
    lengths = [3, 40, 1, 17, 8, 30, 2]

    async def one(engine: Engine, index: int, tokens: int) -> None:
        await asyncio.sleep(0.004 * index)
        request = world.request(TEXTS[index % 5], SESSIONS[index % 5], max_tokens=tokens)
        world.check_greedy(request, (await collect(engine, request)).tokens)

    async def main() -> None:
        async with running(world.artifact, rows=3) as engine:
            await asyncio.gather(*(one(engine, *pair) for pair in enumerate(lengths)))

    run(main())


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_long_prompts_are_prefilled_in_bounded_pieces(
    world: World, full_world: World, scope: str
) -> None:
    world = world if scope == "activated" else full_world
    text = " ".join(TEXTS)
    assert len(world.prompt(text).prefix) > 40
    sizes: list[int] = []
    embed = world.artifact.model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].numel()))

    async def main() -> None:
        async with running(world.artifact, prefill_tokens=16) as engine:
            sizes.clear()
            answer = await collect(engine, world.request(text, "ann"))
            assert max(sizes) <= 16
            assert answer.tokens == world.greedy(text, "ann")

    try:
        run(main())
    finally:
        handle.remove()


def test_short_prompts_need_not_wait_for_the_whole_of_a_long_one(world: World) -> None:
    order: list[str] = []

    async def ask(engine: Engine, name: str, text: str) -> None:
        request = world.request(text, "ann", max_tokens=1)
        world.check_greedy(request, (await collect(engine, request)).tokens)
        order.append(name)

    async def main() -> None:
        async with running(world.artifact, prefill_tokens=8) as engine:
            asks = [("long", " ".join(TEXTS)), ("short", "Hi"), ("short", "Yes")]
            with holding(engine, prompts=0):
                asked = asyncio.gather(*(ask(engine, *one) for one in asks))
                await until(lambda: engine.status().prefilling == len(asks))
            await asked

    run(main())
    assert order == ["short", "short", "long"]


def test_raw_prompts_of_one_token_and_mixed_headers(world: World) -> None:
    """An empty prefix, and rows whose heads differ in length, share a batch."""
    whole = world.prompt("Hi").ids
    prompts = [world.encoder.raw("a"), world.encoder.raw("hello there")]
    prompts.append(EncodedPrompt(whole[:-3], whole[-3:]))

    async def main() -> None:
        async with running(world.artifact) as engine:
            requests = [
                GenerateRequest(prompt, Sampling(max_tokens=6), world.ref("bob"))
                for prompt in prompts
            ]
            for request, answer in zip(requests, await gather(engine, requests), strict=True):
                world.check_greedy(request, answer.tokens)

    run(main())


def test_logprobs_are_the_models(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            request = world.request(TEXTS[0], "bob", logprobs=True, temperature=0.7, seed=5)
            answer = await collect(engine, request)
            logits = world.logits(request.prompt, answer.tokens[:-1], "bob").log_softmax(-1)
            expected = logits[range(len(answer.tokens)), answer.tokens]
            torch.testing.assert_close(
                torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=1e-4
            )

    run(main())


def test_the_context_can_be_filled_to_the_last_token(world: World) -> None:
    prompt = world.prompt(TEXTS[0])
    room = world.artifact.context_tokens - len(prompt.ids)

    async def main() -> None:
        async with running(world.artifact) as engine:
            sampling = {"temperature": 3.0, "seed": 1, "max_tokens": room}
            answer = await collect(engine, world.request(TEXTS[0], **sampling))
            assert answer.finished.finish_reason in ("length", "stop")
            with pytest.raises(RequestTooLong, match="context is 192"):
                await collect(engine, world.request(TEXTS[0], max_tokens=room + 1))
            assert engine.status().running

    run(main())


def test_requests_that_cannot_be_done_are_refused_before_the_queue(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, kv_bytes=1) as engine:
            with pytest.raises(RequestTooLong, match="KV memory"):
                await collect(engine, world.request("Hi"))
        async with running(world.artifact) as engine:
            prompt = world.prompt("Hi")
            bad = EncodedPrompt(prompt.prefix, (9999,))
            with pytest.raises(InvalidRequest, match="vocabulary"):
                await collect(engine, GenerateRequest(bad, Sampling(max_tokens=1)))
            none = EncodedPrompt(prompt.ids, ())
            with pytest.raises(InvalidRequest, match="at least one token"):
                await collect(engine, GenerateRequest(none, Sampling(max_tokens=1)))

    run(main())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("stop", ("",)),
        ("seed", 2**63),
        ("choices", ("a", "a")),
    ],
)
def test_bad_sampling_names_its_field(setting: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=setting):
        Sampling(**{"max_tokens": 3, setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["rows", "slots", "queue", "threads", "adapt_batch"])
def test_bad_limits_name_their_field(setting: str) -> None:
    with pytest.raises(InvalidRequest, match=setting):
        EngineLimits(**{setting: 0})
    with pytest.raises(InvalidRequest, match="learn_share"):
        EngineLimits(learn_share=1.0)


def test_what_is_not_finite_does_not_reach_the_next_in_its_row(world: World) -> None:
    """A mask cannot hide it: nothing times what is not finite is not nothing."""
    wild = {name: torch.full_like(t, 1e38) for name, t in world.states["ann"].tensors.items()}
    broken = replace(world.states["ann"], tensors=wild)

    async def load() -> AdapterState:
        return broken

    async def main() -> None:
        async with running(world.artifact, rows=2) as engine:
            long = world.request(TEXTS[3], max_tokens=100, min_tokens=100)
            with holding(engine, decoding=0):
                others = asyncio.create_task(collect(engine, long))
                await until(lambda: engine.status().decoding == 1)
            request = replace(world.request(TEXTS[0]), adapter=AdapterRef("t/broken/1", load))
            with pytest.raises(EngineFailed, match="not finite"):
                await collect(engine, request)
            next_one = world.request("Hi")
            world.check_greedy(next_one, (await collect(engine, next_one)).tokens)
            await others

    run(main())
