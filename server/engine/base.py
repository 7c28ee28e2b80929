"""The base model as the engine uses it: what it is, what it can hold, and that it can be served.

Knows transformers' calling convention; knows nothing about requests or sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters.artifact import Artifact
from adapters.base_model import input_embedding
from adapters.chat import ChatEncoder
from adapters.config import Gate, LoraSpec
from adapters.layer import LoraHooks
from adapters.masks import Windows, attention_windows
from adapters.prefix import prefill


@dataclass(frozen=True)
class LayerForm:
    """Shape of one decoder layer's keys and values: heads, width of a head, type."""

    key: tuple[int, int]
    value: tuple[int, int]
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's key and value."""
        return (self.key[0] * self.key[1] + self.value[0] * self.value[1]) * self.dtype.itemsize


@dataclass(frozen=True)
class Base:
    """The frozen model with its hooks, and everything about it that does not change."""

    model: PreTrainedModel
    hooks: LoraHooks
    tokenizer: PreTrainedTokenizerBase
    encoder: ChatEncoder
    spec: LoraSpec
    fingerprint: str
    context_tokens: int
    vocabulary: int  # V
    width: int  # D
    end_ids: frozenset[int]
    unseen_ids: frozenset[int]  # tokens that no text shows
    layers: tuple[LayerForm, ...]
    windows: Windows  # how far back its layers look
    device: torch.device
    dtype: torch.dtype
    gate: Gate | None  # which prompts an adapter answers; None for all

    @property
    def summary_layer(self) -> int | None:
        """The hidden state that the gate compares prompts by; None without a gate."""
        return None if self.gate is None else self.gate.layer


def make_base(artifact: Artifact) -> Base:
    """Look at an artifact's model, and attach the hooks through which adapters act.

    Loading the artifact made sure already that the model can go on from kept keys and values.
    """
    model = artifact.model
    return Base(
        model=model,
        hooks=LoraHooks(model, artifact.spec),
        tokenizer=artifact.tokenizer,
        encoder=ChatEncoder(artifact.tokenizer),
        spec=artifact.spec,
        fingerprint=artifact.fingerprint,
        context_tokens=artifact.context_tokens,
        vocabulary=input_embedding(model).shape[0],
        width=input_embedding(model).shape[1],
        end_ids=_end_ids(artifact),
        unseen_ids=frozenset(artifact.tokenizer.all_special_ids),
        layers=_layer_forms(model),
        windows=attention_windows(model.config),
        device=model.device,
        dtype=model.dtype,
        gate=artifact.rule.gate,
    )


def _end_ids(artifact: Artifact) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's and those transformers' generate stops at."""
    ids = set()
    configured = getattr(artifact.model.generation_config, "eos_token_id", None)
    for end in (artifact.tokenizer.eos_token_id, configured):
        if end is not None:
            ids.update(end if isinstance(end, list) else [end])
    return frozenset(int(end) for end in ids)


@torch.no_grad()
def _layer_forms(model: PreTrainedModel) -> tuple[LayerForm, ...]:
    """Ask the model itself, one token long: configurations name heads and widths in many ways."""
    layers = prefill(model, [[0]], model.device).layers
    return tuple(
        LayerForm((k.shape[1], k.shape[3]), (v.shape[1], v.shape[3]), k.dtype) for k, v in layers
    )
