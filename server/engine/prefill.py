"""Prompts on their way to keys and values: bounded forward passes, shared by all who want the same.

Generating and learning ask here for prompts, and the prefix cache keeps them. Knows nothing about
who asked.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from adapters.prefix import Pass, Prefix, empty_prefix, merge, prefill
from server.engine.base import Base
from server.engine.errors import EngineFailed
from server.engine.isolation import failure, run_together
from server.engine.prefix_cache import PrefixCache, Tokens
from server.engine.slots import UNTAUGHT, Slots

_log = logging.getLogger(__name__)
# Padded tokens of prompts' beginnings in one pass, for every token that is computed there: short
# prompts do not get a copy of the padding that a long one's beginning would need.
_BEGUN_PER_CHUNK: Final = 4


@dataclass(eq=False)
class Prompt:
    """A prompt that somebody waits for; ready once there is all of its prefix, or an error."""

    tokens: Tokens
    owner: str  # who may find its keys and values again
    slot: int  # of the adapter that acts on the prompt; UNTAUGHT where the base computes it
    users: int = 1
    begun: Prefix | None = None  # keys and values of its first tokens, (1, H, P, D) a layer
    error: EngineFailed | None = None

    @property
    def done_tokens(self) -> int:
        """Tokens that need no more work."""
        return 0 if self.begun is None else self.begun.width

    @property
    def prefix(self) -> Prefix | None:
        """Keys and values of the whole prompt, once they are there."""
        return self.begun if self.done_tokens == len(self.tokens) else None

    @property
    def ready(self) -> bool:
        """Whether the prompt needs no more work."""
        return self.prefix is not None or self.error is not None


class Prefills:
    """Prompts being computed in turn, at most ``chunk_tokens`` a pass; long ones take several."""

    def __init__(
        self,
        base: Base,
        slots: Slots,
        cache: PrefixCache,
        chunk_tokens: int,
        compute: Pass | None = None,
    ) -> None:
        """Wait for prompts. ``compute`` is a pass without adapters; None: the model's own code."""
        self.computed_tokens = 0
        self._base = base
        self._slots = slots
        self._cache = cache
        self._compute = compute
        self._chunk_tokens = chunk_tokens
        self._begun_tokens = _BEGUN_PER_CHUNK * chunk_tokens
        self._pending: deque[Prompt] = deque()
        self._shared: dict[tuple[str, Tokens], Prompt] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def request(self, tokens: Tokens, owner: str, slot: int = UNTAUGHT) -> Prompt:
        """Ask for a prompt; undo with ``release``. One that somebody has already is shared.

        ``owner`` tells apart who may not share keys and values: tenants, and, where an adapter
        acts on the prompt, its versions.
        """
        if not tokens:
            return Prompt(tokens, owner, slot, begun=empty_prefix(1, self._base.device))
        shared = self._shared.get((owner, tokens))
        if shared is not None:
            shared.users += 1
            return shared
        prompt = Prompt(tokens, owner, slot, begun=self._known(tokens, owner))
        if not prompt.ready:
            self._pending.append(prompt)
        self._shared[owner, tokens] = prompt
        return prompt

    def release(self, prompt: Prompt) -> None:
        """Say that one user needs the prompt no more; without users it is not computed."""
        prompt.users -= 1
        if prompt.users == 0:
            if prompt in self._pending:
                self._pending.remove(prompt)
            self._forget(prompt)

    @torch.no_grad()
    def step(self) -> None:
        """Run one bounded forward pass."""
        if self._pending:
            run_together(self._next_prompts(), self._run, self._fail)

    def _next_tokens(self, prompt: Prompt) -> Tokens:
        return prompt.tokens[prompt.done_tokens :][: self._chunk_tokens]

    def _next_prompts(self) -> list[Prompt]:
        """Prompts from the front on whose next tokens, padded, are one pass."""
        group: list[Prompt] = []
        width = begun = 0
        for prompt in self._pending:
            width = max(width, len(self._next_tokens(prompt)))
            begun = max(begun, prompt.done_tokens)
            rows = len(group) + 1
            if group and (rows * width > self._chunk_tokens or rows * begun > self._begun_tokens):
                break
            group.append(prompt)
        return group

    def _run(self, prompts: Sequence[Prompt]) -> None:
        base = self._base
        tokens = [self._next_tokens(prompt) for prompt in prompts]
        begun = None
        if any(prompt.done_tokens for prompt in prompts):
            nothing = empty_prefix(1, base.device)
            begun = merge([prompt.begun or nothing for prompt in prompts], base.device)
        rows = self._slots.rows([prompt.slot for prompt in prompts])
        compute = self._compute if rows is None else None
        with base.hooks.use(rows):
            batch = prefill(base.model, tokens, base.device, base.summary_layer, begun, compute)
        done = [prompt.done_tokens + len(new) for prompt, new in zip(prompts, tokens, strict=True)]
        begun_now = [_row(batch, row, length) for row, length in enumerate(done)]
        for prompt, prefix, new in zip(prompts, begun_now, tokens, strict=True):
            self._take(prompt, prefix, len(new))

    def _take(self, prompt: Prompt, begun: Prefix, computed_tokens: int) -> None:
        prompt.begun = begun
        self.computed_tokens += computed_tokens
        self._pending.remove(prompt)
        if not prompt.ready:  # the prompts behind it come first, once
            self._pending.append(prompt)
            return
        try:
            self._cache.put(prompt.tokens, prompt.owner, begun)
        except Exception as error:  # whoever waits for the prompt has it all the same
            _log.warning("a prompt could not be kept: %r", error)

    def _known(self, tokens: Tokens, owner: str) -> Prefix | None:
        try:
            return self._cache.get(tokens, owner)
        except Exception as error:
            _log.warning("kept prompts could not be read: %r", error)
            return None

    def _fail(self, prompt: Prompt, error: Exception) -> None:
        prompt.error = failure("computing a prompt", error)
        self._pending.remove(prompt)
        self._forget(prompt)  # whoever asks next tries again

    def _forget(self, prompt: Prompt) -> None:
        if self._shared.get((prompt.owner, prompt.tokens)) is prompt:
            del self._shared[prompt.owner, prompt.tokens]


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
