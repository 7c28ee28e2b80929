"""Reused prompts never change an answer, and nothing an adapter computed is ever reused."""

import asyncio
from dataclasses import replace

import pytest
import torch
from engine_harness import World, collect, gather, holding, run, running, until

from adapters.config import Gate
from adapters.prefix import Prefix, prefill
from server.engine import AdaptRequest, Engine
from server.engine.base import LayerForm
from server.engine.prefix_cache import BLOCK_TOKENS, PrefixCache, Tokens, prefix_owner

OWNER = prefix_owner("", None)
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
            example = world.example("Something new?", "Yes.")
            await gather(engine, [world.request(text, "ann") for text in TEXTS])
            await engine.adapt(AdaptRequest((example,)))
            for tokens in [*(world.prompt(text).prefix for text in TEXTS), example.prompt]:
                kept = cache_of(engine).get(tokens, OWNER)
                assert kept is not None
                with torch.no_grad():
                    fresh = prefill(world.model, [tokens], torch.device("cpu"))
                torch.testing.assert_close(kept.layers, fresh.layers, atol=1e-4, rtol=1e-4)

    run(main())


def test_prompts_share_the_blocks_they_begin_with(world: World) -> None:
    history = " ".join(TEXTS * 2)

    async def main() -> None:
        async with running(world.artifact, prefill_tokens=16) as engine:
            first = world.request(history + " One.", "ann")
            await collect(engine, first)
            computed = engine.status().prefilled_tokens
            for session, end in (("bob", " Two?"), (None, " Three, and so on."), ("ann", "")):
                request = world.request(history + end, session)
                shared = common(first.prompt.prefix, request.prompt.prefix)
                answer = await collect(engine, request)
                world.check_greedy(request, answer.tokens)
                assert answer.finished.cached_tokens == shared // BLOCK_TOKENS * BLOCK_TOKENS > 0
                new = len(request.prompt.prefix) - answer.finished.cached_tokens
                assert engine.status().prefilled_tokens == computed + new
                computed += new

    run(main())


def common(one: Tokens, other: Tokens) -> int:
    pairs = zip(one, other, strict=False)
    return next(n for n, (a, b) in enumerate(pairs) if a != b)


