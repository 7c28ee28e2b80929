"""The model under test: a random Llama of a named shape where no folder is given.

Knows models; knows nothing about what is measured with them.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from adapters.artifact import Artifact, save_artifact
from adapters.chat import ChatEncoder
from adapters.config import LoraSpec, Scope
from adapters.plain import RANK, linear_targets, plain_rule
from adapters.state import initial_tensors
from benchmarks.workload import words
from meta_training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Shape:
    """Size of a random Llama; times do not depend on what its weights say."""

    layers: int
    width: int
    heads: int
    mlp_width: int
    vocabulary: int
    context_tokens: int = 512


SHAPES = {
    "tiny": Shape(layers=4, width=192, heads=6, mlp_width=512, vocabulary=4096),  # 2.6M parameters
    "30m": Shape(layers=8, width=512, heads=8, mlp_width=1376, vocabulary=8192),  # 29.5M
}


def make(name: str, scope: Scope, seed: int) -> Artifact:
    """A random model of a shape in ``SHAPES``: zero-B adapters of rank 8 on all linear layers."""
    shape = SHAPES[name]
    tokenizer = train_tokenizer(
        words(40_000, random.Random(seed)).split(), shape.vocabulary, shape.context_tokens
    )
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context_tokens,
        initializer_range=shape.width**-0.5,  # layers matter, so answers vary
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    spec = LoraSpec(RANK, linear_targets(model), scope=scope)
    init = initial_tensors(model, spec, torch.Generator().manual_seed(seed))
    header = ChatEncoder(tokenizer).assistant_header()
    with tempfile.TemporaryDirectory() as folder:
        return save_artifact(
            Path(folder) / f"random-{name}",
            model,
            tokenizer,
            spec,
            init,
            plain_rule(init),
            {},
            header,
        )


def parameters(model: nn.Module) -> int:
    """How many weights the model has; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


class Speech:
    """Models of one artifact that choose only tokens which are whole text, while ``spoken``.

    No answer ends before its last token, and every token can be shown at once; the contenders all
    pay the same for it. It is there before an engine takes a model, because that records steps.
    """

    def __init__(self, artifact: Artifact) -> None:
        """Ban nothing yet."""
        self._model = artifact.model
        weight = artifact.model.get_input_embeddings().weight
        self._penalty = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        self._banned = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        texts = artifact.tokenizer.batch_decode(
            [[token] for token in range(len(artifact.tokenizer))], skip_special_tokens=True
        )
        self._banned[: len(texts)] = torch.tensor(
            [not text.strip() or "\ufffd" in text for text in texts], device=weight.device
        )

    def twin(self) -> PreTrainedModel:
        """The artifact's model again: other modules, the very same weights."""

        def hook(module: nn.Module, inputs: object, logits: Tensor) -> Tensor:
            return logits + self._penalty

        shared = {id(t): t for t in chain(self._model.parameters(), self._model.buffers())}
        model = copy.deepcopy(self._model, shared)
        model.get_output_embeddings().register_forward_hook(hook)
        return model

    @contextmanager
    def spoken(self) -> Iterator[None]:
        """Let every such model speak while the block runs."""
        self._penalty[self._banned] = torch.finfo(self._penalty.dtype).min
        try:
            yield
        finally:
            self._penalty.zero_()
