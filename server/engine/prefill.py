"""Prompts on their way to keys and values: bounded forward passes, shared by all who want the same.

Generating and learning ask here for prompts; what the base alone computes goes through the prefix
cache. Knows nothing about who asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad as pad_tensor
from transformers import DynamicCache

from adapters.prefix import Prefix, empty_prefix, prefill
from server.engine.base import Base
from server.engine.errors import EngineFailed
from server.engine.isolation import failure, run_together
from server.engine.prefix_cache import PrefixCache, Tokens
from server.engine.slots import UNTAUGHT, Slots


@dataclass(eq=False)
class Prompt:
    """A prompt that somebody waits for. ``prefix`` or ``error`` is there once it is ready."""

    tokens: Tokens
    slot: int  # of the adapter that acts on the prompt; UNTAUGHT where the base computes it
    users: int = 1
    prefix: Prefix | None = None  # (1, H, P, D) a layer
    error: EngineFailed | None = None
    cache: DynamicCache | None = None  # of a prompt that needs several passes
    done_tokens: int = 0

    @property
    def ready(self) -> bool:
        """Whether the prompt needs no more work."""
        return self.prefix is not None or self.error is not None


class Prefills:
    """Prompts being computed in turn, at most ``chunk_tokens`` a pass; long ones take several."""

    def __init__(self, base: Base, slots: Slots, cache: PrefixCache, chunk_tokens: int) -> None:
        """Wait for prompts."""
        self.computed_tokens = 0
        self._base = base
        self._slots = slots
        self._cache = cache
        self._chunk_tokens = chunk_tokens
        self._pending: deque[Prompt] = deque()
        self._shared: dict[Tokens, Prompt] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def request(self, tokens: Tokens, slot: int = UNTAUGHT) -> Prompt:
        """Ask for a prompt; undo with ``release``. One that is under way already is shared."""
        if not tokens:
            return Prompt(tokens, slot, prefix=empty_prefix(1, self._base.device))
        if slot == UNTAUGHT:
            shared = self._shared.get(tokens)
            if shared is not None:
                shared.users += 1
                return shared
            prefix = self._cache.get(tokens)
            if prefix is not None:
                return Prompt(tokens, slot, prefix=prefix)
        prompt = Prompt(tokens, slot)
        self._pending.append(prompt)
        if slot == UNTAUGHT:
            self._shared[tokens] = prompt
        return prompt

    def release(self, prompt: Prompt) -> None:
        """Say that one user needs the prompt no more; without users it is not computed."""
        prompt.users -= 1
        if prompt.users == 0 and not prompt.ready:
            self._close(prompt)

    @torch.no_grad()
    def step(self) -> None:
        """Run one bounded forward pass."""
        if not self._pending:
            return
        first = self._pending[0]
        if len(first.tokens) > self._chunk_tokens:
            run_together([first], self._run_chunk, self._fail)
        else:
            run_together(self._short_prompts(), self._run_short, self._fail)

    def _short_prompts(self) -> list[Prompt]:
        """Prompts from the front on whose padded batch is one pass."""
        group: list[Prompt] = []
        width = 0
        for prompt in self._pending:
            width = max(width, len(prompt.tokens))
            if width * (len(group) + 1) > self._chunk_tokens:
                break
            group.append(prompt)
        return group

    def _run_short(self, prompts: Sequence[Prompt]) -> None:
        base = self._base
        with base.hooks.use(self._slots.rows([prompt.slot for prompt in prompts])):
            tokens = [prompt.tokens for prompt in prompts]
            batch = prefill(base.model, tokens, base.device, base.summary_layer)
        for row, prompt in enumerate(prompts):
            self._finish(prompt, _row(batch, row, len(prompt.tokens)))

    def _run_chunk(self, prompts: Sequence[Prompt]) -> None:
        base, prompt = self._base, prompts[0]
        cache = prompt.cache or DynamicCache()
        tokens = prompt.tokens[prompt.done_tokens : prompt.done_tokens + self._chunk_tokens]
        with base.hooks.use(self._slots.rows([prompt.slot])):
            output = base.model(
                input_ids=torch.tensor([tokens], device=base.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                output_hidden_states=base.gate is not None,
            )
        prompt.cache = cache
        prompt.done_tokens += len(tokens)
        if prompt.done_tokens == len(prompt.tokens):
            layers = tuple((keys, values) for keys, values, *_ in cache)
            lengths = torch.tensor([len(prompt.tokens)], device=base.device)
            summaries = None
            if base.gate is not None:
                summaries = output.hidden_states[base.gate.layer][:, -1].clone()
            self._finish(prompt, Prefix(layers, lengths, summaries))
        else:  # the prompts behind it come first, once
            self._pending.rotate(-1)

    def _finish(self, prompt: Prompt, prefix: Prefix) -> None:
        prompt.prefix = prefix
        self.computed_tokens += len(prompt.tokens)
        if prompt.slot == UNTAUGHT:
            self._cache.put(prompt.tokens, prefix)
        self._close(prompt)

    def _fail(self, prompt: Prompt, error: Exception) -> None:
        prompt.error = failure("computing a prompt", error)
        self._close(prompt)

    def _close(self, prompt: Prompt) -> None:
        self._pending.remove(prompt)
        prompt.cache = None
        if self._shared.get(prompt.tokens) is prompt:
            del self._shared[prompt.tokens]


def _row(batch: Prefix, row: int, length: int) -> Prefix:
    """One prompt out of a batch, in memory of its own."""
    layers = tuple(
        (keys[row : row + 1, :, :length].clone(), values[row : row + 1, :, :length].clone())
        for keys, values in batch.layers
    )
    summaries = batch.summaries
    return Prefix(
        layers,
        batch.lengths[row : row + 1].clone(),
        None if summaries is None else summaries[row : row + 1].clone(),
    )


def merge(prefixes: Sequence[Prefix], device: torch.device) -> Prefix:
    """Prompts of one row each as one batch, right-padded."""
    width = max(prefix.width for prefix in prefixes)
    form = next((prefix for prefix in prefixes if prefix.layers), None)
    if form is None:
        return empty_prefix(len(prefixes), device)
    layers = []
    for index, (keys, values) in enumerate(form.layers):
        blank = keys[:, :, :0], values[:, :, :0]
        pairs = [prefix.layers[index] if prefix.layers else blank for prefix in prefixes]
        layers.append(
            (
                torch.cat([_padded(keys, width) for keys, _ in pairs]),
                torch.cat([_padded(values, width) for _, values in pairs]),
            )
        )
    return Prefix(tuple(layers), torch.cat([prefix.lengths for prefix in prefixes]))


def _padded(tensor: torch.Tensor, width: int) -> torch.Tensor:
    return pad_tensor(tensor, (0, 0, 0, width - tensor.shape[2]))
