"""The gate in the engine: an adapter answers what is near to what was taught, the base the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import World, collect, gather, make_artifact, run, running

from adapters.artifact import Artifact
from adapters.config import Gate
from adapters.gate import gate_keys
from adapters.prefix import prefill
from server.engine import AdaptRequest, GenerateRequest, Sampling

TAUGHT, FAR = "Can I return a jug?", "Where is my parcel, and is the cat still asleep in it?"
LAYER = 1


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact whose gate opens for a taught prompt itself and for nothing else."""
    folder: Path = tmp_path_factory.mktemp("gated") / "artifact"
    plain = make_artifact(folder, anchors=False)
    return replace(plain, rule=replace(plain.rule, gate=Gate(LAYER, 0.9999)))


@pytest.fixture
def world(artifact: Artifact) -> World:
    world = World(artifact)
    with torch.no_grad():
        prompts = [world.prompt(TAUGHT).prefix]
        summaries = prefill(world.model, prompts, torch.device("cpu"), LAYER).summaries
    assert summaries is not None
    world.states = {
        name: replace(state, keys=gate_keys(summaries)) for name, state in world.states.items()
    }
    return world


def test_the_adapter_answers_the_taught_prompt_and_the_base_the_others(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            taught, far, other = await gather(
                engine,
                [
                    world.request(TAUGHT, "ann"),
                    world.request(FAR, "ann"),
                    world.request(TAUGHT, "bob"),
                ],
            )
            assert taught.tokens == world.greedy(TAUGHT, "ann")
            assert far.tokens == world.greedy(FAR)
            assert [a.finished.adapter_used for a in (taught, far, other)] == [True, False, True]
            assert other.tokens == world.greedy(TAUGHT, "bob")
            assert engine.status().slots_pinned == 0

    run(main())
    assert world.greedy(FAR) != world.greedy(FAR, "ann"), "the adapter would have changed it"


def test_a_long_prompt_in_pieces_passes_the_same_gate(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact, prefill_tokens=4) as engine:
            taught = await collect(engine, world.request(TAUGHT, "ann"))
            assert taught.tokens == world.greedy(TAUGHT, "ann")
            far = await collect(engine, world.request(FAR, "ann"))
            assert far.tokens == world.greedy(FAR)

    run(main())


def test_choices_are_the_adapters_whatever_the_prompt(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            sampling = Sampling(max_tokens=8, choices=("yes", "no, never"))
            prompt = world.prompt(FAR)
            taught = await collect(engine, GenerateRequest(prompt, sampling, world.ref("ann")))
            untaught = await collect(engine, GenerateRequest(prompt, sampling, None))
            assert taught.finished.adapter_used
            assert taught.finished.choice_logprobs != untaught.finished.choice_logprobs

    run(main())


def test_an_adapted_candidate_knows_its_own_prompts(world: World) -> None:
    async def main() -> None:
        async with running(world.artifact) as engine:
            examples = (world.example(TAUGHT, "Gladly."), world.example(FAR, "On the roof."))
            candidate = await engine.adapt(AdaptRequest(examples, None))
            keys = candidate.state.keys
            assert keys is not None
            assert keys.shape == (2, world.model.config.hidden_size)
            torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2))
            world.states["ann"] = candidate.state
            for text in (TAUGHT, FAR):
                answer = await collect(engine, world.request(text, "ann"))
                logits = world.logits_under(world.prompt(text), [], candidate.state)
                assert answer.tokens[0] == int(logits[-1].argmax())

    run(main())
