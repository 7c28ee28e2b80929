"""What is remembered of prompts like this one, word by word, beside what the model would say.

A few steps teach an adapter one reply well and twenty badly; which of them a prompt is about, the
gate's memory knows. Its answers are mixed into each next token's distribution, as in nearest
neighbour language models (Khandelwal et al. 2020, arXiv 1911.00172, eq. 3), the neighbours being
whole answers. Where all that is known is an answer that was disliked, the base says another one.
Knows vectors and tokens; nothing about models, sessions or steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from adapters.config import Gate
from adapters.gate import answer_scores
from adapters.state import Taught

SHARE: Final = 0.5  # of the memory in a token's probability, the rest is the model's
PENALTY: Final = 6.0  # nats that a token costs which goes on with a disliked answer
OWN: Final = -2.5  # nats a token from which on an answer counts as what the model says itself
MOST: Final = 16  # disliked answers that are kept down together


@dataclass(frozen=True)
class Recall:
    """Answers in tokens, and the probability that a prompt wants each, 1 together at most.

    ``share``: of the memory in a token's probability.
    """

    answers: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    share: float = SHARE

    def next_tokens(self, said: Sequence[int]) -> dict[int, float]:
        """Probabilities of the tokens that go on from ``said``; less than 1 together where some
        answers began in another way."""
        found: dict[int, float] = {}
        for answer, weight in zip(self.answers, self.weights, strict=True):
            for token in _next(answer, said):
                found[token] = found.get(token, 0.0) + weight
        return found

    def mix(self, logits: Tensor, said: Sequence[int]) -> None:
        """Mix what is remembered into the model's float logits (V,) of the token after ``said``.

        In place, and only where an answer goes on so: with p of the model and shares s that sum to
        S, a softmax over the result is (1 - S) p + s, since the other logits keep their places
        where the known ones become those of p + s / (1 - S).
        """
        known = self.next_tokens(said)
        if not known:
            return
        tokens = torch.tensor(list(known), device=logits.device)
        shares = self.share * torch.tensor(list(known.values()), device=logits.device)
        added = (shares / (1 - shares.sum())).log() + logits.logsumexp(0)
        logits[tokens] = torch.logaddexp(logits[tokens], added)


@dataclass(frozen=True)
class Disliked:
    """Answers in tokens that are not to be said again.

    The model turns away from them at the first token that it has a choice at, and goes on in its
    own words.
    """

    answers: tuple[tuple[int, ...], ...]

    def mix(self, logits: Tensor, said: Sequence[int]) -> None:
        """Keep down, in place, the tokens after ``said`` that such an answer has there."""
        tokens = {token for answer in self.answers for token in _next(answer, said)}
        if tokens:
            logits[list(tokens)] -= PENALTY


def _next(answer: Sequence[int], said: Sequence[int]) -> Sequence[int]:
    """The token that ``answer`` has after ``said``; none where it is another text, or at an end."""
    begun = len(said)
    return answer[begun : begun + 1] if tuple(answer[:begun]) == tuple(said) else ()


def recall(gate: Gate, taught: Taught, vector: Tensor, share: float = SHARE) -> Recall | None:
    """What is remembered for a prompt whose vector is (1, E); None where nothing can be.

    An answer counts by how much the prompt wants it, as one of given choices does
    (``gate.choice_likeness``), and as sharply.
    """
    if taught.completions is None or gate.mix is None:
        return None
    numbers = taught.fitted[0]
    weights = (gate.mix.memory * answer_scores(taught, vector)[0]).softmax(0)
    answers = [_tokens(taught.completions[taught.answers == number][0]) for number in numbers]
    return Recall(tuple(answers), tuple(weights.tolist()), share) if answers else None


def disliked(gate: Gate, taught: Taught, vector: Tensor) -> list[tuple[int, ...]]:
    """The last ``MOST`` answers that were disliked for prompts like this one, which is (1, E).

    Like enough is what a single example would answer, were it taught.
    """
    if taught.completions is None:
        return []
    near = (taught.left_alone @ vector[0]) >= gate.threshold_for(1)
    answers = [_tokens(row) for row in taught.completions[taught.answers < 0][near]]
    return [answer for answer in dict.fromkeys(answers) if answer][-MOST:]


def _tokens(row: Tensor) -> tuple[int, ...]:
    """One of ``Taught.completions``, without what is behind its end."""
    return tuple(row[row >= 0].tolist())
