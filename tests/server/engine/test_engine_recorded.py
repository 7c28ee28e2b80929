"""Recorded and graphed decode steps: the model's own logits, keys and values at any size."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from engine_harness import World
from torch import Tensor, nn

from adapters.layer import Rows
from adapters.state import stack
from server.engine.base import Base, make_base
from server.engine.forward import Step, run
from server.engine.fused import fused_operations
from server.engine.graphed import Graphed, Replay
from server.engine.kernels import compiler
from server.engine.kv import BatchKV
from server.engine.recorded import Recorded, recorded_step


@pytest.fixture
def base(world: World) -> Iterator[Base]:
    made = make_base(world.artifact)
    yield made
    made.hooks.remove()


def adapters(world: World, form: str, count: int) -> Rows | None:
    """Rows of a batch in every form that slots give them."""
    tensors = [state.tensors for state in world.states.values()]
    if form == "untaught":
        return None
    if form == "one":
        return Rows(stack(tensors[:1]), None)
    slots = [row % len(tensors) for row in range(count)]
    if form == "each":
        return Rows(stack([tensors[slot] for slot in slots]), None)
    return Rows(stack(tensors), torch.tensor(slots))


def fused(base: Base) -> Recorded:
    """A recording of our own operations, which have to be there."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    own = fused_operations(base)
    assert own is not None
    return Recorded(base, own)


def forgetful(step: Replay) -> Replay:
    """As a graph does: it keeps where tensors are, and not the tensors."""
    seen = weakref.ref(step)

    def replay() -> Tensor:
        held = seen()
        assert held is not None, "what the graph reads was freed"
        return held()

    return replay


@torch.no_grad()
@pytest.mark.parametrize("form", ["untaught", "one", "each", "in slots"])
@pytest.mark.parametrize("make", [Recorded, fused, lambda base: Graphed(base, forgetful)])
def test_it_is_the_models_own_step(
    world: World, base: Base, make: Callable[[Base], Step], form: str
) -> None:
    step = make(base)
    for count, columns in ((1, 2), (2, 64), (5, 100), (8, 33), (3, 64), (4, 64)):
        kv = BatchKV(base.layers, 8, base.context_tokens, 10**9, base.device)
        kv.hold(count, columns)
        for keys, values in kv.layers:
            keys.normal_()
            values.normal_()
        for later in range(2):  # the same buffers again
            tokens = [5 + row + later for row in range(count)]
            starts = [max(columns - 2 - row, 0) + later for row in range(count)]
            rows = adapters(world, form, count)
            own = [(keys.clone(), values.clone()) for keys, values in kv.layers]
            ids = torch.tensor(tokens).unsqueeze(1)
            expected = run(base, ids, kv.window(0, starts, 1), own, rows)
            found = step(kv, tokens, starts, rows)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
            for (keys, values), (own_keys, own_values) in zip(kv.layers, own, strict=True):
                torch.testing.assert_close(keys[:count], own_keys[:count])
                torch.testing.assert_close(values[:count], own_values[:count])


def test_a_model_that_looks_at_numbers_is_not_recorded(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output + int(output.shape[0])  # a number that the recording takes for a constant

    handle = base.model.get_output_embeddings().register_forward_hook(odd)
    try:
        assert recorded_step(base) is None
    finally:
        handle.remove()
    assert "is off by" in caplog.text


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_changing_position_embeddings_are_not_recorded(
    base: Base, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    config, parameters = base.model.config, base.model.config.rope_parameters
    config.rope_parameters = {**parameters, "rope_type": kind}
    try:
        assert recorded_step(replace(base)) is None
    finally:
        config.rope_parameters = parameters
    assert "not recorded" in caplog.text
