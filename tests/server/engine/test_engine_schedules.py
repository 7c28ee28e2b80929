"""Whatever comes, goes and learns at the same time: every answer is the request's own."""

import asyncio
from dataclasses import dataclass

import pytest
from engine_harness import World, collect, quiet, run, running, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.state import Tensors
from server.engine import AdaptRequest, Engine

TEXTS = ("Hi", "Where is my order?", "I want my money back, the shoes are far too small.")
TAUGHT = ("Yes.", "On its way, please wait.")


@dataclass(frozen=True)
class Act:
    """One client: when it comes, what it wants, and whether it goes away early."""

    wait_ms: int
    text: str
    session: str | None
    max_tokens: int
    leaves_after: int | None
    teaches: int | None  # instead of asking: the number of steps


ACTS = st.builds(
    Act,
    wait_ms=st.integers(0, 20),
    text=st.sampled_from(TEXTS),
    session=st.sampled_from([None, "ann", "bob", "cem"]),
    max_tokens=st.integers(1, 24),
    leaves_after=st.none() | st.integers(0, 4),
    teaches=st.none() | st.none() | st.integers(1, 4),
)
LIMITS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 5),
        "slots": st.integers(1, 3),
        "prefill_tokens": st.sampled_from([4, 32, 512]),
        "prefix_cache_bytes": st.sampled_from([0, 2**13, 2**20]),
        "adapt_batch": st.integers(1, 3),
        "recorded": st.sampled_from([False, False, True]),
    }
)


async def play(world: World, engine: Engine, act: Act) -> Tensors | None:
    await asyncio.sleep(act.wait_ms / 1000)
    if act.teaches is not None:
        examples = tuple(world.example(act.text, answer) for answer in TAUGHT)
        return (await engine.adapt(AdaptRequest(examples, act.teaches))).state.tensors
    request = world.request(act.text, act.session, max_tokens=act.max_tokens)
    if act.leaves_after is None:
        world.check_greedy(request, (await collect(engine, request)).tokens)
        return None
    items = engine.generate(request)
    for _ in range(act.leaves_after):
        if await anext(items, None) is None:
            break
    await items.aclose()
    return None


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(ACTS, min_size=1, max_size=8), LIMITS)
def test_random_schedules(world: World, acts: list[Act], limits: dict[str, int]) -> None:
    async def main() -> None:
        async with running(world.artifact, **limits) as engine:
            results = await asyncio.gather(*(play(world, engine, act) for act in acts))
            for act, tensors in zip(acts, results, strict=True):
                if tensors is not None:
                    alone = await play(world, engine, act)
                    assert alone is not None
                    for name, tensor in alone.items():
                        assert tensors[name].numpy() == pytest.approx(tensor.numpy(), abs=1e-3)
            await until(lambda: quiet(engine))
            assert engine.status().requests_failed == engine.status().adapts_failed == 0
            assert engine.status().prefix_cache_bytes <= limits["prefix_cache_bytes"]

    run(main())
