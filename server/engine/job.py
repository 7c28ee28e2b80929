"""One session's adapt request on its way through the engine.

Knows what was asked, what of it the steps are over and what they saw; knows nothing about how they
are taken.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from adapters.gate import left_alone
from adapters.minibatches import steps_a_pass
from adapters.support import Example
from server.engine.outbox import Outbox
from server.engine.prefill import Prompt
from server.engine.types import AdaptRequest, Candidate


@dataclass(eq=False)
class Job:
    """One adapt request inside the engine, and what its steps saw so far.

    Where there is a gate, examples whose prompts are the base's are in ``left_alone``: the adapter
    will be off there, whatever it says. With none but these there is nothing to learn.
    """

    request: AdaptRequest
    steps: int
    outbox: Outbox[Candidate]
    gated: bool = False
    examples: tuple[Example, ...] = field(init=False)  # that the steps are over
    left_alone: tuple[Example, ...] = field(init=False)
    prompts: list[Prompt] = field(default_factory=list)  # of both, in this order
    alone: bool = False  # a lesson with others failed: learn without them
    done: bool = False  # answered or failed
    started_s: float = field(default_factory=time.perf_counter)
    loss_before: float = 0.0
    step_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        every = self.request.examples
        told = [(example.prompt, bool(example.wanted)) for example in every]
        away = left_alone(told) if self.gated else [False] * len(every)
        self.examples = tuple(e for e, out in zip(every, away, strict=True) if not out)
        self.left_alone = tuple(e for e, out in zip(every, away, strict=True) if out)

    @property
    def items_a_step(self) -> int | None:
        """Most examples of a step; None for all: ratings are weighed against all the rest."""
        rated = any(example.rating for example in self.examples)
        return None if rated else self.request.items_a_step

    @property
    def steps_in_all(self) -> int:
        """Inner steps that it takes."""
        return self.steps * steps_a_pass(len(self.examples), self.items_a_step)

    @property
    def waited_s(self) -> float:
        """Seconds since the job was asked for."""
        return time.perf_counter() - self.started_s

    @property
    def width(self) -> int:
        """Tokens of the longest example, prompt included."""
        return max(example.tokens for example in self.examples)
