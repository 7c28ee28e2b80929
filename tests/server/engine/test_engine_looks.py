"""Looking at prompts: the gate's vectors of them, and a gate that goes by what it is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_harness import World, collect, make_artifact, run, running

from adapters.artifact import Artifact
from adapters.config import Gate
from adapters.gate import answer_number, prompt_vectors
from adapters.prefix import prefill
from adapters.spelling import BUCKETS
from adapters.state import Taught
from adapters.words import make_words
from server.engine import EngineStopped, InvalidRequest, RequestTooLong

TAUGHT, FAR = "Can I return a jug?", "Where is my parcel, and is the cat still asleep in it?"
LAYER = 1


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    plain = make_artifact(tmp_path_factory.mktemp("looks") / "artifact", anchors=False)
    vectors = torch.randn(BUCKETS, 5, generator=torch.Generator().manual_seed(3))
    words = make_words(vectors, torch.ones(BUCKETS), plain.tokenizer)
    return replace(plain, rule=replace(plain.rule, gate=Gate(LAYER, 0.9999, words=words)))


@pytest.fixture
def world(artifact: Artifact) -> World:
    world = World(artifact)
    gate = artifact.rule.gate
    assert gate is not None
    number = torch.tensor([answer_number((1, 2))])
    taught = Taught(vectors(world, TAUGHT), number, gate.view)
    world.states = {name: replace(state, taught=taught) for name, state in world.states.items()}
    return world


@torch.no_grad()
def vectors(world: World, *texts: str) -> torch.Tensor:
    """(N, E) how the gate sees prompts, by the model alone."""
    gate, prompts = world.artifact.rule.gate, [world.prompt(text).prefix for text in texts]
    found = [
        prefill(world.model, [prompt], torch.device("cpu"), LAYER).summaries for prompt in prompts
    ]
    assert gate is not None
    summaries = torch.cat([one for one in found if one is not None])
    return prompt_vectors(gate, summaries, prompts)


@pytest.mark.parametrize("prefill_tokens", [4, 512])
def test_a_look_gives_each_prompts_vector_however_it_is_computed(
    world: World, prefill_tokens: int
) -> None:
    texts = [TAUGHT, FAR, TAUGHT, "Hello"]
    prompts = [world.prompt(text).prefix for text in texts]

    async def main() -> None:
        async with running(world.artifact, prefill_tokens=prefill_tokens) as engine:
            for _ in range(2):  # computed, and found again
                seen = await engine.look(prompts, "acme")
                assert torch.allclose(seen, vectors(world, *texts), atol=1e-5)
            answered = await collect(engine, world.request(TAUGHT, "ann"))
            assert answered.tokens == world.greedy(TAUGHT, "ann")
            status = engine.status()
            assert (status.prefilling, status.waiting) == (0, 0)

    run(main())


def test_the_gate_goes_by_what_it_is_shown(world: World) -> None:
    near, far = vectors(world, TAUGHT), vectors(world, FAR)

    async def main() -> None:
        async with running(world.artifact) as engine:
            opened = await collect(engine, replace(world.request(FAR, "ann"), seen=near))
            assert opened.finished.adapter_used
            assert opened.tokens == world.greedy(FAR, "ann")
            shut = await collect(engine, replace(world.request(TAUGHT, "ann"), seen=far))
            assert not shut.finished.adapter_used
            assert shut.tokens == world.greedy(TAUGHT)

    run(main())


def test_what_cannot_be_looked_at_is_refused(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            with pytest.raises(RequestTooLong):
                await engine.look([(1,) * 193], "")
            with pytest.raises(InvalidRequest, match=r"prompts\[1\] is empty"):
                await engine.look([(1,), ()], "")
            with pytest.raises(InvalidRequest, match="no prompts"):
                await engine.look([], "")
            with pytest.raises(InvalidRequest, match="vocabulary"):
                await engine.look([(10**6,)], "")
            await engine.look([(1,)], "")
        with pytest.raises(EngineStopped):
            await engine.look([(1,)], "")
        plain = replace(world.artifact, rule=replace(world.artifact.rule, gate=None))
        async with running(plain) as engine:
            with pytest.raises(InvalidRequest, match="no gate"):
                await engine.look([(1,)], "")

    run(main())
