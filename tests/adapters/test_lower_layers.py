"""Passes that leave the lower layers out: the same bits, and only where that is the same."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_models import CPU, GPT2_TARGETS, LLAMA_TARGETS, make_gpt2, make_llama
from torch import Tensor, nn

from adapters.config import LoraSpec
from adapters.layer import LoraHooks, Rows
from adapters.lower import LowerLayers, lower_layers
from adapters.prefix import continue_from, empty_prefix, prefill
from adapters.state import Tensors, repeat, tensor_shapes

IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])


class Passes:
    """A model of two layers under an adapter, of which the upper layer's moves."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...]) -> None:
        self.model = model
        spec = LoraSpec(2, targets)
        generator = torch.Generator().manual_seed(0)
        self.adapter: Tensors = {
            name: torch.randn(shape, generator=generator) * 0.3
            for name, shape in tensor_shapes(model, spec).items()
        }
        self.moving = {name for name in self.adapter if ".1." in name}
        self.hooks = LoraHooks(model, spec)
        self.prefix = prefill(model, [[1, 2, 3], [4]], CPU)

    def logits(self, tensors: Tensors | None = None) -> Tensor:
        with self.hooks.use(Rows(repeat(tensors or self.adapter, 2), None)):
            return continue_from(self.model, self.prefix, IDS)

    def gradients(self) -> tuple[Tensor, ...]:
        leaves = {n: t.clone().requires_grad_(n in self.moving) for n, t in self.adapter.items()}
        loss = self.logits(leaves).square().sum()
        return torch.autograd.grad(loss, [leaves[name] for name in sorted(self.moving)])

    @property
    def lowest(self) -> nn.Module:
        return self.layers[0]

    @property
    def layers(self) -> nn.ModuleList:
        return next(m for m in self.model.modules() if isinstance(m, nn.ModuleList))


@pytest.fixture(params=["llama", "gpt2"])
def passes(request: pytest.FixtureRequest) -> Iterator[Passes]:
    if request.param == "llama":
        made = Passes(make_llama(), LLAMA_TARGETS)
    else:
        made = Passes(make_gpt2(), GPT2_TARGETS)
    yield made
    assert not any("forward" in m.__dict__ for m in made.model.modules()), "it was not removed"


def counting(module: nn.Module) -> list[int]:
    calls: list[int] = []
    attention = next(m for n, m in module.named_modules() if n.endswith(("q_proj", "c_attn")))
    attention.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_pass_without_the_lower_layers_has_the_same_bits(passes: Passes) -> None:
    expected, gradients = passes.logits(), passes.gradients()
    calls = counting(passes.lowest)
    lower = lower_layers(passes.model, passes.moving, CPU)
    assert lower.count == 1
    calls.clear()
    entering = lower.entering(passes.logits)
    assert entering.shape == (*IDS.shape, 32)
    assert len(calls) == 1
    with lower.skipped(entering):
        assert torch.equal(passes.logits(), expected)
        assert all(map(torch.equal, passes.gradients(), gradients))
        assert len(calls) == 1, "once for all passes"
    assert torch.equal(passes.logits(), expected)
    assert len(calls) == 2
    lower.remove()


def test_other_threads_and_copies_leave_nothing_out(passes: Passes) -> None:
    expected = passes.logits()
    lower = LowerLayers(passes.model, passes.moving)
    entering = lower.entering(passes.logits)
    found: list[Tensor] = []

    def beside(run: Callable[[], Tensor]) -> None:
        thread = threading.Thread(target=lambda: found.append(run()))
        thread.start()
        thread.join()

    copied = copy.deepcopy(passes.model)
    with lower.skipped(torch.zeros_like(entering)):
        assert not torch.equal(passes.logits(), expected), "it does begin with what it is given"
        beside(passes.logits)
        plain = continue_from(copied, empty_prefix(2, CPU), IDS)
    lower.remove()
    assert torch.equal(found[0], expected)
    assert torch.equal(plain, continue_from(copied, empty_prefix(2, CPU), IDS))


def test_where_the_lowest_layer_learns_there_is_nothing_to_leave_out(passes: Passes) -> None:
    before = sum(len(m._forward_pre_hooks) for m in passes.model.modules())
    for moving in (set(passes.adapter), {"head.lora_A", *passes.moving}, set[str]()):
        assert lower_layers(passes.model, moving, CPU).count == 0
    assert sum(len(m._forward_pre_hooks) for m in passes.model.modules()) == before


def test_upper_layers_that_look_below_are_not_run_alone(passes: Passes) -> None:
    kept: list[Tensor] = []
    first, second = passes.layers

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        kept.append(output * 0.1)

    inner = next(m for n, m in first.named_modules() if n.endswith("down_proj") or n == "mlp")
    inner.register_forward_hook(keep)
    passes.model.register_forward_pre_hook(lambda *_: kept.clear())
    second.register_forward_hook(lambda module, inputs, output: output + sum(kept))
    assert lower_layers(passes.model, passes.moving, CPU).count == 0
