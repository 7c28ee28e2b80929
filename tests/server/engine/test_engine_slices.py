"""Work that pauses in its middle: never beside its owner, and with the same result."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from engine_harness import World, collect, run, running, until
from torch import nn

from server.engine import AdaptRequest, EngineStopped
from server.engine.slices import PausePoints, Sliced
from server.engine.types import EngineLimits


def lesson_threads() -> set[int | None]:
    return {t.ident for t in threading.enumerate() if t.name == "innerloop-lesson"}


@pytest.fixture
def sliced() -> Iterator[Sliced]:
    before = lesson_threads()  # a server of other tests may have one
    made = Sliced(threads=1)
    yield made
    made.close()
    assert lesson_threads() == before


def always() -> bool:
    return True


def never() -> bool:
    return False


def hooks_on(world: World) -> int:
    return sum(len(module._forward_hooks) for module in world.artifact.model.modules())


def test_work_pauses_where_it_asks_and_goes_on_there(sliced: Sliced) -> None:
    done: list[str] = []

    def work() -> None:
        for name in "abc":
            done.append(name)
            sliced.pause()

    assert not sliced.run(work, always)
    assert done == ["a"]
    sliced.pause()  # the owner's own passes come by here too
    assert not sliced.run(lambda: done.append("never begun"), always)
    assert done == ["a", "b"]
    assert sliced.run(work, never)
    assert done == ["a", "b", "c"]
    assert sliced.run(lambda: done.append("next"), always), "it never asked"
    assert done[3:] == ["next"]


def test_what_work_raises_its_owner_raises(sliced: Sliced) -> None:
    def work() -> None:
        sliced.pause()
        raise ValueError("no such example")

    assert not sliced.run(work, always)
    with pytest.raises(ValueError, match="no such example"):
        sliced.run(work, always)
    assert sliced.run(lambda: None, always), "the next one is not hurt"


def test_work_that_nobody_wants_ends_where_it_paused(sliced: Sliced) -> None:
    ends: list[str] = []

    def work() -> None:
        try:
            sliced.pause()
            ends.append("not reached")
        finally:
            ends.append("cleaned up")

    sliced.abandon()  # nothing to abandon
    assert not sliced.run(work, always)
    sliced.abandon()
    assert ends == ["cleaned up"]
    assert sliced.run(lambda: ends.append("next"), never)
    assert ends == ["cleaned up", "next"]


def test_a_pass_pauses_forward_and_backward_and_has_the_same_gradients(sliced: Sliced) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    inputs = torch.randn(4, 5)
    found: list[tuple[torch.Tensor, ...]] = []

    def work() -> None:
        found.append(torch.autograd.grad(model(inputs).square().sum(), list(model.parameters())))

    work()
    points = PausePoints([model[0], model[2]], sliced.pause)
    pauses = 0
    while not sliced.run(work, always):
        pauses += 1
        with torch.no_grad():
            model(inputs)  # as a decode step between
    assert pauses == 4, "two layers, two directions"
    copied = copy.deepcopy(model)
    assert not sliced.run(lambda: found.append((model(inputs).detach(),)), always)
    copied(inputs)  # pauses nobody's work, whoever runs it
    sliced.abandon()
    points.remove()
    work()
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert len(found) == 3


def test_learning_in_small_slices_beside_a_stream_changes_no_bit(world: World) -> None:
    examples = (world.example("Where is it?", "On its way."), world.example("Hi", "Good day!"))
    request = world.request("Hi", "ann", max_tokens=150, temperature=2.0, seed=4)
    limits = {"learn_share": 0.02, "micro_step_tokens": EngineLimits().adapt_tokens}

    async def main() -> None:
        async with running(world.artifact, **limits) as engine:  # type: ignore[arg-type]
            answer = await collect(engine, request)
            await engine.adapt(AdaptRequest(examples))  # its prompts are known from here on
            alone = await engine.adapt(AdaptRequest(examples))
            beside = asyncio.ensure_future(collect(engine, request))
            await until(lambda: engine.status().decoding == 1)
            before = engine.status().generated_tokens
            learned = await engine.adapt(AdaptRequest(examples))
            assert engine.status().generated_tokens > before, "they ran at the same time"
            assert (await beside).tokens == answer.tokens
            for name, tensor in alone.state.tensors.items():
                assert torch.equal(learned.state.tensors[name], tensor), name

    run(main())


def test_a_lesson_that_is_paused_when_the_engine_stops_is_ended(world: World) -> None:
    examples = (world.example("Where is it?", "On its way."),)

    async def main() -> None:
        async with running(world.artifact, learn_share=0.001) as engine:  # type: ignore[arg-type]
            request = world.request("Hi", "ann", max_tokens=150, temperature=2.0, seed=4)
            answer = asyncio.ensure_future(collect(engine, request))
            await until(lambda: engine.status().decoding == 1)
            job = asyncio.ensure_future(engine.adapt(AdaptRequest(examples, steps=10_000)))
            await until(lambda: engine.status().adapts_learning == 1)
            await engine.stop(0.0)
            with pytest.raises(EngineStopped):
                await job
            assert (await answer).finished.finish_reason in ("cancelled", "length", "stop")

    attached = hooks_on(world)
    run(main())
    assert hooks_on(world) == attached
