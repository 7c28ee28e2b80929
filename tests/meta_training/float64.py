"""Tiny learners in float64, for comparing gradients with finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from adapters.chat import ChatEncoder
from adapters.config import Anchor
from adapters.prefix import Prefix
from adapters.support import Anchors, make_turns
from meta_training.learner import Learner
from meta_training.recipe_parts import InnerPart


class FixedReference(Learner):
    """A learner whose anchors are compared with constants.

    What the untaught model says to an anchor is a constant of the outer gradient. Finite
    differences over the base would move it, so here it does not depend on the base.
    """

    fixed: Tensor | None = None

    def anchors(self, prefix: Prefix) -> Anchors | None:
        found = super().anchors(prefix)
        if found is None:
            return None
        if self.fixed is None:
            self.fixed = found.reference
        turns = make_turns(self.anchor_examples, prefix, self.spec.scope, prefix.lengths.device)
        return Anchors(turns, self.fixed)


def make_learner(
    tokenizer: PreTrainedTokenizerFast, anchors: Sequence[Anchor] = (), steps: int = 2, **part: Any
) -> FixedReference:
    """Two layers of width 8; an adapter whose B is not zero, and step sizes that all differ.

    ``part`` changes fields of the recipe's inner part.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=12,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    fields = {"rank": 2, "steps": steps, "first_step_size": 0.3, "clip": 2.0} | part
    inner = InnerPart(anchors=len(anchors), **fields)
    learner = FixedReference(model, ChatEncoder(tokenizer), inner, anchors, seed=0).double()
    _use_float64_norms(model)
    with torch.no_grad():
        for tensor in [*learner.adapter, learner.log_sizes, *learner.log_factors]:
            tensor.add_(0.3 * torch.randn(tensor.shape, dtype=tensor.dtype))
    return learner


def _use_float64_norms(model: nn.Module) -> None:
    """transformers' norm computes in float32 whatever its input; torch's is the same function."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(module.weight.shape[0], module.variance_epsilon, dtype=torch.float64)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, norm)
