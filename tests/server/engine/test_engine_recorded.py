"""Recorded and graphed decode steps: the model's own logits, keys and values at any size."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from engine_harness import World
from torch import Tensor, nn

from adapters.config import Gate
from adapters.layer import Rows
from adapters.prefix import prefill
from adapters.state import stack
from server.engine import slots as slots_module
from server.engine.base import Base, make_base
from server.engine.forward import Step, run
from server.engine.fused import fused_operations
from server.engine.graphed import Graphed, Replay
from server.engine.kernels import compiler
from server.engine.kv import BatchKV
from server.engine.recorded_prefill import recorded_prefill
from server.engine.recorded_step import RecordedStep, recorded_step
from server.engine.slots import Slots

CPU = torch.device("cpu")


@pytest.fixture
def base(world: World) -> Iterator[Base]:
    made = make_base(world.artifact)
    yield made
    made.hooks.remove()


def in_slots(world: World, step: Step) -> Slots:
    """The sessions' adapters in slots 1, 2, …, as ``step`` wants them."""
    states = world.states.values()
    slots = Slots(world.artifact.session_init, len(states), CPU, step.add)
    for number, state in enumerate(states, 1):
        assert slots.acquire(f"{number}", state) == number
    return slots


def by_hooks(world: World, numbers: list[int]) -> Rows:
    """The same for the hooks, without slots."""
    states = [state.tensors for state in world.states.values()]
    untaught = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    return Rows(stack([untaught, *states]), torch.tensor(numbers))


def fused(base: Base) -> RecordedStep:
    """A recording of our own operations, which have to be there."""
    if not compiler():
        pytest.skip("no C++ compiler")
    own = fused_operations(base)
    assert own is not None
    return RecordedStep(base, own)


def forgetful(step: Replay) -> Replay:
    """As a graph does: it keeps where tensors are, and not the tensors."""
    seen = weakref.ref(step)

    def replay() -> Tensor:
        held = seen()
        assert held is not None, "what the graph reads was freed"
        return held()

    return replay


@torch.no_grad()
@pytest.mark.parametrize("form", ["untaught", "one", "each", "too large to gather"])
@pytest.mark.parametrize("make", [RecordedStep, fused, lambda base: Graphed(base, forgetful)])
def test_it_is_the_models_own_step(
    world: World,
    base: Base,
    make: Callable[[Base], Step],
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "too large to gather":
        monkeypatch.setattr(slots_module, "_GATHERED_BYTES", 1)
    step = make(base)
    slots = in_slots(world, step)
    for count, columns in ((1, 2), (2, 64), (5, 100), (8, 33), (3, 64), (4, 64)):
        kv = BatchKV(base.layers, 8, base.context_tokens, 10**9, base.device)
        kv.hold(count, columns)
        for keys, values in kv.layers:
            keys.normal_()
            values.normal_()
        for later in range(2):  # the same buffers again
            tokens = [5 + row + later for row in range(count)]
            starts = [max(columns - 2 - row, 0) + later for row in range(count)]
            numbers = {"untaught": [0] * count, "one": [2] * count}.get(form)
            numbers = numbers or [(row + 1) % (slots.count + 1) for row in range(count)]
            hooks = by_hooks(world, numbers)
            own = [(keys.clone(), values.clone()) for keys, values in kv.layers]
            ids = torch.tensor(tokens).unsqueeze(1)
            expected = run(base, ids, kv.window(0, starts, 1), own, hooks)
            found = step(kv, tokens, starts, slots.rows(numbers))
            near = 1e-3 if step.add else 2e-4  # adapters in 16 bits
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=near)
            for (keys, values), (own_keys, own_values) in zip(kv.layers, own, strict=True):
                for kept, own_kept in ((keys, own_keys), (values, own_values)):
                    torch.testing.assert_close(kept[:count], own_kept[:count], rtol=1e-3, atol=near)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("kept", [0, 1, 12])
@pytest.mark.parametrize("summed", [None, 1])
def test_it_is_the_models_own_pass_over_prompts(
    base: Base, rows: int, kept: int, summed: int | None
) -> None:
    recorded = recorded_prefill(base if summed is None else replace(base, gate=Gate(summed, 0.0)))
    assert recorded is not None
    begun = None
    if kept:  # rows of other lengths, the first one's beginning not kept at all
        beginnings = [[7 + row] * min(row, kept) for row in range(rows)]
        beginnings[-1] = [9] * kept
        begun = prefill(base.model, beginnings, base.device, summed)
    for longest in (1, 3, 40):  # beyond any sliding window of these models
        prompts = [[3 + (row + place) % 50 for place in range(longest)] for row in range(rows)]
        prompts[0] = prompts[0][: max(1, longest - 2)]
        expected = prefill(base.model, prompts, base.device, summed, begun)
        found = prefill(base.model, prompts, base.device, summed, begun, recorded)
        assert torch.equal(found.lengths, expected.lengths)
        for row, length in enumerate(expected.lengths.tolist()):
            for pair in zip(found.layers, expected.layers, strict=True):
                for one, other in zip(*pair, strict=True):
                    torch.testing.assert_close(
                        one[row, :, :length], other[row, :, :length], rtol=1e-3, atol=2e-4
                    )
        assert (found.summaries is None) == (summed is None)
        if found.summaries is not None:
            torch.testing.assert_close(found.summaries, expected.summaries, rtol=1e-3, atol=2e-4)


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
        assert recorded_prefill(replace(base)) is None
    finally:
        config.rope_parameters = parameters
    assert "decode steps are not recorded" in caplog.text
    assert "prompts' passes are not recorded" in caplog.text
