"""Prompts prefilled once by the base, and forward passes that go on from there.

Knows the calling convention of transformers' causal LMs and their cache; knows nothing about
adapters or sessions. Gradients flow through a prefix when it was computed with gradients on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad as pad_tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from adapters.config import SpecError
from adapters.masks import Masks, additive_masks, attention_windows

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Of each decoder layer keys and values, (B, H, P, D) each."""
Pass = Callable[["Prefix", Tensor, Tensor], tuple[Layers, Tensor | None]]
"""What `one_pass` computes with a model, of what began, token ids and lengths."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of B prompts, right-padded to P tokens.

    ``layers``: per decoder layer keys and values, (B, H, P, D) each.
    ``lengths``: (B,) tokens of each prompt; positions from there on are padding.
    ``summaries``: (B, D) what a chosen layer sees at each prompt's last token, where asked for.
    ``masks``: of tokens that went on from it, by how many came before them and how many they are;
    a prefix belongs to one model.
    """

    layers: Layers
    lengths: Tensor
    summaries: Tensor | None = None
    masks: dict[tuple[int, int], Masks] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def width(self) -> int:
        """Padded length P."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def rows(self, rows: slice) -> Prefix:
        """The prompts at ``rows``, in the same memory."""
        summaries = None if self.summaries is None else self.summaries[rows]
        layers = tuple((keys[rows], values[rows]) for keys, values in self.layers)
        return Prefix(layers, self.lengths[rows], summaries)

    def select(self, rows: Tensor) -> Prefix:
        """The prompts at ``rows`` (B',), repeats allowed."""
        summaries = self.summaries
        return Prefix(
            tuple((k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers),
            self.lengths.index_select(0, rows),
            None if summaries is None else summaries.index_select(0, rows),
        )


def empty_prefix(rows: int, device: torch.device) -> Prefix:
    """A prefix of no tokens for ``rows`` rows."""
    return Prefix((), torch.zeros(rows, dtype=torch.long, device=device))


def pad(sequences: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    """Right-pad token sequences to (B, T)."""
    width = max(len(sequence) for sequence in sequences)
    rows = [[*sequence, *[value] * (width - len(sequence))] for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)


def merge(prefixes: Sequence[Prefix], device: torch.device) -> Prefix:
    """The prompts of all ``prefixes`` as one batch, right-padded; summaries where all have them."""
    rows = [prefix.lengths.shape[0] for prefix in prefixes]
    width = max(prefix.width for prefix in prefixes)
    form = next((prefix for prefix in prefixes if prefix.layers), None)
    if form is None:
        return empty_prefix(sum(rows), device)
    layers = []
    for index, (keys, values) in enumerate(form.layers):
        blank = keys[:1, :, :0], values[:1, :, :0]
        pairs = [
            prefix.layers[index] if prefix.layers else tuple(t.expand(n, -1, -1, -1) for t in blank)
            for prefix, n in zip(prefixes, rows, strict=True)
        ]
        layers.append(
            (
                torch.cat([_padded(keys, width) for keys, _ in pairs]),
                torch.cat([_padded(values, width) for _, values in pairs]),
            )
        )
    known = [prefix.summaries for prefix in prefixes if prefix.summaries is not None]
    summaries = torch.cat(known) if len(known) == len(prefixes) else None
    return Prefix(tuple(layers), torch.cat([prefix.lengths for prefix in prefixes]), summaries)


def _padded(tensor: Tensor, width: int) -> Tensor:
    return pad_tensor(tensor, (0, 0, 0, width - tensor.shape[2]))


def prefill(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    summary_layer: int | None = None,
    begun: Prefix | None = None,
    compute: Pass | None = None,
) -> Prefix:
    """Run B prompts through the model as it stands and keep their keys and values.

    ``summary_layer``: index into the hidden states whose last tokens are kept as summaries.
    ``begun``: what was kept of the beginning of each prompt; ``prompts`` are then the rest, at
    least one token each, and the result is the whole.
    ``compute``: the pass, where it is not the model's own code that runs.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    if int(lengths.max()) == 0:
        return empty_prefix(len(prompts), device)
    before, ids = begun or empty_prefix(len(prompts), device), pad(prompts, 0, device)
    run = compute or partial(one_pass, model, summary_layer)
    layers, summaries = run(before, ids, lengths)
    return replace(_grown(before, layers, lengths), summaries=summaries)


def one_pass(
    model: nn.Module, summary_layer: int | None, begun: Prefix, ids: Tensor, lengths: Tensor
) -> tuple[Layers, Tensor | None]:
    """Keys and values of what began and of ``ids`` (B, T) behind it, padding where it was, and the
    summaries (B, D) at the last of each row's ``lengths`` (B,) new tokens."""
    rest = Continuation(model, begun)
    output = rest.run(ids, logits_to_keep=1, output_hidden_states=summary_layer is not None)
    if summary_layer is None:
        return rest.layers, None
    hidden = output.hidden_states[summary_layer]  # (B, T, D)
    lasts = (lengths - 1).clamp(min=0)  # of an empty prompt: a row that means nothing
    return rest.layers, hidden[torch.arange(ids.shape[0], device=ids.device), lasts]


def kept_layers(cache: DynamicCache) -> Layers:
    """Keys and values of every decoder layer in ``cache``.

    Raises:
        SpecError: a layer keeps something else, as state-space layers do.
    """
    layers = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise SpecError("a layer of this model keeps no keys and values")
        layers.append((layer.keys, layer.values))
    return tuple(layers)


def cache_options(model: nn.Module, cache: Cache) -> dict[str, Any]:
    """The arguments by which a model of transformers goes on from ``cache`` and adds to it."""
    return {_cache_argument(type(model).forward): cache, "use_cache": True}


@lru_cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    """``cache`` from transformers 5.24 on, ``past_key_values`` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def continue_from(model: nn.Module, prefix: Prefix, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of ``ids`` (B, T), each row going on where its prompt ended."""
    return Continuation(model, prefix).extend(ids)


class Continuation:
    """B rows that go on from their prompts, some tokens at a time; the prefix stays as it is."""

    def __init__(self, model: nn.Module, prefix: Prefix) -> None:
        """Start where the prompts of ``prefix`` end."""
        self._model = model
        self._prefix = prefix
        self._cache = _cache(prefix)
        self._tokens = 0  # after the prompt, the same for every row

    def extend(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of the next ``ids`` (B, T) of every row."""
        logits = self.run(ids).logits
        assert isinstance(logits, Tensor)
        assert logits.shape[0] == ids.shape[0]
        return logits

    def run(self, ids: Tensor, **options: Any) -> Any:
        """The model's own output for the next ``ids`` (B, T) of every row."""
        if self._prefix.width + self._tokens:
            offsets = torch.arange(self._tokens, self._tokens + ids.shape[1], device=ids.device)
            options["position_ids"] = self._prefix.lengths.unsqueeze(1) + offsets
            known, size = self._prefix.masks, (self._tokens, ids.shape[1])
            if size not in known:
                known[size] = _masks(self._model, self._prefix, *size)
            options["attention_mask"] = known[size]
        # Otherwise padding comes after a row's tokens, and causal attention keeps it out of them.
        options |= cache_options(self._model, self._cache)
        output = self._model(input_ids=ids, **options)
        self._tokens += ids.shape[1]
        return output

    @property
    def layers(self) -> Layers:
        """What was computed so far: of each row its prompt, that one's padding, and its tokens."""
        return kept_layers(self._cache)

    def prefix(self, lengths: Tensor) -> Prefix:
        """What was computed so far as a prefix, ``lengths`` (B,) of each row's tokens counted."""
        return _grown(self._prefix, self.layers, lengths)


def _grown(before: Prefix, layers: Layers, lengths: Tensor) -> Prefix:
    """``before`` and ``lengths`` (B,) new tokens of each row, out of the ``layers`` of both."""
    whole = before.lengths + lengths
    if bool((before.lengths == before.width).all()):
        return Prefix(layers, whole)
    columns = torch.arange(int(whole.max()), device=whole.device).unsqueeze(0)
    # Behind a shorter prompt is padding, which comes out between it and its tokens.
    padding = (before.width - before.lengths).unsqueeze(1)
    source = columns + (columns >= before.lengths.unsqueeze(1)) * padding
    source = source.clamp(max=layers[0][0].shape[2] - 1)
    return Prefix(tuple((_columns(k, source), _columns(v, source)) for k, v in layers), whole)


def _columns(tensor: Tensor, source: Tensor) -> Tensor:
    """(B, H, P, D) at the columns ``source`` (B, P') of each row."""
    index = source[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index)


def _cache(prefix: Prefix) -> DynamicCache:
    cache = DynamicCache()
    for keys, values in prefix.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _masks(model: nn.Module, prefix: Prefix, before: int, tokens: int) -> Masks:
    """Attention masks, (B, 1, T, P + before + T): own prompt, then causal."""
    device, lengths = prefix.lengths.device, prefix.lengths.unsqueeze(1)
    columns = torch.arange(prefix.width, device=device)
    seen = (columns < lengths).unsqueeze(1)  # (B, 1, P)
    causal = torch.ones(tokens, before + tokens, dtype=torch.bool, device=device).tril(before)
    rows = prefix.lengths.shape[0]
    allowed = torch.cat([seen.expand(rows, tokens, -1), causal.expand(rows, -1, -1)], dim=2)
    after = lengths + torch.arange(before + tokens, device=device)  # (B, before + T) positions
    places = torch.cat([columns.expand(rows, -1), after], dim=1)  # (B, P + before + T)
    back = after[:, before:].unsqueeze(2) - places.unsqueeze(1)
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    return additive_masks(attention_windows(config), allowed, back, _dtype(model))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