def test_tenants_share_nothing(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            for tenant in ("one", "other"):
                for cached in (False, True):
                    request = replace(world.request(TEXTS[0], "ann"), tenant=tenant)
                    answer = await collect(engine, request)
                    world.check_greedy(request, answer.tokens)
                    prefix = len(request.prompt.prefix)
                    assert answer.finished.cached_tokens == (prefix if cached else 0)
            computed = engine.status().prefilled_tokens
            example = world.example(TEXTS[0], "On its way.")
            await engine.adapt(AdaptRequest((example,), tenant="other"))
            assert engine.status().prefilled_tokens == computed
            await engine.adapt(AdaptRequest((example,), tenant="third"))
            assert engine.status().prefilled_tokens == computed + len(example.prompt)

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


def test_full_scope_keeps_prompts_by_session_and_version(full_world: World) -> None:
    world = full_world

    async def main() -> None:
        async with running(world.artifact) as engine:
            for session, known in (("ann", 0), ("bob", 0), ("ann", 1), (None, 0), (None, 1)):
                request = world.request(TEXTS[0], session)
                answer = await collect(engine, request)
                world.check_greedy(request, answer.tokens)
                prefix = len(request.prompt.ids) - 1
                assert answer.finished.cached_tokens == prefix * known
            world.states["ann"] = world.states["cem"]
            newer = replace(world.ref("ann"), key="tenant/ann/2")
            request = replace(world.request(TEXTS[0], "ann"), adapter=newer)
            answer = await collect(engine, request)
            world.check_greedy(request, answer.tokens)
            assert answer.finished.cached_tokens == 0

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
            kept = [r for r in requests[8:] if cache_of(engine).get(r.prompt.prefix, OWNER)]
            assert len(kept) < len(texts)

    run(main())


def test_a_cancelled_request_leaves_only_whole_prompts(world: World) -> None:
    text = " ".join(TEXTS * 3)

    async def main() -> None:
        async with running(world.artifact, prefill_tokens=8) as engine:
            with holding(engine, prompts=3):
                task = asyncio.ensure_future(collect(engine, world.request(text)))
                await until(lambda: engine.status().prefilled_tokens == 3 * 8)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await until(lambda: engine.status().requests_cancelled == 1)
            assert engine.status().prefilling == 0
            request = world.request(text, "ann")
            world.check_greedy(request, (await collect(engine, request)).tokens)
            blocks = -(-len(request.prompt.prefix) // BLOCK_TOKENS)
            assert engine.status().prefix_cache_blocks == blocks

    run(main())


def test_a_prompt_that_another_goes_on_from_is_found_with_its_summary(world: World) -> None:
    """The gate asks for the summary of a prompt's own last token."""
    gated = replace(world.artifact, rule=replace(world.artifact.rule, gate=Gate(1, 0.5)))
    tokens = world.prompt(" ".join(TEXTS)).prefix[: 2 * BLOCK_TOKENS]
    example = world.example("Hi", "Yes.")

    async def main() -> None:
        async with running(gated) as engine:
            for end in (32, 16, 16):
                await engine.adapt(AdaptRequest((replace(example, prompt=tokens[:end]),)))
            assert engine.status().prefilled_tokens == 32 + 16
            for end in (32, 16):
                kept = cache_of(engine).get(tokens[:end], OWNER)
                fresh = prefill(world.model, [tokens[:end]], torch.device("cpu"), 1)
                assert kept is not None
                torch.testing.assert_close(kept.summaries, fresh.summaries, atol=1e-4, rtol=1e-4)

    run(main())


FORM = LayerForm((2, 4), (2, 4), torch.float32)
BLOCK_BYTES = BLOCK_TOKENS * FORM.token_bytes


def small_cache(blocks: int) -> PrefixCache:
    return PrefixCache([FORM], 0, blocks * BLOCK_BYTES, torch.device("cpu"))


def prompt(*blocks: int, tail: int = 0) -> tuple[Tokens, Prefix]:
    """A prompt of whole blocks of one token each, and ``tail`` more tokens; its keys name them."""
    tokens = tuple(token for token in blocks for _ in range(BLOCK_TOKENS)) + (99,) * tail
    keys = torch.tensor(tokens).float().view(1, 1, -1, 1).expand(1, 2, -1, 4).clone()
    return tokens, Prefix(((keys, -keys),), torch.tensor([len(tokens)]))


def held(cache: PrefixCache, tokens: Tokens, owner: str = "") -> int:
    kept = cache.get(tokens, owner)
    if kept is None:
        return 0
    keys, values = kept.layers[0]
    assert keys[0, 0, :, 0].tolist() == list(tokens[: kept.width])
    assert torch.equal(keys, -values)
    assert kept.lengths.tolist() == [kept.width]
    return kept.width


def test_the_cache_stays_in_its_budget_and_drops_the_least_recently_used() -> None:
    cache = small_cache(4)
    one, two, three = prompt(1, 2), prompt(1, 3, tail=5), prompt(4, tail=3)
    cache.put(one[0], "", one[1])
    cache.put(two[0], "", two[1])
    assert len(cache) == 4
    assert cache.used_bytes == 4 * BLOCK_BYTES
    assert (held(cache, two[0]), held(cache, one[0])) == (37, 32)
    cache.put(three[0], "", three[1])
    assert held(cache, three[0]) == 19
    assert held(cache, two[0]) == 16, "the ends that were used longest ago went first"
    assert held(cache, one[0]) == 32
    assert len(cache) == 4
    assert (cache.hit_tokens, cache.miss_tokens) == (37 + 32 + 19 + 16 + 32, 21)


def test_of_a_prompt_larger_than_the_budget_the_beginning_is_kept() -> None:
    cache = small_cache(2)
    tokens, prefix = prompt(1, 2, 3)
    cache.put(tokens, "", prefix)
    assert held(cache, tokens) == 32
    cache.put(tokens, "", prefix)
    assert held(cache, tokens) == 32


def test_a_write_that_fails_leaves_nothing_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small_cache(4)
    known, prefix = prompt(1)
    cache.put(known, "", prefix)
    tokens, prefix = prompt(1, 2, 3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write", broken)
        with pytest.raises(MemoryError):
            cache.put(tokens, "", prefix)
    assert held(cache, tokens) == 16
    cache.put(tokens, "", prefix)
    assert held(cache, tokens) == 64


def broken(*_: object) -> None:
    raise MemoryError("no room")


@pytest.mark.parametrize("name", ["put", "get"])
def test_a_cache_that_fails_costs_nobody_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            monkeypatch.setattr(cache_of(engine), name, broken)
            requests = [world.request(text, "ann") for text in TEXTS * 2]
            for request, answer in zip(requests, await gather(engine, requests), strict=True):
                world.check_greedy(request, answer.tokens)
            await engine.adapt(AdaptRequest((world.example(TEXTS[0], "On its way."),)))
            assert engine.status().requests_failed == 0
            # Let go of a moment after the last answer has gone out.
            await until(lambda: engine.status().prefilling == 0)
            await until(lambda: not engine._worker._prefills._shared)

    run(main())


def test_only_the_same_owner_finds_a_prompt_and_only_the_same_beginning_a_block() -> None:
    cache = small_cache(8)
    tokens, prefix = prompt(1, 2)
    cache.put(tokens, "one", prefix)
    assert held(cache, tokens, "other") == 0
    assert held(cache, prompt(2, 2)[0], "one") == 0
    assert held(cache, prompt(1, 1)[0], "one") == 16
    assert held(cache, prompt(1, 2, tail=1)[0], "one") == 32
    assert prefix_owner("a", None) != prefix_owner("a", "None")


@pytest.mark.parametrize("budget", [0, 1])
def test_a_budget_of_nothing_keeps_nothing(budget: int) -> None:
    cache = PrefixCache([FORM], 0, budget, torch.device("cpu"))
    tokens, prefix = prompt(1)
    cache.put(tokens, "", prefix)
    assert cache.get(tokens, "") is None
    assert len(cache) == 0
