"""The engine on a CUDA device: the same answers, from graphs, and nothing waits inside a step."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import World, gather, run, running
from torch.testing import assert_close

from adapters.artifact import Artifact, load_artifact
from server.engine import AdaptRequest
from server.engine.base import make_base
from server.engine.graphed import Graphed
from server.engine.kv import BatchKV

pytestmark = pytest.mark.gpu


def on_the_gpu(artifact: Artifact) -> Artifact:
    """In float32, to be compared; a server has bfloat16 there."""
    device = torch.device("cuda")
    init = {name: tensor.to(device) for name, tensor in artifact.session_init.items()}
    return replace(artifact, model=copy.deepcopy(artifact.model).to(device), session_init=init)


def test_answers_are_the_models_own_and_come_from_graphs(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(on_the_gpu(world.artifact), rows=8, recorded=True) as engine:
            requests = [
                world.request(text, session, max_tokens=20)
                for text in ("Hi", "Where is my order, please? " * 3)
                for session in (None, "ann", "bob", "cem", "dan", "eve")
            ]
            for _ in range(2):
                answers = await gather(engine, requests)
                for request, answer in zip(requests, answers, strict=True):
                    world.check_greedy(request, answer.tokens)

    run(main())
    assert "not captured" not in caplog.text


def test_it_learns_what_a_cpu_learns(world: World) -> None:
    request = AdaptRequest((world.example("Hi", "Yes."), world.example("Is it here? " * 4, "No.")))

    async def learned(artifact: Artifact) -> dict[str, torch.Tensor]:
        async with running(artifact, recorded=True) as engine:
            return dict((await engine.adapt(request)).state.tensors)

    async def main() -> None:
        expected = await learned(world.artifact)
        for name, tensor in (await learned(on_the_gpu(world.artifact))).items():
            assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3)

    run(main())


def test_a_folder_is_loaded_with_16_bit_weights_and_learns(world: World, tmp_path: Path) -> None:
    world.artifact.model.save_pretrained(tmp_path)
    world.artifact.tokenizer.save_pretrained(tmp_path)
    artifact = load_artifact(tmp_path, torch.device("cuda"))

    async def main() -> None:
        async with running(artifact, recorded=True) as engine:
            candidate = await engine.adapt(AdaptRequest((world.example("Hi", "Yes."),)))
            assert candidate.loss_after < candidate.loss_before
            await gather(engine, [world.request("Hi"), world.request("Hello")])

    assert artifact.model.dtype is torch.bfloat16
    run(main())


@torch.no_grad()
def test_a_step_waits_for_nothing(world: World) -> None:
    base = make_base(on_the_gpu(world.artifact))
    kv = BatchKV(base.layers, 8, base.context_tokens, 10**9, base.device)
    kv.hold(8, 64)
    step = Graphed(base)
    first = step(kv, [5, 6, 7], [1, 2, 3], None).clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = step(kv, [5, 6, 7], [1, 2, 3], None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(first, again)
