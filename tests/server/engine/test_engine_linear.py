"""Linear layers by oneDNN: the same products and gradients, and the layers as before afterwards."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
from torch import nn

from server.engine import linear
from server.engine.linear import FastLinears, fast_linears, packed_weights, using_packed

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)


@pytest.fixture(params=["packed", "as they lie"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Layers whose weights are packed, where they are taken over, or are too many for that."""
    monkeypatch.setattr(linear, "_LEAST", 0)
    monkeypatch.setattr(linear, "_LEAST_PACKED", 0)
    first, second = 4 * 48 * 64, 4 * 64 * 40
    budget = first + second if request.param == "packed" else first - 1
    monkeypatch.setattr(linear, "PACKED_BYTES", budget)
    torch.manual_seed(0)
    layers = (nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 40, bias=False), nn.Linear(40, 8))
    made = nn.Sequential(*layers).requires_grad_(False)
    made[3].requires_grad_(True)  # it learns
    return made


def is_packed(model: nn.Module) -> bool:
    return model[0].weight.nbytes <= linear.PACKED_BYTES


def output_and_gradient(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = inputs.clone().requires_grad_()
    output = model(leaf)
    return output.detach(), *torch.autograd.grad(output.square().sum(), leaf)


@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 7, 48), (0, 48)])
def test_products_and_gradients_are_those_of_the_layers(
    model: nn.Sequential, shape: tuple[int, ...]
) -> None:
    inputs = torch.randn(shape)
    expected = output_and_gradient(model, inputs)
    taken = FastLinears(model.modules())
    assert ["forward" in layer.__dict__ for layer in model] == [True, False, True, False]
    assert len(packed_weights(model)) == (2 if is_packed(model) else 0)
    torch.testing.assert_close(output_and_gradient(model, inputs), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected[0], atol=1e-5, rtol=1e-5)
    taken.remove()
    assert not any("forward" in layer.__dict__ for layer in model)
    assert all(map(torch.equal, output_and_gradient(model, inputs), expected))


def test_it_can_be_differentiated_twice(model: nn.Sequential) -> None:
    inputs = torch.randn(3, 48, requires_grad=True)

    def second() -> torch.Tensor:
        first = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), inputs)[0]

    expected, taken = second(), FastLinears(model.modules())
    torch.testing.assert_close(second(), expected, atol=1e-4, rtol=1e-4)
    taken.remove()


def test_a_copy_computes_with_its_own_weights_and_may_learn_them(model: nn.Sequential) -> None:
    taken = FastLinears(model.modules())
    copied = copy.deepcopy(model)
    assert not packed_weights(copied), "they would stay as they are when the copy learns"
    taken.remove()
    with torch.no_grad():
        copied[0].weight.zero_()
        copied[0].bias.zero_()
    copied.requires_grad_(True)
    inputs = torch.randn(2, 48)
    copied(inputs).sum().backward()
    assert copied[0].weight.grad is not None
    assert torch.equal(copied(inputs)[0], copied(inputs)[1]), "the same, whatever comes in"
    assert not torch.equal(model(inputs)[0], model(inputs)[1])


def test_small_products_are_left_alone(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = "_LEAST_PACKED" if is_packed(model) else "_LEAST"
    monkeypatch.setattr(linear, least, 4 * 48 * 64)
    asked: list[int] = []
    real = linear._product

    def counting(inputs: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        asked.append(inputs.shape[0])
        return real(inputs, *others)

    monkeypatch.setattr(linear, "_product", counting)
    taken = FastLinears([model[0]])
    for rows in (3, 4, 5):
        model(torch.randn(rows, 48))
    assert asked == [4, 5]
    if is_packed(model):
        monkeypatch.setattr(linear, "_LARGE_WEIGHT", 48 * 64)
        model(torch.randn(1, 48))
        assert asked == [4, 5, 1], "a large weight is read faster whatever the rows"
    taken.remove()


def test_a_pytorch_without_it_serves_as_before(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(linear, "_is_wanted", lambda: True)
    fast_linears(model).remove()
    monkeypatch.setattr(linear, "_product", lambda *_: torch.ops.mkldnn.no_such_operation())
    with caplog.at_level(logging.WARNING, logger=linear.__name__):
        fast_linears(model)
    assert not any("forward" in layer.__dict__ for layer in model)
    assert "slower way" in caplog.text
    monkeypatch.setattr(linear, "_product", lambda inputs, weight, bias: inputs @ weight.T)
    fast_linears(model)
    assert not any("forward" in layer.__dict__ for layer in model), "it forgot the bias"


def test_a_recording_chooses_by_the_size_of_what_comes_in(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_LEAST", 4 * 48 * 64)
    monkeypatch.setattr(linear, "_LEAST_PACKED", 4 * 48 * 64)
    inputs = torch.randn(6, 48)
    expected = model[0](inputs)
    taken = FastLinears([model[0]])
    packed = packed_weights(model)

    def given(inputs: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        with using_packed(model, weights[: len(packed)]):
            found: torch.Tensor = model[0](inputs)
            return found

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        alone = torch.jit.trace(model[0], inputs[:2], check_trace=False)
        example = (inputs[:2], packed or [inputs])
        recording = torch.jit.trace(given, example, check_trace=False)
    taken.remove()
    graph = str(recording.inlined_graph)
    assert "mkldnn::_linear_pointwise" in graph
    assert "aten::linear" in graph
    for rows in (2, 6):
        found = recording(inputs[:rows], packed or [inputs])
        for one in (alone(inputs[:rows]), found):
            torch.testing.assert_close(one, expected[:rows], atol=1e-5, rtol=1e-5)
    if packed:
        nothing = [torch.ops.mkldnn._reorder_linear_weight(torch.zeros(64, 48), 32)]
        assert torch.equal(recording(inputs, nothing), model[0].bias.expand(6, 64)), "it is read"
