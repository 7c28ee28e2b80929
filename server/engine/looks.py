"""Prompts that callers want to compare: the vectors by which the gate sees them, and no answer.

Runs on the engine thread. Their keys and values enter the prefix cache, so that whoever asks or
teaches next finds them. Knows nothing about what prompts are compared for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.gate import prompt_vectors
from server.engine.base import Base
from server.engine.errors import EngineBusy, EngineError
from server.engine.isolation import failure
from server.engine.outbox import Outbox
from server.engine.prefill import Prefills, Prompt
from server.engine.prefix_cache import Tokens, prefix_owner
from server.engine.types import EngineLimits


@dataclass(eq=False)
class Look:
    """N prompts to be looked at; answered with their vectors (N, E)."""

    prompts: Sequence[Tokens]
    tenant: str
    outbox: Outbox[Tensor]
    asked: list[Prompt] = field(default_factory=list)
    arrived_s: float = field(default_factory=time.monotonic)
    done: bool = False

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done or self.outbox.cancelled


class Looks:
    """All looks inside the engine."""

    def __init__(self, base: Base, prefills: Prefills, limits: EngineLimits) -> None:
        """Have nobody waiting. The base must have a gate before anybody does."""
        self.waiting: list[Look] = []
        self._base = base
        self._prefills = prefills
        self._patience_s = limits.patience_s

    def begin(self) -> None:
        """Ask for the prompts of those that came, and give up who waited too long."""
        for look in [look for look in self.waiting if not look.over]:
            if not look.asked:
                owner = prefix_owner(look.tenant, None)
                look.asked = [self._prefills.request(tokens, owner) for tokens in look.prompts]
            elif time.monotonic() - look.arrived_s > self._patience_s:
                self._fail(look, EngineBusy("no time for the prompts came free: try again"))

    def finish(self) -> None:
        """Answer those whose prompts are ready, and let go of what the others held."""
        for look in [look for look in self.waiting if not look.over]:
            error = next((prompt.error for prompt in look.asked if prompt.error), None)
            if error is not None:
                self._fail(look, error)
            elif all(prompt.ready for prompt in look.asked):
                try:
                    look.outbox.put(self._vectors(look))
                    look.done = True
                except Exception as broken:
                    self._fail(look, failure("comparing prompts", broken))
        for look in [look for look in self.waiting if look.over]:
            self.waiting.remove(look)
            for prompt in look.asked:
                self._prefills.release(prompt)

    def cancel(self, error: EngineError) -> None:
        """End every look with ``error``."""
        for look in self.waiting:
            if not look.over:
                self._fail(look, error)
        self.finish()

    def _vectors(self, look: Look) -> Tensor:
        assert self._base.gate is not None
        found = [prompt.prefix.summaries for prompt in look.asked if prompt.prefix is not None]
        summaries = [seen for seen in found if seen is not None]
        assert len(summaries) == len(look.prompts)
        return prompt_vectors(self._base.gate, torch.cat(summaries), look.prompts)

    @staticmethod
    def _fail(look: Look, error: EngineError) -> None:
        look.done = True
        look.outbox.put(error)
