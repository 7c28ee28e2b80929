"""What was taught for prompts like this one, word by word, beside what the adapter would say.

A few steps teach an adapter one reply well and twenty badly; which of them a prompt is about, the
gate's memory knows. Its answers are mixed into each next token's distribution, as in nearest
neighbour language models (Khandelwal et al. 2020, arXiv 1911.00172, eq. 3), the neighbours being
whole answers. Knows vectors and tokens; nothing about models, sessions or steps.
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
        begun, found = tuple(said), dict[int, float]()
        for answer, weight in zip(self.answers, self.weights, strict=True):
            if len(answer) > len(begun) and answer[: len(begun)] == begun:
                token = answer[len(begun)]
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


def recall(gate: Gate, taught: Taught, vector: Tensor, share: float = SHARE) -> Recall | None:
    """What is remembered for a prompt whose vector is (1, E); None where nothing can be.

    An answer counts by how much the prompt wants it, as one of given choices does
    (``gate.choice_likeness``), and as sharply.
    """
    if taught.completions is None or gate.mix is None:
        return None
    numbers = taught.fitted[0]
    weights = (gate.mix.memory * answer_scores(taught, vector)[0]).softmax(0)
    # Where an answer was only disliked, none is known: near there, the model decides.
    known: list[tuple[tuple[int, ...], float]] = []
    for number, weight in zip(numbers.tolist(), weights.tolist(), strict=True):
        tokens = taught.completions[taught.answers == number][0]
        answer = tuple(tokens[tokens >= 0].tolist())
        if answer:
            known.append((answer, weight))
    if not known:
        return None
    return Recall(tuple(a for a, _ in known), tuple(weight for _, weight in known), share)
