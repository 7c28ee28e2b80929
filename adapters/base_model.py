"""Loads the frozen base of an artifact and makes sure that we can compute with it.

Knows transformers' folders and models; knows nothing about adapters' values or inner rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adapters.config import AdapterError, LoraSpec
from adapters.layer import LoraHooks, Rows
from adapters.prefix import continue_from, prefill
from adapters.pretrained import check_vocabulary, from_folder
from adapters.state import repeat

ATTENTION_KINDS: Final = {"full_attention", "sliding_attention", "chunked_attention"}
# How far two ways to compute the same logits may differ, as a share of the largest logit.
PROBE_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class ArtifactError(AdapterError, ValueError):
    """An artifact folder cannot be written or loaded; the message says what to do."""


@dataclass(frozen=True)
class LoadedBase:
    """A frozen causal LM, its tokenizer and the longest sequence it is right for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context_tokens: int


def input_embedding(model: PreTrainedModel) -> Tensor:
    """The vectors of the input tokens, (V, D)."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def load_base(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> LoadedBase:
    """Load the model in ``folder``; no code from the folder runs.

    ``dtype``: of the weights; without a word what a server has, float32 on CPU, bfloat16 on CUDA.

    Raises:
        ArtifactError: no such folder, no causal LM in it, weights that are missing, misshapen or
            not finite, no tokenizer, or a kind of model whose prompts we cannot reuse.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder} is no model folder (it has no config.json): give the path of a Hugging Face "
            "causal LM, or of a folder made by the export"
        )
    config = _call(folder, AutoConfig.from_pretrained)
    context_tokens = _context_tokens(folder, config)
    usual = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, info = _call(
        folder,
        AutoModelForCausalLM.from_pretrained,
        dtype=dtype or usual,
        use_safetensors=True,  # never pickle
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
    )
    _check_weights(folder, model, info)
    tokenizer = _call(folder, AutoTokenizer.from_pretrained)
    check_vocabulary(folder, tokenizer, input_embedding(model).shape[0], ArtifactError)
    model.requires_grad_(False).eval().to(device)
    return LoadedBase(model, tokenizer, context_tokens)


def save_base(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``model`` with 16-bit weights and its tokenizer; the model itself stays as it is."""
    halves: dict[int, Tensor] = {}  # tied weights must stay one tensor, or both are stored
    weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor = halves.setdefault(tensor.data_ptr(), tensor.detach().to(torch.bfloat16))
        weights[name] = tensor
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def probe(
    folder: Path, model: PreTrainedModel, spec: LoraSpec, tensors: Mapping[str, Tensor]
) -> None:
    """Make sure that prompts can be reused with this model and that the adapter can be attached.

    Raises:
        ArtifactError: going on from a prefix differs from computing all at once, or either fails.
    """
    device = model.device
    ids = torch.arange(6, device=device).remainder(model.config.vocab_size)
    hooks = LoraHooks(model, spec)
    try:
        with torch.no_grad():
            whole = model(input_ids=ids[None]).logits[0]  # (6, V)
            prefix = prefill(model, [ids[:3].tolist(), ids[:1].tolist()], device)
            rows = torch.stack([ids[3:], ids[1:4]])
            parts = continue_from(model, prefix, rows)  # (2, 3, V)
            with hooks.use(Rows(repeat(tensors, 1), torch.zeros_like(ids[:2]))):
                taught = continue_from(model, prefix, rows)
    except Exception as error:  # model code of any architecture raises anything
        raise ArtifactError(
            f"{folder}: {type(model).__name__} cannot be served: going on from a kept prompt with "
            f"an adapter fails: {error}"
        ) from error
    finally:
        hooks.remove()
    error_size = float((torch.stack([whole[3:], whole[1:4]]) - parts).abs().max())
    if not error_size <= PROBE_TOLERANCE[model.dtype] * max(1.0, float(whole.abs().max())):
        raise ArtifactError(
            f"{folder}: {type(model).__name__} cannot be served: going on from a kept prompt "
            f"changes its logits by {error_size:.2g}"
        )
    if not bool(torch.isfinite(taught).all()):
        raise ArtifactError(f"{folder}: with session_init the logits are not finite")


def _call(folder: Path, load: Any, **arguments: Any) -> Any:
    what = "a causal LM with safetensors weights and a tokenizer"
    return from_folder(folder, load, what, ArtifactError, **arguments)


def _context_tokens(folder: Path, config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - ATTENTION_KINDS:
        names = ", ".join(sorted(kinds - ATTENTION_KINDS))
        raise ArtifactError(
            f"{folder}: layers of kind {names} keep no keys and values that sessions could share: "
            "choose a model with attention layers only"
        )
    limits = [getattr(text, "max_position_embeddings", None)]
    # Up to its chunk, chunked attention is full attention, and that is what we compute.
    if "chunked_attention" in kinds:
        limits.append(getattr(text, "attention_chunk_size", None))
    known = [limit for limit in limits if isinstance(limit, int)]
    if not known:
        raise ArtifactError(f"{folder}: config.json has no max_position_embeddings: add it")
    return min(known)


def _check_weights(folder: Path, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = info.get(kind) or ()
        names = sorted(key if isinstance(key, str) else key[0] for key in keys)
        if names:
            raise ArtifactError(
                f"{folder}: {len(names)} weights are {kind.removesuffix('_keys')}, "
                f"{names[0]}: the weights are not those of config.json"
            )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ArtifactError(f"{folder}: {name} holds values that are not finite")
