"""Answering with one of given texts: score each by the model, and take the likeliest.

A text's score is the sum of its tokens' log-probabilities, the end token included, so that the
scores are those of whole answers and no text is another's beginning; and where the session was
taught some of the texts, what its memory of their prompts adds. Knows nothing about the batch being
decoded: scoring takes no row of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters.config import Gate
from adapters.gate import choice_likeness, choice_scores
from adapters.objective import IGNORE
from adapters.prefix import Prefix, continue_from
from adapters.state import AdapterState
from adapters.support import Example, Turns, make_turns
from server.engine.base import Base
from server.engine.errors import EngineFailed
from server.engine.isolation import failure
from server.engine.outbox import Outbox
from server.engine.prefix_cache import Tokens
from server.engine.slots import Slots
from server.engine.ticket import Ticket
from server.engine.types import Delta, Finished, GenerateRequest

Fits = Callable[[int, int], bool]
"""Whether there is memory for the keys and values of so many rows of so many tokens."""


class Choosing(Ticket):
    """A request that is answered with one of its choices."""

    def __init__(
        self,
        base: Base,
        request: GenerateRequest,
        state: AdapterState | None,
        outbox: Outbox[Delta | Finished],
        options: Sequence[Tokens],
    ) -> None:
        """Start with no scores. ``options``: the tokens of each choice, end token included."""
        super().__init__(base, request, state, outbox)
        self.options = tuple(options)
        self.memory = None if state is None else state.taught  # of what was taught, by anybody
        self.scores: list[tuple[float, ...]] = []  # per option scored so far, per token

    def next_options(self, limit_tokens: int, fits: Fits) -> tuple[Tokens, ...]:
        """The unscored options that fit into one bounded pass, at least one.

        Every option has the whole prompt before it, whose keys and values take memory as well.
        """
        group: list[Tokens] = []
        width = 0
        for option in self.options[len(self.scores) :]:
            width = max(width, len(self.head) + len(option))
            rows = len(group) + 1
            fit = width * rows <= limit_tokens and fits(rows, len(self.prefix) + width)
            if group and not fit:
                break
            group.append(option)
        return tuple(group)

    def settle(self, gate: Gate | None) -> None:
        """Answer, once every option has its score."""
        totals = self._mixed(gate, torch.tensor([sum(row) for row in self.scores]))
        shares = totals.log_softmax(0).tolist()
        texts = self.request.sampling.choices
        best = max(range(len(texts)), key=shares.__getitem__)
        logprobs = self.scores[best] if self.request.sampling.logprobs else None
        self.outbox.put(Delta(texts[best], self.options[best], logprobs))
        choice_logprobs = dict(zip(texts, shares, strict=True))
        self._finish(texts[best], "stop", len(self.options[best]), choice_logprobs)

    def _mixed(self, gate: Gate | None, logprobs: Tensor) -> Tensor:
        """(C,) scores of the options by the model and the session's memory."""
        memory = self.memory
        if gate is None or gate.mix is None or memory is None:
            return logprobs
        asked = self.vector(gate)
        if asked is None:
            return logprobs
        likeness = choice_likeness(gate, memory, asked, self.options)
        return choice_scores(gate.mix, likeness, logprobs.unsqueeze(0))[0]


class Scorer:
    """Requests with choices whose prompts are ready, one bounded pass at a time."""

    def __init__(self, base: Base, slots: Slots, limit_tokens: int, fits: Fits) -> None:
        """Hold no requests yet. ``limit_tokens`` and what ``fits`` are of one pass."""
        self.queue: deque[Choosing] = deque()
        self._base = base
        self._slots = slots
        self._limit_tokens = limit_tokens
        self._fits = fits

    def step(self) -> None:
        """Score the next options of the first request; then the next request has its turn."""
        if not self.queue:
            return
        ticket = self.queue[0]
        self.queue.rotate(-1)
        try:
            self._score(ticket)
        except EngineFailed as error:
            ticket.fail(error)
        except Exception as error:
            ticket.fail(failure("scoring choices", error))

    def _score(self, ticket: Choosing) -> None:
        options = ticket.next_options(self._limit_tokens, self._fits)
        ticket.scores += score(self._base, ticket, options, self._slots)
        if not all(score == score for row in ticket.scores for score in row):
            raise ticket.not_finite()
        if len(ticket.scores) == len(ticket.options):
            ticket.settle(self._base.gate)


@torch.no_grad()
def score(
    base: Base, ticket: Ticket, texts: Sequence[Tokens], slots: Slots
) -> list[tuple[float, ...]]:
    """Log-probability of every token of each of these answers to a ticket, by its adapter."""
    turns = _turns(ticket.head, texts, ticket.ready_prefix, base.device)
    with base.hooks.use(slots.rows([ticket.slot] * len(texts))):
        logits = continue_from(base.model, turns.prefix, turns.ids)
    begin = len(ticket.head) - 1
    rows = token_logprobs(logits, turns.targets).tolist()
    return [tuple(row[begin : begin + len(t)]) for row, t in zip(rows, texts, strict=True)]


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of every target (B, T) under logits (B, T, V); 0 where there is none."""
    taught = targets != IGNORE
    safe = torch.where(taught, targets, 0).unsqueeze(-1)
    values = logits.float().log_softmax(-1).gather(-1, safe).squeeze(-1)
    return torch.where(taught, values, 0.0)


def _turns(head: Tokens, options: Sequence[Tokens], prefix: Prefix, device: torch.device) -> Turns:
    examples = [Example((), head, option) for option in options]
    every = torch.zeros(len(options), dtype=torch.long, device=device)
    # "activated" whatever the artifact's scope: the prefix is there, and the head goes on from it.
    return make_turns(examples, prefix.select(every), "activated", device)
