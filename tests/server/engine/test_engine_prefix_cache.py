"""Reused prompts never change an answer, and nothing an adapter computed is ever reused."""

import asyncio
from dataclasses import replace

import pytest
import torch
from engine_harness import World, collect, gather, run, running, until

from adapters.prefix import Prefix, prefill
from server.engine import AdaptRequest, Engine
from server.engine.prefix_cache import PrefixCache, prefix_bytes

TEXTS = ["Where is my order?", "Refund please", "Hi", "Do you ship to Norway?"]


def cache_of(engine: Engine) -> PrefixCache:
    return engine._worker._cache


def test_answers_are_equal_with_the_cache_on_and_off(world: World) -> None:
    pairs = [(text, session) for session in (None, "ann", "bob") for text in TEXTS]

    async def answers(cache_bytes: int) -> list[list[int]]:
        async with running(world.artifact, prefix_cache_bytes=cache_bytes) as engine:
            waves = [await gather(engine, [world.request(*p) for p in pairs]) for _ in range(2)]
            return [answer.tokens for wave in waves for answer in wave]

    on, off = run(answers(2**20)), run(answers(0))
    assert on == off
    for pair, tokens in zip(pairs * 2, on, strict=True):
        world.check_greedy(world.request(*pair), tokens)


def test_sessions_share_prompts_and_adapting_finds_them(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            prefix = len(world.prompt(TEXTS[0]).prefix)
            first = await collect(engine, world.request(TEXTS[0], "ann"))
            second = await collect(engine, world.request(TEXTS[0], "bob"))
            assert (first.finished.cached_tokens, second.finished.cached_tokens) == (0, prefix)
            computed = engine.status().prefilled_tokens
            await engine.adapt(AdaptRequest((world.example(TEXTS[0], "On its way."),)))
            assert engine.status().prefilled_tokens == computed

    run(main())


def test_the_same_prompt_at_the_same_time_is_computed_once(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            requests = [world.request(TEXTS[0], session) for session in ("ann", "bob", None)]
            for request, answer in zip(requests, await gather(engine, requests), strict=True):
                world.check_greedy(request, answer.tokens)
            assert engine.status().prefilled_tokens == len(world.prompt(TEXTS[0]).prefix)

    run(main())


def test_kept_prompts_are_the_bases_own(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            await gather(engine, [world.request(text, "ann") for text in TEXTS])
            await engine.adapt(AdaptRequest((world.example("Something new?", "Yes."),)))
            entries = dict(cache_of(engine)._entries)
            assert len(entries) == len(TEXTS) + 1
            for tokens, kept in entries.items():
                with torch.no_grad():
                    fresh = prefill(world.model, [tokens], torch.device("cpu"))
                torch.testing.assert_close(kept.layers, fresh.layers, atol=1e-4, rtol=1e-4)

    run(main())


def test_a_chats_third_turn_prefills_the_reply_with_base_weights(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            chat = [{"role": "user", "content": "Hi"}]
            for _ in range(3):
                request = replace(
                    world.request("", "bob", max_tokens=8), prompt=world.encoder.prompt(chat)
                )
                answer = await collect(engine, request)
                world.check_greedy(request, answer.tokens)
                chat += [
                    {"role": "assistant", "content": answer.text or "..."},
                    {"role": "user", "content": "And then?"},
                ]

    run(main())


def test_full_scope_keeps_no_prompt_of_an_adapter(full_world: World) -> None:
    async def main() -> None:
        async with running(full_world.artifact) as engine:
            for session in ("ann", "bob", "ann"):
                request = full_world.request(TEXTS[0], session)
                answer = await collect(engine, request)
                full_world.check_greedy(request, answer.tokens)
                assert answer.finished.cached_tokens == 0
            assert engine.status().prefix_cache_entries == 0

    run(main())


def test_eviction_under_pressure_changes_nothing(world: World) -> None:
    texts = [f"Question {n}: where is my parcel?" for n in range(8)]

    async def main() -> None:
        async with running(world.artifact, prefix_cache_bytes=2**14) as engine:
            requests = [world.request(text, "ann") for text in texts * 2]
            for request, answer in zip(requests, await gather(engine, requests), strict=True):
                world.check_greedy(request, answer.tokens)
            status = engine.status()
            assert 0 < status.prefix_cache_bytes <= status.prefix_cache_limit_bytes == 2**14
            assert status.prefix_cache_entries < len(texts)

    run(main())


def test_a_cancelled_request_leaves_only_whole_prompts(world: World) -> None:
    text = " ".join(TEXTS * 3)

    async def main() -> None:
        async with running(world.artifact, prefill_tokens=8) as engine:
            task = asyncio.ensure_future(collect(engine, world.request(text)))
            await until(lambda: engine.status().prefilling == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: engine.status().requests_cancelled == 1)
            assert engine.status().prefilling == 0
            request = world.request(text, "ann")
            world.check_greedy(request, (await collect(engine, request)).tokens)
            assert set(cache_of(engine)._entries) == {request.prompt.prefix}

    run(main())


def entry(tokens: int) -> Prefix:
    tensor = torch.zeros(1, 2, tokens, 4)
    return Prefix(((tensor, tensor.clone()),), torch.tensor([tokens]))


def test_the_cache_stays_in_its_budget_and_drops_the_least_recently_used() -> None:
    size = prefix_bytes(entry(3))
    cache = PrefixCache(2 * size)
    cache.put((1, 2, 3), entry(3))
    cache.put((4, 5, 6), entry(3))
    assert cache.get((1, 2, 3)) is not None
    cache.put((7, 8, 9), entry(3))
    assert cache.get((4, 5, 6)) is None
    assert cache.get((1, 2, 3)) is not None
    assert (len(cache), cache.used_bytes, cache.hits, cache.misses) == (2, 2 * size, 2, 1)
    cache.put(tuple(range(9)), entry(9))
    assert len(cache) == 2, "what is larger than the budget is not kept, and evicts nobody"
    cache.put((7, 8, 9), entry(3))
    assert cache.used_bytes == 2 * size, "keeping a prompt twice counts once"


@pytest.mark.parametrize("budget", [0, 1])
def test_a_budget_of_nothing_keeps_nothing(budget: int) -> None:
    cache = PrefixCache(budget)
    cache.put((1,), entry(1))
    assert len(cache) == 0
