"""What a recipe says about the form of the inner rule reaches the artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spoken import make_spoken
from transformers import PreTrainedTokenizerFast

from adapters.artifact import load_artifact
from meta_training.algorithms.anil import layer_of, still_tensors
from meta_training.base_lora import add_base_lora, merge_base
from meta_training.export import export
from meta_training.learner import Learner
from meta_training.recipe_parts import InnerPart

NAMES = (
    "model.layers.0.mlp.up_proj.lora_A",
    "model.layers.10.mlp.up_proj.lora_A",
    "model.layers.9.mlp.up_proj.lora_A",
    "transformer.h.2.attn.c_attn.lora_B",
    "classifier.lora_A",
)


def test_layers_are_numbers_in_names() -> None:
    assert [layer_of(name) for name in NAMES] == [0, 10, 9, 2, None]
    assert still_tensors(NAMES, 1) == {NAMES[0], NAMES[2], NAMES[3]}
    assert still_tensors(NAMES, 2) == {NAMES[0], NAMES[3]}
    assert still_tensors(NAMES, 9) == frozenset()


@pytest.mark.parametrize("form", [{"sizes": "element"}, {"top_layers": 1}])
def test_the_artifact_has_the_rule_that_was_learned(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, form: dict[str, object]
) -> None:
    source = make_spoken(tokenizer)
    part = InnerPart.model_validate({"rank": 2, "steps": 3, "anchors": 0, **form})
    source.hooks.remove()
    learner = Learner(source.model, source.encoder, part, [], seed=1)
    with torch.no_grad():
        for tensor in [learner.log_sizes, *learner.log_factors]:
            tensor += 0.1 * torch.randn(tensor.shape)
    export(learner, tmp_path / "a", {})
    again = Learner.from_artifact(load_artifact(tmp_path / "a"))
    rules = learner.rule(), again.rule()
    assert rules[0].still == rules[1].still
    assert bool(rules[0].still) == ("top_layers" in form)
    torch.testing.assert_close(dict(rules[0].step_sizes), dict(rules[1].step_sizes))
    assert (rules[0].factors is None) == (rules[1].factors is None)
    if rules[0].factors is not None:
        assert rules[1].factors is not None
        torch.testing.assert_close(dict(rules[0].factors), dict(rules[1].factors))


def test_a_lora_of_the_base_starts_as_nothing_and_is_merged(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = make_spoken(tokenizer).model
    names, ids = set(model.state_dict()), torch.arange(5, 15).unsqueeze(0)
    before = model(input_ids=ids).logits
    add_base_lora(model, ["q_proj", "up_proj"], 2, 0)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(("lora_a", "lora_b")) for name in learned)
    assert len(learned) == 4 * int(model.config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learned:
                parameter += 0.1 * torch.randn(parameter.shape)
    moved = model(input_ids=ids).logits
    assert not torch.allclose(moved, before)
    merge_base(model)
    torch.testing.assert_close(model(input_ids=ids).logits, moved, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names
