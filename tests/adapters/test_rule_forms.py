"""Rules of the second format come back whole; those of the first are what they always were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import llama_spec, make_llama, make_rule, random_adapter
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.artifact import ArtifactError, load_artifact, save_artifact
from adapters.chat import ChatEncoder
from adapters.config import InnerRule, SpecError
from adapters.inner_loop import move
from adapters.rule_io import read_rule, rule_text

SHIPPED = Path(__file__).parents[2] / "server" / "models" / "innerloop-tiny"
FACTORS = "step_factors.safetensors"
Tensors = dict[str, Tensor]


def with_form(start: Tensors) -> InnerRule:
    """Element-wise sizes for the upper layer, and a lower one that stays still."""
    rule = make_rule(start)
    still = frozenset(name for name in start if ".layers.0." in name)
    sizes = {name: size for name, size in rule.step_sizes.items() if name not in still}
    factors = {name: torch.rand_like(start[name]) for name in sizes}
    return InnerRule(rule.steps, sizes, 2.0, factors=factors, still=still)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    model = make_llama(vocab=len(tokenizer))
    spec = llama_spec()
    start = random_adapter(model, spec)
    header = ChatEncoder(tokenizer).assistant_header()
    save_artifact(tmp_path / "a", model, tokenizer, spec, start, with_form(start), {}, header)
    return tmp_path / "a"


def test_a_rule_of_the_first_format_is_written_as_ever() -> None:
    """Its text is hashed into what versions of sessions are known by."""
    text = (SHIPPED / "inner_rule.json").read_text("utf-8")
    assert json.loads(text)["format_version"] == 1
    artifact = load_artifact(SHIPPED)
    assert rule_text(artifact.spec, artifact.rule) == text
    assert artifact.rule.factors is None
    assert artifact.rule.still == frozenset()


def test_the_second_format_comes_back(folder: Path) -> None:
    artifact = load_artifact(folder)
    content = json.loads((folder / "inner_rule.json").read_text("utf-8"))
    assert content["format_version"] == 2
    assert content["still"] == sorted(artifact.rule.still)
    stored = load_file(folder / FACTORS)
    assert artifact.rule.factors is not None
    assert artifact.rule.factors.keys() == stored.keys() == artifact.rule.step_sizes.keys()
    for name, factors in artifact.rule.factors.items():
        assert torch.equal(factors, stored[name])
    again = read_rule(folder / "inner_rule.json", factors=artifact.rule.factors)[1]
    assert again.still == artifact.rule.still


def test_sizes_are_products_and_still_tensors_stay() -> None:
    """theta - alpha * gradient, element by element (Meta-SGD, eq. 1)."""
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    factors = {"a": torch.tensor([1.0, 2.0, 0.0])}
    sizes = {"a": torch.tensor([0.1, 0.5])}
    rule = InnerRule(2, sizes, 100.0, factors=factors, still=frozenset("b"))
    gradients = {"a": torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 4.0]])}
    moved, norms = move(tensors, gradients, rule.sizes_at(5), rule.clip)
    expected = torch.tensor([[0.5, 0.0, 1.0], [1.0, -1.0, 1.0]])
    torch.testing.assert_close(moved["a"], expected)
    assert moved["b"] is tensors["b"]
    torch.testing.assert_close(norms, torch.tensor([3.0, 20.0]).sqrt())


def test_forms_that_cannot_work_are_refused() -> None:
    sizes = {"a": torch.ones(1)}
    with pytest.raises(SpecError, match="a stays still"):
        InnerRule(1, sizes, 1.0, still=frozenset("a"))
    with pytest.raises(SpecError, match="the same tensors: see b"):
        InnerRule(1, sizes, 1.0, factors={"a": torch.ones(1), "b": torch.ones(1)})


def rewrite(change: Callable[[Tensors], Tensors]) -> Callable[[Path], object]:
    return lambda folder: save_file(change(load_file(folder / FACTORS)), folder / FACTORS)


def edit(**fields: object) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / "inner_rule.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / FACTORS).unlink(), "must be of one export"),
        (rewrite(lambda t: {n: x * 2 for n, x in t.items()}), "must be of one export"),
        (rewrite(lambda t: {n: -x - 1 for n, x in t.items()}), "has a negative one"),
        (rewrite(lambda t: {n: x.half() for n, x in t.items()}), "stored as F16, expected F32"),
        (rewrite(lambda t: {n: x / 0 for n, x in t.items()}), "not finite"),
        (lambda folder: (folder / FACTORS).write_bytes(b"x"), "no usable step factors"),
        (edit(format_version=1), "'still' and 'factors' need format_version 2"),
        (edit(still=[]), "inner_rule.json has no step size for"),
        (edit(still=["nobody"]), "inner_rule.json has"),
    ],
)
def test_what_does_not_fit_is_named(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)
