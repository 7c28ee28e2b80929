"""Rules with element-wise sizes and still tensors: what the server derives is what was trained."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import World, make_artifact, run, running
from torch import Tensor

from adapters.artifact import Artifact, load_artifact, save_artifact
from adapters.inner_loop import descend
from adapters.state import Tensors, take
from meta_training.language import lay_out
from meta_training.learner import Learner
from meta_training.tasks.batches import encode_batch
from meta_training.tasks.episodes import Episode, Turn
from server.engine import AdaptRequest, Candidate

TAUGHT = (("Where is my order?", "On its way."), ("Is my order lost?", "No, on its way."))


def saved(artifact: Artifact, folder: Path, factors: bool, still: bool) -> Artifact:
    """``artifact`` with another rule, written and read again."""
    names = list(artifact.session_init)
    kept = frozenset(name for name in names if still and ".layers.0." in name)
    sizes = {name: s for name, s in artifact.rule.step_sizes.items() if name not in kept}
    generator = torch.Generator().manual_seed(3)

    def factor(name: str) -> Tensor:
        return torch.rand(artifact.session_init[name].shape, generator=generator) * 2

    found = {name: factor(name) for name in sizes} if factors else None
    rule = replace(artifact.rule, step_sizes=sizes, factors=found, still=kept)
    start = artifact.session_init
    save_artifact(
        folder, artifact.model, artifact.tokenizer, artifact.spec, start, rule, {}, artifact.header
    )
    return load_artifact(folder)


def trained_steps(artifact: Artifact) -> Tensors:
    """The inner loop as meta-training runs it, with its graph."""
    learner = Learner.from_artifact(artifact)
    turns = tuple(Turn(question, answer, "order") for question, answer in TAUGHT)
    episode = Episode("house_reply", turns, turns[:1], (), frozenset({"order"}))
    batch = encode_batch([episode], [[]], learner.encoder)
    batch = replace(batch, unrelated=batch.query, unrelated_sessions=[0])
    episodes = lay_out(learner, batch)
    tensors: Tensors = dict(episodes.start)
    for step in range(episodes.rule.steps):
        sizes = episodes.rule.sizes_at(step)
        tensors, _ = descend(episodes.support_losses, tensors, sizes, episodes.rule.clip, True)
    assert all(tensors[name].requires_grad for name in tensors)
    learner.hooks.remove()
    return take(tensors, 0)


@pytest.mark.parametrize(
    ("factors", "still"),
    [(True, False), (False, True), (True, True)],
    ids=["element-wise", "top layers", "both"],
)
def test_the_server_takes_the_steps_that_were_trained(
    world: World, tmp_path: Path, factors: bool, still: bool
) -> None:
    artifact = saved(world.artifact, tmp_path / "a", factors, still)
    assert (artifact.rule.factors is not None) == factors
    assert bool(artifact.rule.still) == still
    expected = trained_steps(load_artifact(tmp_path / "a"))
    taught = tuple(world.example(*pair) for pair in TAUGHT)

    async def main() -> Candidate:
        # Parts as small as they get, so that gradients of several are added up.
        async with running(artifact, micro_step_tokens=1) as engine:
            return await engine.adapt(AdaptRequest(taught))

    tensors = run(main()).state.tensors
    torch.testing.assert_close(tensors, expected, atol=1e-5, rtol=1e-4)
    for name, tensor in tensors.items():
        same = torch.equal(tensor, artifact.session_init[name])
        assert same == (name in artifact.rule.still), name


def test_lower_layers_that_stay_still_are_passed_once_a_job(tmp_path: Path) -> None:
    plain = make_artifact(tmp_path / "plain", anchors=False)
    artifact = saved(plain, tmp_path / "still", factors=False, still=True)
    world = World(artifact)
    taught = tuple(world.example(*pair) for pair in TAUGHT)
    others = (AdaptRequest(taught[:1], 2), AdaptRequest(taught, 5))
    passed: dict[int, int] = {}

    async def main() -> None:
        async with running(artifact) as engine:
            layers = artifact.model.model.layers
            for number in (0, 1):
                layers[number].mlp.register_forward_hook(
                    lambda *_, number=number: passed.update({number: passed.get(number, 0) + 1})
                )
            await engine.adapt(AdaptRequest(taught))  # its prompts are known from here on
            counts = []
            for steps in (2, 7):
                passed.clear()
                await engine.adapt(AdaptRequest(taught, steps))
                counts.append((passed[0], passed[1]))
            assert counts == [(2, 4), (2, 9)], "before, and for all steps; upper layers each time"
            alone = [await engine.adapt(request) for request in others]
            together = await asyncio.gather(*map(engine.adapt, others))
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(other.state.tensors, one.state.tensors, atol=1e-5, rtol=1e-4)

    run(main())


def test_another_rule_is_another_derivation(world: World, tmp_path: Path) -> None:
    hashes = {
        saved(world.artifact, tmp_path / f"{f}{s}", f, s).rule_hash
        for f in (False, True)
        for s in (False, True)
    }
    assert len(hashes) == 4
    assert world.artifact.rule_hash in hashes, "a rule that needs nothing new is what it was"
