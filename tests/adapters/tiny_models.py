"""Tiny random models, adapters and examples for the tests of this room."""

from __future__ import annotations

import random

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from adapters.config import InnerRule, LoraSpec, Scope
from adapters.layer import LoraHooks
from adapters.prefix import Prefix, continue_from, empty_prefix, prefill
from adapters.spelling import BUCKETS
from adapters.state import Tensors, initial_tensors
from adapters.support import Anchors, Example, Support, make_turns
from adapters.words import Words, make_words

CPU = torch.device("cpu")
LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")


def make_llama(vocab: int = 100, seed: int = 0, context: int = 128) -> LlamaForCausalLM:
    """Two layers, width 32, random weights large enough that every layer matters."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=context,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.eval().requires_grad_(False)
    return model


def make_gpt2(vocab: int = 100, seed: int = 0, context: int = 128) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=context,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.eval().requires_grad_(False)
    return model


def in_float64(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """``model`` computing in float64 throughout, its base weights asking for gradients.

    transformers' norm computes in float32 whatever its input; torch's is the same function.
    """
    model.double()
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(module.weight.shape[0], module.variance_epsilon, dtype=torch.float64)
            norm.weight.data.copy_(module.weight)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, norm)
    model.requires_grad_(True)
    return model


def llama_spec(scope: Scope = "activated", rank: int = 4, alpha: float | None = None) -> LoraSpec:
    return LoraSpec(rank, LLAMA_TARGETS, alpha, scope)


def random_adapter(model: nn.Module, spec: LoraSpec, seed: int = 0) -> Tensors:
    """An adapter that changes the model a lot: B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = initial_tensors(model, spec, generator)
    dtype = next(model.parameters()).dtype
    return {
        name: (tensor + 0.3 * torch.randn(tensor.shape, generator=generator)).to(dtype)
        for name, tensor in tensors.items()
    }


def random_examples(
    count: int, seed: int, vocab: int = 100, header: tuple[int, ...] = (3, 4)
) -> list[Example]:
    """Examples of unequal lengths; the first has no prompt before its header."""
    rng = random.Random(seed)
    return [
        Example(
            tuple(rng.randrange(5, vocab) for _ in range(0 if i == 0 else rng.randint(1, 9))),
            header,
            tuple(rng.randrange(5, vocab) for _ in range(rng.randint(1, 5))),
        )
        for i in range(count)
    ]


def prefill_examples(model: nn.Module, examples: list[Example], scope: str) -> Prefix:
    if scope == "full":
        return empty_prefix(len(examples), CPU)
    return prefill(model, [example.prompt for example in examples], CPU)


def make_support(
    model: nn.Module,
    spec: LoraSpec,
    examples: list[Example],
    sessions: list[int],
    anchors: Anchors | None = None,
) -> Support:
    prefix = prefill_examples(model, examples, spec.scope)
    turns = make_turns(examples, prefix, spec.scope, CPU)
    return Support(turns, torch.tensor(sessions), max(sessions) + 1, anchors)


def make_anchors(
    model: nn.Module, hooks: LoraHooks, spec: LoraSpec, examples: list[Example]
) -> Anchors:
    turns = make_turns(examples, prefill_examples(model, examples, spec.scope), spec.scope, CPU)
    with torch.no_grad(), hooks.use(None):
        reference = continue_from(model, turns.prefix, turns.ids).log_softmax(-1)
    return Anchors(turns, reference)


def make_rule(tensors: Tensors, steps: int = 3, size: float = 0.1, clip: float = 1.0) -> InnerRule:
    """A rule whose step sizes differ by tensor and step."""
    dtype = next(iter(tensors.values())).dtype
    sizes = {
        name: size * (1 + 0.1 * index / len(tensors) + 0.2 * torch.arange(steps, dtype=dtype))
        for index, name in enumerate(tensors)
    }
    return InnerRule(steps, sizes, clip)


def random_words(tokenizer: PreTrainedTokenizerBase, seed: int = 0, width: int = 6) -> Words:
    """A table of words that nobody trained."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(BUCKETS, width, generator=generator)
    return make_words(vectors, torch.rand(BUCKETS, generator=generator) + 0.5, tokenizer)
